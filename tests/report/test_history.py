"""One page over all studies: every question in its generation, whatever its texts hold, and the same bytes again."""

import fake_runs
import pytest

from jaxformer.ablation.ledger import CONFIRMATION, PROMOTION, VERDICT, append
from jaxformer.commands import report
from jaxformer.report.history import (
    collect_history,
    draw_expectations,
    generation_rows,
    history_graph,
    question_rows,
    summarise_history,
)

pytestmark = pytest.mark.device_free

for name in ("matplotlib", "networkx", "jinja2"):
    pytest.importorskip(name)


def verdict(parent, variant, generation, mean, word, parents=()):
    difference = {"mean": mean, "standard_error": 0.005, "low": mean - 0.025, "high": mean + 0.025}
    return {
        "kind": VERDICT,
        "parent": parent,
        "variant": variant,
        "parents": list(parents) or [parent],
        "generation": generation,
        "question": fake_runs.HOSTILE,
        "expected": [-0.03, 0.0],
        "source": fake_runs.HOSTILE,
        "verdict": word,
        "reason": "so",
        "difference": difference,
        "seeds": [0, 1, 2],
        "q": 0.01,
        "device_hours": 0.5,
        "study": "a",
    }


@pytest.fixture
def runs(tmp_path):
    """A folder of runs with a ledger of three generations."""
    for i in range(15):
        append(tmp_path, verdict("root", f"change_{i}", 0, 0.01 * (i - 7), "KEEP" if i < 3 else "UNDECIDED"))
    append(tmp_path, verdict("change_0", "joined", 0, 0.0, "EQUIVALENT", ("change_0", "change_1")))
    names = {"parent": "root", "variant": "change_0", "name": "root_gen1"}
    append(tmp_path, {"kind": PROMOTION, **names})
    append(tmp_path, {"kind": CONFIRMATION, "answer": "CONFIRMED", **names})
    append(tmp_path, verdict("root_gen1", "change_1@root_gen1", 1, -0.05, "KEEP"))
    names = {"parent": "root_gen1", "variant": "change_1@root_gen1", "name": fake_runs.HOSTILE}
    append(tmp_path, {"kind": PROMOTION, **names})
    append(tmp_path, verdict(fake_runs.HOSTILE, "last", 2, 0.01, "REVERT"))
    return tmp_path


def test_generations_hang_together_by_what_was_promoted(runs):
    history = collect_history(runs)
    edges = set(history_graph(history).edges)
    assert {("root", f"change_{i}") for i in range(15)} <= edges
    assert {("change_0", "joined"), ("change_1", "joined")} <= edges
    assert {("change_0", "change_1@root_gen1"), ("change_1@root_gen1", "last")} <= edges and len(edges) == 19
    became = {row[1][0]: row[-1][0] for row in question_rows(history)}
    assert became["change_0 of root"] == "root_gen1, CONFIRMED" and became["change_2 of root"] == "not confirmed yet"
    assert became["change_7 of root"] == "" and became["change_1 of root_gen1"].endswith("not confirmed yet")
    summary = dict(summarise_history(history))
    assert "18 in 3 generations: 4 KEEP" in summary["Questions"] and "4 of the 18" in summary["Chance"]
    assert summary["Promoted"].startswith("change_0 as root_gen1, CONFIRMED; change_1 as ")
    assert summary["Promoted"].endswith(", not confirmed yet") and summary["Kept, not promoted"] == "change_1, change_2"
    expectations = "5 as expected, 2 better than expected, 3 perhaps better than expected, "
    assert summary["Expectations"] == expectations + "3 perhaps worse than expected, 5 worse than expected"


def test_what_leaves_out_a_kept_change_is_no_question_of_a_generation(runs):
    before = collect_history(runs)
    append(runs, verdict("root_gen1", "root_gen1_without_x", 1, 0.05, "REVERT") | {"leaves_out": "x"})
    after = collect_history(runs)
    one, other = dict(summarise_history(before)), dict(summarise_history(after))
    assert one["Questions"] == other["Questions"] and generation_rows(before) == generation_rows(after)
    assert other["Left out again"] == "1: 1 REVERT"


def test_the_axis_has_room_for_all_expectations_whichever_was_first(runs):
    wide = verdict("root", "wide", 0, 0.0, "EQUIVALENT") | {"expected": [-0.09, 0.09]}
    append(runs, wide)
    history = collect_history(runs)
    ends = [
        draw_expectations(history._replace(questions=order)).axes[1].get_xlim()
        for order in (history.questions, history.questions[::-1])
    ]
    assert ends[0] == ends[1] and ends[0][1] > 0.09


def test_the_page_is_the_same_again_and_shows_texts_as_they_are(runs, tmp_path, capsys):
    pages = []
    for name in ("one", "two"):
        assert report.main(["--all", f"--runs={runs}", f"--output={tmp_path / name}"]) == 0
        pages.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert pages[0] == pages[1] and pages[0].keys() == {"index.html", "graph.png", "expectations.png"}
    assert "4 KEEP" in capsys.readouterr().out
    page = pages[0]["index.html"].decode()
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_verdict_that_is_not_whole_is_named_and_a_circle_is_drawn(runs, capsys):
    append(runs, {"kind": VERDICT, "parent": "root", "variant": "torn"})
    append(runs, verdict("last", "root", 3, 0.0, "EQUIVALENT"))
    history = collect_history(runs)
    assert "a verdict on torn is incomplete" in capsys.readouterr().err
    assert "root" in history_graph(history) and ("last", "root") not in history_graph(history).edges


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--all", "--runs=none"], "no verdict is recorded"), (["--all", "--study=laptop"], "--all reports all studies")],
)
def test_what_cannot_be_reported_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1 and not list(tmp_path.iterdir())
