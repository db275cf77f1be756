"""The page of a run: what it shows is what the run's folder holds, literally, and drawing it harms no run."""

import datetime
import html
import json
import math
import re
import shutil
import time

import numpy as np
import pytest
from fake_runs import HOSTILE
from pages import Page, needs_chromium, shown_by_chromium
from tiny_run import command

import jaxformer.loop
import jaxformer.run.page
from jaxformer.data.phases import Span
from jaxformer.host.signals import Stopped
from jaxformer.run.metrics import MetricsReader, Series, Writer
from jaxformer.run.page import Records, RunPage, find_events, make_charts, make_figures, make_page, read_other_seeds
from jaxformer.run.samples import read_samples, write_samples
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]

NOW = datetime.datetime(2026, 11, 28, 15, 0, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def run(uninterrupted):
    return uninterrupted("best_fit")


def records_of(folder, **changed):
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    return Records(config, summary, MetricsReader(folder).read(), {12: "a text"})._replace(**changed)


def test_the_page_shows_what_the_run_came_to(run):
    page, summary = Page((run / "run.html").read_text()), json.loads((run / "summary.json").read_text())
    text = " ".join(page.text.split())
    assert "best_fit seed 3" in text and "Does a run that was stopped end as if it had not been?" in text
    assert "finished 12 steps" in text and f"{summary['validation/loss']:.4f} nats per token" in text
    error = summary["validation/bits_per_byte_standard_error"]
    assert f"{summary['validation/bits_per_byte']:.4f} ± {error:.4f} bits per byte" in text
    assert "1 x cpu" in text and f"jax {json.loads((run / 'config.json').read_text())['versions']['jax']}" in text
    assert [*read_samples(run)] == [4, 8, 12]
    assert re.findall(r"<h3>step (\d+)", (run / "run.html").read_text()) == ["4", "8", "12"]
    headings = ("Loss", "Learning rate", "Gradient norm", "Update norms", "Parameter norms")
    assert [page.text.count(f"{heading} ") for heading in headings] == [1] * 5
    page.assert_nothing_is_loaded_or_run()


def test_how_much_seeds_differ_is_shown_where_other_seeds_are_finished(run, tmp_path):
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    others = {
        "seed_1": (1, 2.5, {}),
        "seed_2": (2, 2.7, {}),
        "seed_3": (3, 9.9, {}),
        "wider": (4, 9.9, {"model.width": 99}),
    }
    for name, (seed, bits, changed) in others.items():
        (tmp_path / name).mkdir()
        identity = config["identity"] | {"seed": seed} | changed
        (tmp_path / name / "config.json").write_text(json.dumps({"seed": seed, "identity": identity}))
        (tmp_path / name / "summary.json").write_text(json.dumps({"validation/bits_per_byte": bits}))
    (tmp_path / "seed_5").mkdir()
    (tmp_path / "seed_5" / "config.json").write_text(
        json.dumps({"seed": 5, "identity": config["identity"] | {"seed": 5}})
    )
    assert read_other_seeds(tmp_path / "seed_3", config) == [2.5, 2.7], "neither its own, nor another configuration's"
    records = records_of(run, other_seeds=[2.5, 2.7])
    figures = {figure.name: figure.value for figure in make_figures(records)}
    assert figures["seeds differ by"] == f"{np.std([2.5, 2.7, summary['validation/bits_per_byte']], ddof=1):.4f}"
    going = records._replace(summary={"seconds": 1.0, "peak_memory_bytes": 1})
    assert "0.1414 bits per byte, standard deviation of 2 runs" in " ".join(
        Page(make_page(going, [], NOW)).text.split()
    )
    assert "seeds differ by" not in Page(make_page(going._replace(other_seeds=[2.5]), [], NOW)).text


def test_a_page_of_a_run_that_goes_on_tells_how_far_it_is_and_what_is_wrong(run):
    series = records_of(run).series
    series = {name: Series(*(x[each.steps <= 7] for x in each)) for name, each in series.items() if each.steps[0] <= 7}
    going = records_of(run, summary={"seconds": 3725.0, "peak_memory_bytes": 2e9}, series=series)
    text = " ".join(Page(make_page(going, ["the loss is <high>"], NOW)).text.split())
    assert "not finished as of step 7 of 12" in text and "finished 12 steps" not in text
    assert "1:02:05" in text and "2.00 GB" in text and "the loss is <high>" in text
    assert "drawn 2026-11-28 15:00 UTC" in text
    ends = [
        (Stopped(15, "step 7 is saved"), "stopped at step 7 of 12: stopped by SIGTERM; step 7 is saved drawn"),
        (OSError("no <room>"), "failed at step 7 of 12: no <room> drawn"),
        (MemoryError(), "failed at step 7 of 12: MemoryError drawn"),
    ]
    for error, shown in ends:
        assert shown in " ".join(Page(make_page(going._replace(error=error), [], NOW)).text.split())


def test_foreign_text_is_shown_literally_and_runs_nothing(run):
    records = records_of(run)
    sample = f"{HOSTILE}</pre><script>alert(2)</script>\n\x00\x1b[31m \u202e\n    indented\t\u00a0\u3000\u200c|"
    config = records.config | {"question": f"{HOSTILE}\x00\x1b[31m", "experiment": HOSTILE}
    config["lineage"] = config["lineage"] | {"change": {"model.activation": ["gelu", HOSTILE]}, "parents": [HOSTILE]}
    page = Page(text := make_page(records._replace(config=config, samples={12: sample}), [HOSTILE], NOW))
    page.assert_nothing_is_loaded_or_run()
    assert "<script" not in text and page.text.count(" ".join(HOSTILE.split())) >= 6
    assert "</pre><script>alert(2)</script>\n\\x00\\x1b[31m \\u202e\n    indented\t\u00a0\u3000\u200c|" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)


