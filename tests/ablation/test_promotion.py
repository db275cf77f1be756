"""A kept change becomes the next parent, once, with its evidence; what was not kept does so by hand alone."""

import errno
import json
import os
import shutil

import fake_runs
import pytest

from jaxformer.ablation import records
from jaxformer.ablation.confirmation import plan_confirmation
from jaxformer.ablation.judge import STATUS, judge
from jaxformer.ablation.ledger import PROMOTION, VERDICT, append, read_ledger
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.promotion import find_comparison, promote
from jaxformer.ablation.q_values import other_questions
from jaxformer.ablation.records import comparison_file
from jaxformer.ablation.study import Study, resolve_study
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.commands import judge as judge_command
from jaxformer.commands.promote import main
from jaxformer.config import UserError
from jaxformer.experiment.experiment import science
from jaxformer.experiment.resolution import resolve

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

STUDY = Study(parent="root", variants=("gated", "normed"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder with a study that kept `gated`, whose question would break out of a docstring."""
    folder = tmp_path_factory.mktemp("promotion")
    experiments = folder / "experiments"
    fake_runs.write_root(experiments)
    question = 'Why?""" + __import__("os").getcwd() \\ ' + fake_runs.HOSTILE
    fake_runs.write_variant(experiments, "gated", {"model.activation": "swiglu"}, question=question, source='"""\\')
    fake_runs.write_variant(experiments, "normed", {"model.qk_norm": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_runs.write_study(folder / "runs", ("root", "gated", "normed"), effects={"gated": -0.05}, tasks=())
        judge_study(STUDY, folder / "runs")
    return folder


@pytest.fixture
def runs(judged, monkeypatch):
    monkeypatch.chdir(judged)
    before = (judged / "runs" / "decisions.jsonl").read_bytes()
    yield judged / "runs"
    (judged / "runs" / "decisions.jsonl").write_bytes(before)
    for path in (judged / "experiments").glob("*gen*"):
        path.unlink()
    for path in (judged / "runs").glob("*gen*"):
        shutil.rmtree(path)


def test_what_was_kept_is_the_parent_of_the_next_study(runs, capsys):
    assert main(["gated", "--parent=root", "--variants=gated,normed"]) == 0
    printed = capsys.readouterr().out
    assert "KEEP" in printed and "jaxformer ablate --parent=root_gen1" in printed and "1000 to 1002" in printed
    parent, variant = resolve_study(Study(parent="root_gen1", variants=("normed",)))
    comparison = runs / "gated" / comparison_file(STUDY)
    assert parent.lineage.evidence == find_comparison(runs, "gated").digest and comparison.is_file()
    assert science(parent.experiment) == science(resolve("gated").experiment) and variant.first_seed == 1000
    assert variant.experiment.model.qk_norm and variant.experiment.model.activation == "swiglu"
    (line,) = [line for line in read_ledger(runs) if line["kind"] == PROMOTION]
    assert (line["name"], line["generation"], line["evidence"]) == ("root_gen1", 1, parent.lineage.evidence)
    before = (runs / "decisions.jsonl").read_bytes()
    assert main(["gated"]) == 0 and (runs / "decisions.jsonl").read_bytes() == before


def test_a_promotion_that_was_killed_before_its_line_is_finished_though_the_study_was_judged_again(runs, capsys):
    before, path = (runs / "decisions.jsonl").read_bytes(), runs / "gated" / comparison_file(STUDY)
    made, content = promote(find_comparison(runs, "gated"), runs), path.read_bytes()
    (runs / "decisions.jsonl").write_bytes(before)
    try:
        path.write_text(path.read_text().replace('"reason": "', '"reason": "by more seeds, '))
        assert main(["gated"]) == 0
    finally:
        path.write_bytes(content)
    printed = capsys.readouterr().out
    assert "It was promoted before gated was judged again: KEEP: by more seeds, " in printed
    line = read_ledger(runs)[-1]
    assert (line["kind"], line["name"]) == (PROMOTION, made.name)
    assert line["evidence"] == made.evidence.digest == resolve(made.name).lineage.evidence


def test_what_was_not_kept_is_promoted_by_hand_alone(runs, capsys):
    assert main(["normed"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "normed is not promoted: " in error and "--by_hand" in error
    assert main(["normed", "--by_hand=it is simpler", "--name=simple_gen"]) == 0
    assert resolve("simple_gen").promoted.verdict.startswith("by hand (it is simpler); ")
    assert read_ledger(runs)[-1]["by_hand"] == "it is simpler"


def test_the_rate_that_was_tuned_for_a_variant_goes_with_it(runs):
    found = find_comparison(runs, "gated")
    made = promote(found._replace(recommended_rates=(0.005, 0.008)), runs)
    assert resolve(made.name).experiment.optimizer.learning_rate == 0.008
    assert made.promoted.change == {"optimizer.learning_rate": 0.008} == read_ledger(runs)[-1]["change"]


def test_a_merge_is_judged_against_its_first_parent_and_promoted_on_what_its_parts_change(runs):
    fake_runs.write_merge(runs.parent / "experiments", "both_gen", ("normed", "gated"))
    fake_runs.write_study(runs, ("both_gen",), effects={"both_gen": -0.05}, tasks=())
    assert judge("normed", "both_gen", runs).comparison.verdict.word is Word.KEEP
    promote(find_comparison(runs, "both_gen"), runs, name="whole_gen")
    whole = resolve("whole_gen")
    assert (whole.promoted.parent, whole.judged.name) == ("root", "both_gen")
    assert plan_confirmation(whole, 2, runs).own_parent.name == "normed"


def test_what_was_judged_on_another_parent_than_its_files_is_promoted_on_that(runs):
    """The file's own parent descends from that, so that the variant could be taken for one of its line."""
    promote(find_comparison(runs, "gated"), runs)
    experiments, change = runs.parent / "experiments", {"model.qk_norm": True}
    fake_runs.write_variant(experiments, "later_gen", change, parent="root_gen1")
    fake_runs.write_study(runs, ("later_gen@root",), effects={"later_gen@root": -0.05}, tasks=())
    assert judge("root", "later_gen@root", runs).comparison.verdict.word is Word.KEEP
    promote(find_comparison(runs, "later_gen"), runs, name="other_gen")
    found, judged = resolve("other_gen"), resolve("later_gen@root")
    assert (found.judged.name, found.lineage.parents) == ("later_gen@root", ("root",))
    assert science(found.experiment) == science(judged.experiment)

    fake_runs.write_variant(experiments, "later_gen", change)
    with pytest.raises(UserError, match="third_gen would be later_gen, but later_gen@root was judged"):
        promote(find_comparison(runs, "later_gen"), runs, name="third_gen")
    assert not (experiments / "third_gen.py").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no study has judged none"),
        (["/etc"], "variant '/etc': give its name"),
        (["gated", "--parent=other"], "no study of other has judged gated"),
        (["gated", "--name=normed"], "normed.py: it exists, and is never overwritten"),
        (["gated", "--name=baseline"], "has that name; give another"),
        (["gated", "--name=../gen"], "use letters"),
        (["gated", "--study=laptop", "--parent=root"], "not both"),
    ],
)
def test_what_cannot_be_promoted_is_one_line_and_nothing_is_written(runs, arguments, message, capsys):
    before = sorted(runs.parent.rglob("*")), (runs / "decisions.jsonl").read_bytes()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (sorted(runs.parent.rglob("*")), (runs / "decisions.jsonl").read_bytes()) == before


def test_a_variant_that_moved_since_it_was_judged_is_not_promoted(runs):
    path = runs.parent / "experiments" / "root.py"
    before = path.read_text()
    path.write_text(before.replace("'training.steps': 40", "'training.steps': 50"))
    try:
        with pytest.raises(UserError, match=r"gated has changed since it was judged \(training.steps: 40 -> 50\)"):
            promote(find_comparison(runs, "gated"), runs)
    finally:
        path.write_text(before)


def test_the_newest_comparison_counts_whatever_seeds_it_has_and_a_study_by_name_must_be_the_newest(runs, capsys):
    path = runs / "gated" / comparison_file(STUDY)
    other = runs / "gated" / "comparison_00000000.json"
    record, content = json.loads(path.read_text()), path.read_bytes()
    other.write_text(json.dumps({**record, "verdict": {**record["verdict"], "word": "UNDECIDED"}, "seeds": [0]}))
    assert find_comparison(runs, "gated").word is Word.UNDECIDED
    assert main(["gated", "--parent=root", "--variants=gated,normed"]) == 2
    assert "another study judged gated last: UNDECIDED: " in capsys.readouterr().err
    path.write_bytes(content)
    assert find_comparison(runs, "gated", study=STUDY) == find_comparison(runs, "gated")
    other.write_text("{")
    assert find_comparison(runs, "gated").path == path
    assert "comparison_00000000.json: damaged (" in (error := capsys.readouterr().err) and error.count("\n") == 1
    other.unlink()


def test_a_verdict_on_runs_that_were_replaced_neither_promotes_nor_counts_beside_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    fake_runs.write_root(tmp_path / "experiments")
    fake_runs.write_variant(tmp_path / "experiments", "gated", {"model.activation": "swiglu"})
    fake_runs.write_study(runs, ("root", "gated"), effects={"gated": -0.05}, seeds=5, tasks=())
    judge_study(Study(parent="root", variants=("gated", "normed")), runs)
    for seed in range(5):
        shutil.rmtree(runs / "gated" / f"seed_{seed}")
    fake_runs.write_study(runs, ("gated",), effects={"gated": 0.05}, tasks=())
    assert judge_command.main(["root", "gated"]) == STATUS[Word.REVERT]
    assert main(["gated"]) == 2 and "gated is not promoted: REVERT: " in capsys.readouterr().err
    assert other_questions(runs, "root", ())["gated"] > 0.5


def test_what_the_disk_does_not_take_is_no_evidence_of_a_verdict(runs, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, lines = runs / "gated" / comparison_file(STUDY), read_ledger(runs)
    before = path.read_bytes()
    append(runs, {**lines[0], "verdict": "UNDECIDED"})
    monkeypatch.setattr(records, "write_whole", refuse)
    judge_study(STUDY, runs)
    assert read_ledger(runs)[-1]["comparison"] == "" and path.read_bytes() == before
    assert f"{path}: No space left on device; the report is made without this file" in capsys.readouterr().err


def test_a_verdict_is_appended_where_it_is_new(runs):
    lines = read_ledger(runs)
    assert [(line["kind"], line["variant"]) for line in lines] == [(VERDICT, "gated"), (VERDICT, "normed")]
    assert lines[0]["verdict"] == "KEEP" and lines[0]["seeds"] == [0, 1, 2] and lines[0]["parents"] == ["root"]
    assert lines[0]["difference"]["low"] < lines[0]["difference"]["mean"] < lines[0]["difference"]["high"] < 0
    judge_study(STUDY, runs)
    assert read_ledger(runs) == lines
    judge_study(Study(parent="root", variants=("gated",)), runs)
    assert read_ledger(runs) == lines, "another study says the same"
    judge_study(Study(parent="root", variants=("gated",), rule=Rule(margin=1.0)), runs)
    judge_study(STUDY, runs)
    more = read_ledger(runs)[2:]
    assert [(line["variant"], line["verdict"]) for line in more] == [("gated", "EQUIVALENT"), ("gated", "KEEP")]
    assert more[1]["study"] == lines[0]["study"] != more[0]["study"]
