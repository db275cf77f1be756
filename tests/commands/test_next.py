"""The command that says what to ask next: what is ranked, what is not, when it stops, and what a user gets wrong."""

import json
from pathlib import Path

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation import next_question, open_questions
from jaxformer.ablation.next_question import rank_questions
from jaxformer.ablation.open_questions import find_questions, record_of
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.past_expectations import believe, calibrate_by, read_answered
from jaxformer.ablation.study import Study, ablate_command, mean_seconds
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.commands import next as command
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.resolution import resolve
from jaxformer.report import next_question as report
from jaxformer.report.next_question import ranking_text

pytestmark = pytest.mark.device_free


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next")
    files = folder / "experiments"
    fake_runs.write_root(files)
    fake_runs.write_root(files, "other", model__depth=3)
    questions = {
        "good": ({"model.qk_norm": True}, (-0.02, 0.0)),
        "open": ({"model.z_loss": 1e-4}, (-0.02, 0.01)),
        "promising": ({"optimizer.weight_decay": 0.3}, (-0.06, -0.04)),
        "hopeless": ({"model.activation": "relu2"}, (0.04, 0.06)),
        "again": ({"model.qk_norm": True}, (-0.01, 0.0)),
        "invalid": ({"model.heads": 7}, (-0.02, 0.0)),
    }
    for name, (change, expected) in questions.items():
        fake_runs.write_variant(files, name, change, expected=expected)
    fake_runs.write_variant(files, "deeper", {"model.depth": 6}, parent="good")
    fake_runs.write_merge(files, "both", ("good", "open"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        effects = {"good": -0.03, "open": -0.004}
        fake_runs.write_study(folder / "runs", ["root", *effects], effects=effects, tasks=())
        judge_study(Study(parent="root", variants=tuple(effects)), Path("runs"))
    return folder


def enter(patch, place):
    patch.chdir(place)
    names = sorted(path.stem for path in (place / "experiments").glob("*.py"))
    patch.setattr(open_questions, "list_experiments", lambda: names)


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    enter(monkeypatch, place)


@pytest.fixture(scope="module")
def ranking(place):
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, place)
        return rank_questions("root", Path("runs"), target_hours=1e6)


def ranked(capsys, *arguments):
    assert command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_open_questions_are_ranked_and_answered_and_others_are_told(ranking):
    found = ranking.record()
    names = [each["name"] for each in found["ranked"]]
    assert set(names) == {"open", "promising", "hopeless"} and found["best"] == names[0]
    by_name = {each["name"]: each for each in found["ranked"]}
    assert by_name["promising"]["ratio"] > by_name["hopeless"]["ratio"]
    assert by_name["promising"]["kept"] > 0.5 > by_name["hopeless"]["kept"]
    assert found["closed"] == {"good": "KEEP"}
    assert set(found["refused"]) == {"again", "deeper", "invalid"}
    assert "it changes good" in found["refused"]["deeper"] and "same as" in found["refused"]["again"]
    assert [each["variant"] for each in found["calibration"]["answered"]] == ["good"], "open is measured, and goes on"


def test_an_undecided_question_goes_on_from_its_seeds_at_the_cost_of_further_ones(ranking):
    found = {each["name"]: each for each in ranking.record()["ranked"]}
    assert found["open"]["seeds"] > 3 and "after 3 seeds, undecided" in found["open"]["why"][0]
    assert "--seeds=4" in found["open"]["command"] and "--seeds=3" in found["promising"]["command"]
    assert not any(each.startswith("--runs") for each in found["open"]["command"])
    runs = {  # Both arms have three seeds of the one, and the parent those that the other needs first.
        "open": 2 * (found["open"]["seeds"] - 3) + 3 * found["open"]["kept"],
        "promising": found["promising"]["seeds"] + found["promising"]["seeds"] - 3 + 3 * found["promising"]["kept"],
    }
    ratio = found["open"]["hours"] / found["promising"]["hours"]
    assert ratio == pytest.approx(runs["open"] / runs["promising"], rel=1e-3)


@pytest.mark.parametrize("word", [Word.NOT_COMPARED, Word.UNDECIDED])
def test_what_nothing_has_answered_stays_open(word, monkeypatch):
    """Runs that could not be compared, and a retuned question whose rates are not known yet."""
    monkeypatch.setattr(next_question, "record_of", lambda *of: (found := record_of(*of)) and unanswered(found))

    def unanswered(record):
        return record._replace(word=word, difference=None, more_seeds=None, seeds=())

    found = rank_questions("root", Path("runs"))
    assert {"good", "open"} < {each.name for each in found.ranked} and not found.closed
    why = " ".join({each.name: each for each in found.ranked}["open"].why)
    assert ("its runs were not compared: " in why) == (word is Word.NOT_COMPARED)


def test_a_measurement_of_an_open_question_narrows_its_interval_and_does_not_calibrate_its_kind(ranking):
    found = {each.name: each for each in ranking.ranked}["open"]
    assert found.interval[0] < found.effect < found.interval[1]
    with_it = calibrate_by(read_answered(Path("runs")), set(ranking.past.kinds))
    assert [each.variant for each in with_it.questions] == ["good", "open"]
    assert ranking.past.kinds == with_it.kinds and "open" not in [each.variant for each in ranking.past.questions]
    before = believe(ranking.past, resolve("root"), "open", resolve("open"))[0].quantiles(np.array([0.1, 0.9]))[0]
    assert found.interval[1] - found.interval[0] < before[1] - before[0]


def test_the_share_of_tokens_is_that_of_the_rule(ranking, monkeypatch):
    monkeypatch.setattr(report, "Rule", lambda: Rule(equal_tokens=0.05))
    assert "5% more tokens are worth" in " ".join(ranking_text(ranking, 10, 80).split())


def test_what_was_found_of_an_ancestor_is_named_and_keeps_a_question_open(capsys):
    found = {each["name"]: each for each in ranked(capsys, "--parent=good")["ranked"]}
    assert {"open", "promising", "deeper"} <= found.keys()
    assert found["open"]["why"][0].startswith("UNDECIDED of root, -0.0") and not found["promising"]["why"]


def test_a_folder_whose_name_begins_as_a_home_does_is_typed_so_that_it_is_read_again():
    command = ablate_command("root", ["one", "two"], 3, Path("~runs"))
    assert command == ("jaxformer", "ablate", "--parent=root", "--variants=one,two", "--seeds=3", "--runs=./~runs")


def test_it_stops_where_nothing_pays_and_more_runs_to_come_save_more(ranking, capsys):
    few, many = ranked(capsys, "--parent=root", "--target=other", "--runs_to_come=0.01"), ranking.record()
    assert few["stop"] and not many["stop"] and few["target"] == "0.01 x a run of other"
    saved = [{each["name"]: each["saved"] for each in found["ranked"]}["promising"] for found in (few, many)]
    assert saved[1] / saved[0] == pytest.approx(1e6 / few["hours_to_come"])
    smaller = resolve("other").experiment, resolve("root").experiment
    root_hours = 0.01 * training_flops(smaller[0]) / training_flops(smaller[1]) / few["hours_to_come"]
    assert 1 / root_hours == pytest.approx((mean_seconds(Path("runs/root")) or 0) / 3600)


def test_a_person_reads_it_in_80_columns_with_the_command_last(ranking, capsys):
    assert command.main(["--parent=root", "--target_hours=1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "What to try next on root"
    assert lines[-1].startswith("jaxformer ablate --parent=root --variants=promising")


def test_who_is_to_stop_reads_why_and_from_which_hours_on_asking_would_pay(ranking, capsys):
    options = ["--parent=root", "--target_hours=10"]
    best = ranked(capsys, *options, "--runs_to_come=0.001")["ranked"][0]
    assert command.main([*options, "--runs_to_come=0.001"]) == 0
    printed = capsys.readouterr().out
    text, need = " ".join(printed.split()), f"{0.01 / best['ratio']:.2f}"
    assert float(need) > 0.1
    assert max(map(len, printed.splitlines())) <= 80
    assert f"is expected to save the device hours that it takes. The best, {best['name']}, takes" in text
    assert f"It would pay if more than {need} were to come" in text
    assert ranked(capsys, *options, f"--runs_to_come={float(need) * 1.1 / 10}")["best"] == best["name"]
    none, hopeless = (), tuple(each._replace(saved=-1.0) for each in ranking.ranked)
    ends = [ranking_text(ranking._replace(ranked=each), 10, 200) for each in (none, hopeless)]
    assert ends[0].endswith("\nSTOP: no question is open about root. Write another one in experiments/.")
    assert ends[1].endswith(" None is expected to save anything.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --parent"),
        (["--parent=rot"], "unknown experiment 'rot'"),
        (["--parent=other"], "no finished run of other"),
        (["--parent=root", "--target=bas"], "unknown experiment 'bas'"),
        (["--parent=root", "--target_hours=-1"], "--target_hours (-1.0) must be above 0"),
        (["--parent=root", "--target_hours=nan"], "--target_hours (nan) must be above 0"),
        (["--parent=root", "--runs_to_come=1e300"], "--runs_to_come (1e+300) must be above 0 and at most 1e+09"),
        (["--parent=root", "--most_seeds=2"], "must be between 3 and 24"),
        (["--parent=root", "--complexity=101"], "must be between 0 and 100 %"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_parent_without_variants_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(open_questions, "list_experiments", lambda: ["root"])
    assert command.main(["--parent=root"]) == 2
    assert "write a question in experiments/" in capsys.readouterr().err
    monkeypatch.setattr(open_questions, "list_experiments", lambda: ["root", "good"])
    assert list(find_questions(resolve("root")).questions) == ["good"]


def test_a_part_that_does_not_fit_the_parent_is_no_question_about_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments", "narrow", model__width=16)
    monkeypatch.setattr(open_questions, "list_experiments", lambda: ["narrow", "swiglu", "value_embeddings"])
    found = find_questions(resolve("narrow"))
    assert list(found.questions) == ["swiglu"]
    assert "gate_features (32) must be at most" in found.refused["value_embeddings"]