def test_a_page_is_drawn_from_what_was_added_since(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    writer, page, reader = Writer(tmp_path, first_step=0), RunPage(tmp_path, 0), MetricsReader(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 9.0 - step, "train/load/a": [1.0, 2.0], "train/gradient_norm": math.nan})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 9, "train')  # The rest of a line that comes.
        assert page.draw(1.0, [Span(0, 12, 1, 8, (1.0,))]) == []
        assert f"as of step {step} of 12" in page.path.read_text().replace("\n", " ")
        text = (tmp_path / "metrics.jsonl").read_bytes()
        (tmp_path / "metrics.jsonl").write_bytes(text[: text.rindex(b"\n") + 1])
        read = reader.read()
    writer.close()
    assert set(read) == {"train/loss", "train/gradient_norm", "train/load/a", "train/load/a/min", "train/load/a/max"}
    assert [x.tolist() for x in read["train/loss"]] == [[1, 2, 3], [8.0, 7.0, 6.0]]
    assert np.isnan(read["train/gradient_norm"].values).all()


def test_spikes_and_skipped_steps_are_marked_on_the_losses():
    losses, scores, skipped = [3.0, math.nan, 9.0, 8.0, 3.0], [0.0, 0.0, 7.5, 6.5, 1.0], [0, 1, 1, 2, 2]
    values = {"loss": losses, "spike_score": scores, "skipped_steps": skipped}
    series = {f"train/{name}": Series(np.arange(1, 6), np.array(each, float)) for name, each in values.items()}
    events, _ = find_events(series)
    assert [(event.step, event.text) for event in events] == [
        (2, "step 2: loss nan, skipped"),
        (3, "step 3: loss 9, 7.5 standard deviations above the last"),
        (4, "step 4: loss 8, 6.5 standard deviations above the last, skipped"),
    ]
    (chart, *_) = make_charts(Records({}, {}, series, {}))
    assert len(chart.marks) == 3 and chart.about.endswith("▲ spikes: 1; ✕ skipped: 2")


def test_events_that_are_too_many_to_be_shown_are_counted():
    steps = np.arange(1, 302)
    losses, scores = np.full(301, 9.0), 6.5 + steps / 1000
    losses[7], scores[7] = math.nan, 0.0
    columns = {"loss": losses, "spike_score": scores, "skipped_steps": (steps >= 8).astype(float)}
    series = {f"train/{name}": Series(steps, values) for name, values in columns.items()}
    events, counts = find_events(series)
    assert [event.step for event in events] == [8, *range(103, 302)] and [*counts.values()] == [300, 1]
    (chart, *_) = make_charts(Records({}, {}, series, {}))
    assert chart.about.endswith("spikes: 300; ✕ skipped: 1; 200 of them are shown")


