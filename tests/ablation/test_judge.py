"""The verdict that other programs take: nothing about it is left to their choice, and what is missing is named."""

import json
import shutil

import fake_runs
import pytest

from jaxformer.ablation.judge import STATUS, judge
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.records import comparison_file
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve
from jaxformer.plan.run_time import IMPORTING

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

EFFECTS = {"good": -0.03, "bad": 0.03, "small": -0.004}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Experiments, with runs of three seeds each."""
    folder = tmp_path_factory.mktemp("judge")
    fake_runs.write_root(folder / "experiments")
    changes = {"model.qk_norm": True}, {"model.depth": 6}, {"model.z_loss": 1e-4}
    for name, change in zip(EFFECTS, changes, strict=True):
        fake_runs.write_variant(folder / "experiments", name, change)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_runs.write_study(folder / "runs", ["root", *EFFECTS], effects=EFFECTS, seeds=3, tasks=())
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """A copy of them, in the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def add(runs, name, seed, **options):
    fake_runs.write_run(runs, resolve(name), seed, effect=EFFECTS.get(name, 0.0), tasks=(), **options)


def test_a_verdict_is_that_of_a_study_and_recorded_like_one(runs):
    for name, word in (("good", Word.KEEP), ("bad", Word.REVERT)):
        found = judge("root", name, runs)
        assert found.comparison.verdict.word is word and found.status == STATUS[word] and not found.missing
        (record,) = (runs / name).glob("comparison_*.json")
        assert json.loads(record.read_text())["verdict"]["word"] == word.value
    assert found.record()["interval"][0] > 0 and found.record()["difference"] == found.comparison.difference.mean


def test_where_it_is_undecided_the_runs_of_the_next_analysis_are_named(runs):
    found = judge("root", "small", runs)
    assert found.comparison.verdict.word is Word.UNDECIDED
    assert [(job.name, job.seed) for job in found.missing] == [("root", 3), ("small", 3)]
    assert found.record()["missing"][1]["command"] == [
        *("jaxformer", "train", "--experiment=small", "--seed=3", f"--workdir={runs}/small/seed_3")
    ]
    add(runs, "root", 3)
    assert [(job.name, job.seed) for job in judge("root", "small", runs).missing] == [("small", 3)]


def test_nothing_trained_is_not_compared_and_the_first_seeds_are_named(runs):
    for each in (runs / "root").iterdir():
        shutil.rmtree(each) if each.name != "seed_1" else None
    found = judge("root", "good", runs)
    assert found.comparison.verdict.word is Word.NOT_COMPARED and found.status == 6
    assert [(job.name, job.seed) for job in found.missing] == [("root", 0), ("root", 2)]
    hours = json.loads((runs / "root/seed_1/summary.json").read_text())["device_hours"]
    assert found.record()["missing_device_hours"] == pytest.approx(2 * (hours + IMPORTING / 3600))
    shutil.rmtree(runs)
    assert judge("root", "good", runs).record()["missing_device_hours"] is None


def test_picked_seeds_are_not_counted(runs):
    """The variant is trained on more seeds than it shows: the best of them would be kept."""
    for seed in (5, 7, 8):
        add(runs, "root", seed)
        fake_runs.write_run(runs, resolve("small"), seed, effect=-0.2, tasks=())
    found = judge("root", "small", runs)
    assert found.comparison.seeds == (0, 1, 2) and found.comparison.verdict.word is Word.UNDECIDED
    assert any("not counted: seeds 5, 7, 8 of the variant" in note for note in found.comparison.notes)
    shutil.rmtree(runs / "small/seed_0")
    found = judge("root", "small", runs)
    assert (
        found.comparison.verdict.word is Word.NOT_COMPARED
        and "seeds count in order from 0 on" in found.comparison.verdict.reason
    )
    assert [(job.name, job.seed) for job in found.missing] == [("small", 0)]


def test_a_seed_that_fails_in_both_is_passed_over(runs):
    for name in ("root", "small"):
        fake_runs.write_diverged(runs, resolve(name), 3)
    found = judge("root", "small", runs)
    assert [(job.name, job.seed) for job in found.missing] == [("root", 4), ("small", 4)]
    for name in ("root", "small"):
        add(runs, name, 4)
    assert judge("root", "small", runs).comparison.seeds == (0, 1, 2, 4)


def test_whatever_else_was_asked_of_the_parent_counts_judged_or_not(runs, tmp_path, capsys):
    alone = tmp_path / "alone"
    for name in ("root", "good"):
        shutil.copytree(runs / name, alone / name)
    (runs / "bad" / "comparison_12345678.json").write_text("{")
    one, of_three = judge("root", "good", alone), judge("root", "good", runs)
    assert capsys.readouterr().err.count("comparison_12345678.json: damaged") == 1
    assert one.questions == ("good",) and of_three.questions == ("good", "bad", "small")
    assert of_three.comparison.q_value == pytest.approx(3 * one.comparison.q_value, rel=1e-6)


def test_a_study_and_a_judge_say_the_same_and_record_it_alike(runs):
    study = Study(parent="root", variants=tuple(EFFECTS))
    for one in judge_study(study, runs).comparisons:
        found = judge("root", one.variant, runs).comparison
        assert (found.q_value, found.verdict) == (pytest.approx(one.q_value), one.verdict)
        alone = Study(parent="root", variants=(one.variant,))
        record = runs / one.variant / comparison_file(alone)
        judged = record.read_text()
        judge_study(alone, runs)
        assert record.read_text() == judged


def test_what_is_ad_hoc_is_no_evidence_and_what_moved_is_refused(runs, tmp_path):
    found = judge("root", "good~1a2b3c", runs)
    assert found.comparison.verdict.word is Word.NOT_COMPARED and "ad hoc" in found.comparison.verdict.reason
    assert found.record()["missing"] == [] and found.record()["difference"] is None
    fake_runs.write_variant(
        tmp_path / "experiments", "good", {"model.qk_norm": True, "model.z_loss": 1e-4}, bundle="two"
    )
    with pytest.raises(UserError, match=r"good has changed since .*seed_0 was trained .*model\.z_loss"):
        judge("root", "good", runs)
