"""The report of a study: what it shows is what was found, literally, and the same each time."""

import dataclasses
import html
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from fake_runs import (
    FIRST_ENDS,
    write_diverged,
    write_merge,
    write_root,
    write_run,
    write_study,
    write_variant,
)

import jaxformer.commands.report
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError
from jaxformer.data.corpus import CorpusConfig
from jaxformer.experiment.variant import resolve
from jaxformer.report import figures, findings
from jaxformer.report.answers import answers, beside_expectation
from jaxformer.report.formatting import signed
from jaxformer.report.graph import graph_edges
from jaxformer.report.graph_layout import lay_out
from jaxformer.report.loss_curves import paired_curve
from jaxformer.report.returns import returns
from jaxformer.report.text import decision_table
from jaxformer.report.write import write_report
from jaxformer.statistics.paired_difference import Difference

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")

HOSTILE = """<script>alert(1)</script> & "quotes" 'single' `ticks` $x^2$ a|b [link](x) --> *bold* _it_ \\ #1; é"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder whose experiments are found by name."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def outcome(folder):
    """Of a study with each kind of variant: kept, reverted, moved data, merged, hostile, failed and not run at all."""
    experiments, runs = folder / "experiments", folder / "runs"
    parts = tuple(CorpusConfig(kind="jsonl", path=f"{name}.jsonl", weight=1.0) for name in ("books", "talks"))
    write_root(experiments, corpus=CorpusConfig(kind="mixture", parts=parts))
    write_variant(experiments, "muon", {"optimizer.name": "muon"}, expected=(-0.02, -0.01))
    write_variant(experiments, "swiglu", {"model.activation": "swiglu"}, question=HOSTILE, source=HOSTILE)
    write_variant(experiments, "slow", {"optimizer.learning_rate": 1e-3})
    write_variant(experiments, "long", {"packing.row_length": 512})
    write_variant(experiments, "deep", {"model.depth": 9})
    write_variant(experiments, "later", {"tokenizer.path": HOSTILE})
    write_variant(experiments, "muon_deep", {"model.depth": 6}, parent="muon")
    write_merge(experiments, "joined", ("muon", "swiglu"))
    names = ("root", "muon", "swiglu", "slow", "long", "muon_deep", "joined")
    effects = {"muon": -0.05, "swiglu": -0.03, "slow": 0.04, "long": -0.01, "muon_deep": -0.05, "joined": -0.09}
    write_study(runs, names, effects=effects, seeds=3, items=20)
    write_diverged(runs, resolve("deep"), 0)
    return judge_study(Study(parent="root", variants=(*names[1:], "deep", "later")), runs)


@pytest.fixture(scope="module")
def report(outcome, folder):
    """The folder of its report."""
    return write_report(outcome, folder / "report").parent


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and its text outside of them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "index.html").read_text())


def test_the_numbers_of_the_page_are_those_of_the_comparison(outcome, page, report):
    markdown = html.unescape((report / "report.md").read_text())
    for one in outcome.comparisons:
        if one.difference is None:
            continue
        low, high = one.difference.interval(1 - outcome.study.rule.alpha)
        shown = [
            f"{signed(one.difference.mean)} ± {one.difference.standard_error:.4f}",
            f"[{signed(low)}, {signed(high)}]",
            f"{one.cost.time_per_token:.3f}",
            one.verdict.word.value,
            one.verdict.reason,
        ]
        for text in shown:
            assert text in page.text and text in markdown, (one.variant, text)
        assert list(one.corpora) == ["books", "talks"]
        for corpus in one.corpora.values():
            assert f"{signed(corpus.mean)} ± {corpus.standard_error:.4f}" in page.text
        for task in one.tasks.values():
            assert f"{100 * task.variant:.1f}" in page.text
            gold = task.gold_bits_per_byte
            assert f"{signed(100 * task.accuracy.mean, 1)} ± {100 * task.accuracy.standard_error:.1f}" in page.text
            assert f"{signed(gold.mean, 3)} ± {gold.standard_error:.3f}" in page.text
    hours = sum(run.device_hours for runs in outcome.evidence.values() for run in runs)
    assert f"{hours:.2f} of finished runs" in page.text and "2023-11-14" in page.text


def test_a_row_of_the_table_belongs_to_its_variant(outcome, report):
    page = (report / "index.html").read_text()
    table = page[page.index('<table class="decisions">') : page.index("</table>")]
    bodies = [Page(body).text for body in re.findall(r"<tbody>(.*?)</tbody>", table, re.DOTALL)]
    names = re.findall(r"<tbody>.*?<strong>(.*?)</strong>", table, re.DOTALL)
    assert names == ["root", *(each.name for each in answers(outcome))]
    for body, each in zip(bodies[1:], answers(outcome), strict=True):
        assert each.word.value in body
        if each.difference:
            assert signed(each.difference.mean) in body and f"{each.hours:.2f}" in body
        for path, (before, after) in each.lineage["change"].items():
            assert f"{path}: {before or repr(before)} → {after}" in body


def test_hostile_text_is_shown_literally_and_runs_nothing(page, report, outcome):
    text = " ".join(HOSTILE.split())
    assert page.text.count(text) >= 3, "in the expectations, as source, and with its question"
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith("#") or value == "data:," for value in links), "nothing is loaded"
    markdown = (report / "report.md").read_text()
    assert "<script" not in markdown and html.unescape(markdown).count(text) >= 3
    widths = {len(re.findall(r"\|", line)) for line in markdown.splitlines() if line.startswith("| ")}
    assert len(widths) == 2, "the rows of the two tables have as many cells as their heads"


def test_hostile_text_cannot_leave_its_place_in_the_mermaid_graph(report):
    markdown = (report / "report.md").read_text()
    graph = markdown[markdown.index("```mermaid") + 10 :]
    graph = graph[: graph.index("```")]
    assert "#60;script#62;alert(1)" in graph
    for line in graph.splitlines():
        for label in re.findall(r'\["(.*)"\]', line):
            assert not set(label.replace("<br/>", "")) & set('"<>`[]{}|&$\\')
            assert re.sub(r"#\d+;", "", label).count("#") == 0


def test_the_mermaid_graph_has_the_edges_of_the_study(report, outcome):
    markdown = (report / "report.md").read_text()
    graph = markdown[markdown.index("```mermaid") :]
    names = dict(re.findall(r'(n\d+)\["([\w ]+)<br', graph))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(n\d+) --> (n\d+)", graph)}
    assert edges == set(graph_edges(outcome)) >= {("muon", "joined"), ("swiglu", "joined"), ("root", "muon")}


def test_the_same_outcome_gives_the_same_bytes(outcome, report, folder):
    other = write_report(outcome, folder / "again").parent
    names = sorted(path.name for path in report.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert {"index.html", "report.md", "forest.png", "graph.png", "losses.png", "paired.png", "returns.png"} == set(
        names
    )
    for name in names:
        assert (report / name).read_bytes() == (other / name).read_bytes(), name


def test_names_of_one_picture_in_the_page_are_not_those_of_another(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_was_not_compared_is_shown_plainly(page, outcome):
    by_name = {each.name: each for each in answers(outcome)}
    assert by_name["later"].word is Word.NOT_COMPARED and "no run of it has ended" in page.text
    assert by_name["deep"].word is Word.REVERT and "seed 0 diverged" in page.text
    table = " ".join(decision_table(outcome).split())
    assert "no run of it has ended" in table and "seed 0 diverged" in table


def test_a_merge_tells_its_interaction(page, outcome):
    found = outcome.interactions["joined"]
    assert f"Interaction: {signed(found.mean)} ± {found.standard_error:.4f}" in page.text


def test_the_readings_at_equal_tokens_and_at_equal_time_are_told(page, outcome):
    told = [one for one in outcome.comparisons if one.cost and math.isfinite(one.worth)]
    assert told
    for one in told:
        assert f"the parent needs {one.worth:.2f} x the variant's tokens" in page.text
        assert f"= {one.worth / one.cost.time_per_token:.2f} x" in page.text


def test_an_expectation_is_beside_its_outcome(page, outcome):
    muon = next(each for each in answers(outcome) if each.name == "muon")
    assert beside_expectation(muon.difference, (-0.02, -0.01), 0.981).startswith("better than expected")
    sure = Difference(-0.05, 1e-8, 10.0)
    assert beside_expectation(sure, (-0.02, 0.0), 0.95) == "better than expected"
    assert beside_expectation(sure, (-0.06, 0.0), 0.95) == "inside"
    assert beside_expectation(sure, (-0.09, -0.06), 0.95) == "worse than expected"
    assert beside_expectation(Difference(-0.05, 1e-2, 10.0), (-0.02, 0.0), 0.95).endswith("within its error")


def test_pairing_leaves_what_the_batches_do_not_explain(outcome):
    curve = paired_curve(outcome.evidence["root"], outcome.evidence["muon"])
    assert curve.differences_SN.shape == curve.crossed_SN.shape == (3, 40)
    paired, crossed = curve.scatter
    assert crossed > 3 * paired, "the planted noise of batches is ten times that of steps"
    assert paired_curve(outcome.evidence["root"], outcome.evidence["long"]) is None, "other batches"


def test_returns_count_all_hours_and_the_kept_changes_once(outcome):
    found = {one.name: one for one in returns(outcome)}
    kept = {each.name: -each.difference.mean for each in answers(outcome) if each.word is Word.KEEP}
    assert {"muon", "swiglu"} <= set(kept)
    last = list(found.values())[-1]
    everything = sum(run.device_hours for runs in outcome.evidence.values() for run in runs)
    assert last.hours == pytest.approx(everything)
    assert last.added == pytest.approx(sum(gain for name, gain in kept.items() if name != "joined"))
    muon, joined = (next(each for each in answers(outcome) if each.name == name) for name in ("muon", "joined"))
    assert found["joined"].total == pytest.approx(-muon.difference.mean - joined.difference.mean)
    assert (found["muon"].fields, found["joined"].fields, found["muon_deep"].fields) == (1, 2, 2)


def test_boxes_of_the_graph_do_not_overlap_and_edges_pass_between_them():
    names = ["root", *(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(4)), "end"]
    edges = [("root", f"a{i}") for i in range(20)] + [(f"a{5 * i}", f"b{i}") for i in range(4)]
    edges += [("b0", "end"), ("root", "end"), ("a7", "end")]
    positions, routes, columns = lay_out(names, edges)
    boxes = sorted(positions.values())
    for i, (x, y) in enumerate(boxes):
        assert all(x != u or abs(y - v) >= 1.0 for u, v in boxes[i + 1 :])
    for (parent, child), heights in routes.items():
        for column, y in heights[1:-1]:
            crossed = [name for name, (x, v) in positions.items() if x == columns[column][0] and abs(v - y) < 0.5]
            assert set(crossed) <= {parent, child}
        assert positions[parent][0] < positions[child][0]


def test_hours_of_runs_that_were_stopped_early_are_counted(outcome):
    wasted = outcome._replace(lost_hours={"slow": 2.5})
    before, after = ({one.name: one.hours for one in returns(each)} for each in (outcome, wasted))
    assert after["muon"] == before["muon"] and after["slow"] == pytest.approx(before["slow"] + 2.5)
    assert after["joined"] == pytest.approx(before["joined"] + 2.5)
    told = dict(findings.about(wasted))["Device hours"]
    assert told.endswith("2.50 of runs that were stopped early") and "stopped" not in findings.device_hours(outcome)


def test_a_table_in_a_terminal_has_150_columns_and_ascii_minus_signs(outcome):
    text = decision_table(outcome)
    assert max(map(len, text.splitlines())) <= 150 and not set(text) & {"\N{MINUS SIGN}", "\N{EN DASH}"}
    name = "muon_with_a_name_that_leaves_no_room_for_a_reason_beside_the_numbers"
    root, muon, *others = outcome.experiments
    comparisons = [one._replace(variant=name) if one.variant == "muon" else one for one in outcome.comparisons]
    muon = muon._replace(experiment=dataclasses.replace(muon.experiment, name=name))
    text = decision_table(outcome._replace(experiments=[root, muon, *others], comparisons=comparisons))
    assert f"\n{name} " in text and "\n    is better" in text


@pytest.fixture
def without_png(monkeypatch):
    """Pictures in the page only, which is faster."""
    monkeypatch.setattr(figures, "save_png", lambda figure, path: None)


@pytest.mark.usefixtures("without_png")
def test_a_study_of_which_only_the_parent_is_finished_is_reported(folder, tmp_path):
    write_run(tmp_path / "runs", resolve("root"), 0, tasks=())
    outcome = judge_study(Study(parent="root", variants=("muon", "joined", "swiglu")), tmp_path / "runs")
    page = Page(write_report(outcome, tmp_path / "report").read_text())
    assert page.text.count("NOT COMPARED") >= 6 and "not known with one seed" in page.text
    assert "What pairing pays" not in page.text and "nan" not in page.text


@pytest.mark.usefixtures("without_png")
def test_one_seed_without_tasks_and_scores_that_are_not_numbers_are_reported(folder, tmp_path):
    runs = tmp_path / "runs"
    write_study(runs, ("root", "muon"), effects={"muon": -0.05}, seeds=1, tasks=("lambada",), items=20)
    outcome = judge_study(Study(parent="root", variants=("muon",), seeds=1, parent_seeds=1), runs)
    (one,) = outcome.comparisons
    nan = Difference(math.nan, math.nan, math.inf)
    tasks = {name: task._replace(variant=math.nan, accuracy=nan) for name, task in one.tasks.items()}
    assert tasks
    outcome = outcome._replace(comparisons=[one._replace(tasks=tasks)])
    page = Page(write_report(outcome, tmp_path / "report").read_text())
    for told in (
        page.text,
        " ".join(decision_table(outcome).split()),
        " ".join(decision_table(outcome._replace(comparisons=[one._replace(tasks={})])).split()),
    ):
        assert "within the noise floor, which one seed does not show and contains 0" in told
        assert "the first interim analysis is after 3 seeds" in told and not re.search(r"\bnan\b", told)


def test_without_matplotlib_one_line_says_what_to_install(outcome, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'jaxformer\[report\]'"):
        write_report(outcome, tmp_path / "report")


def test_the_command_prints_the_decisions_and_where_the_page_is(outcome, folder, capsys, monkeypatch):
    monkeypatch.setattr(jaxformer.commands.report, "write_report", lambda outcome, output: output / "index.html")
    study = folder / "two.py"
    study.write_text(
        "from jaxformer.ablation.study import Study\nSTUDY = Study(parent='root', variants=('muon', 'slow'))\n"
    )
    assert jaxformer.commands.report.main([f"--study={study}"]) == 0
    told = capsys.readouterr().out
    assert "KEEP" in told and "REVERT" in told and told.endswith("runs/reports/two/index.html\n")
    assert jaxformer.commands.report.main(["--parent=root", "--variants=muon, slow", "--output=there"]) == 0
    assert capsys.readouterr().out == told.replace("runs/reports/two", "there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study=nowhere.py"], "study file nowhere.py: no such file"),
        ([], "give --study, or --parent and --variants"),
        (["--parent=root"], "give --study, or --parent and --variants"),
        (["--parent=root", "--variants=mun"], "unknown experiment 'mun'; did you mean muon?"),
        (["--parent=root", "--variants=muon", "--runs=empty"], "no finished run of the parent"),
    ],
)
def test_the_command_refuses_in_one_line(outcome, capsys, arguments, message):
    assert jaxformer.commands.report.main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("jaxformer: ") and told.count("\n") == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_chromium_shows_the_page_without_a_complaint(report, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (report / "index.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert html.unescape(done.stdout).count("alert(1)") >= 3 and "<script" not in done.stdout


def test_fake_runs_end_when_they_are_told(outcome):
    first = outcome.evidence["root"][0].workdir / "summary.json"
    assert first.stat().st_mtime == FIRST_ENDS