def test_a_sample_is_written_behind_those_before_and_all_again_after_one_that_failed(tmp_path, monkeypatch):
    write_samples(tmp_path, {4: "four", 8: "of a run that stopped"})
    page, file = RunPage(tmp_path, 8), tmp_path / "samples.jsonl"
    page.add_sample(8, "eight")
    first, before = file.stat().st_ino, file.read_bytes()
    page.add_sample(12, "twelve")
    assert file.stat().st_ino == first and file.read_bytes().startswith(before)

    def fail(folder, step, text):
        with file.open("ab") as torn:
            torn.write(b"{")
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(jaxformer.run.page, "append_sample", fail)
        page.add_sample(16, "sixteen")
    page.add_sample(20, "twenty")
    assert read_samples(tmp_path) == {4: "four", 8: "eight", 12: "twelve", 16: "sixteen", 20: "twenty"}
    assert file.read_bytes().count(b"{") == 5


def test_tasks_and_norms_by_group_have_charts_of_their_own():
    names = ["alpha/acc", "beta/acc", "alpha/acc_norm", "alpha/acc_standard_error", "train/gradient_norm/attention"]
    series = {name: Series(np.array([1, 2]), np.array([0.25, 0.5])) for name in names}
    charts = {chart.heading: chart for chart in make_charts(Records({}, {}, series, {})) if chart}
    assert {heading: [line.name for line in chart.lines] for heading, chart in charts.items()} == {
        "Tasks": ["alpha", "beta"],
        "Gradient norms": ["attention"],
    }
    assert charts["Tasks"].strips[1].text == "step 2: alpha 50; beta 50"


def test_what_layers_report_has_a_chart_of_its_mean_in_a_band_of_its_range(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    for step, load_E in enumerate([[0.5, 0.5, 0.5], [0.2, 0.4, 0.9]], 1):
        writer.write(step, {"train/feed_forward/load": np.array([load_E, load_E])})
    writer.close()
    (chart,) = filter(None, make_charts(Records({}, {}, MetricsReader(tmp_path).read(), {})))
    (line,) = chart.lines
    assert chart.heading == "feed_forward/load" and line.latest == "0.5" and line.band
    assert chart.strips[1].text == "step 2: mean 0.5 (0.2 to 0.9)"


def test_what_is_wrong_is_printed_at_each_evaluation_and_a_page_that_cannot_be_drawn_harms_no_run(
    experiment_files, tmp_path, monkeypatch, capsys
):
    def fail_once(*arguments):
        monkeypatch.setattr(RunPage, "draw", draw)
        raise OSError("no room")

    draw, page = RunPage.draw, tmp_path / "run" / "run.html"
    monkeypatch.setattr(RunPage, "draw", fail_once)
    monkeypatch.setattr(jaxformer.loop, "sample_text", lambda *arguments, **options: "again " * 50)
    assert main(command(experiment_files["best_fit"], tmp_path / "run")) == 0
    out, err = capsys.readouterr()
    failed, *alarms = err.splitlines()
    assert failed == f"jaxformer: {page} is not drawn (OSError: no room)"
    assert [line.rpartition(":")[0] for line in alarms] == [
        f"jaxformer: step {step}/12: the sample repeats itself" for step in (8, 12)
    ]
    assert all(line.endswith(f"; see {page}") for line in (*alarms, out.splitlines()[-1]))
    assert page.read_text().count("repeats itself</span>") == 3


def test_a_page_of_two_thousand_steps_is_drawn_in_a_moment():
    steps = np.arange(1, 2001)
    norms = [f"train/{kind}_norm/{part}" for kind in ("gradient", "update", "parameter") for part in "abcdef"]
    names = ["loss", "gradient_norm", "learning_rate", "spike_score", "skipped_steps"]
    series = {name: Series(steps, 1 + np.sin(steps) ** 2) for name in [f"train/{name}" for name in names] + norms}
    config = {"experiment": "a", "seed": 0, "question": "", "config": {"training": {"steps": 2000}}, "lineage": {}}
    summary = {"seconds": 1.0, "peak_memory_bytes": 1e9}
    before = time.process_time()
    make_charts(Records(config, summary, series, {}))
    assert time.process_time() - before < 0.5, "0.02 s on a free core"


@needs_chromium
def test_chromium_shows_the_page_without_a_complaint(run, tmp_path):
    page = tmp_path / "run.html"
    page.write_text(make_page(records_of(run, samples={4: HOSTILE}), [HOSTILE], NOW))
    shown = shown_by_chromium(page, tmp_path)
    assert html.unescape(shown).count("alert(1)") == 2 and "<script" not in shown and shown.count("<svg") >= 5
