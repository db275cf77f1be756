"""What can be known before the first step of a study is refused before it, in one line, and nothing is written."""

import json
import shutil
import sys
from types import SimpleNamespace

import fake_runs
import pytest

from jaxformer.ablation import checks
from jaxformer.ablation.again import evaluate_again, make_again
from jaxformer.ablation.earlier import EarlierRuns, describe_now, find_earlier
from jaxformer.ablation.finished_runs import load_finished_run
from jaxformer.ablation.study import Study, ended_jobs, make_jobs, resolve_study
from jaxformer.commands import ablate, tune
from jaxformer.config import TrainingFailure, UserError
from jaxformer.devices.options import recorded_options
from jaxformer.experiment.resolution import resolve
from jaxformer.host.files import read_json, write_json

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

DEVICE = "a device of a test"
STUDY = Study(parent="root", variants=("normed",), seeds=3)
LAST = "evaluations/step_40"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A study of which one run is left to train."""
    folder = tmp_path_factory.mktemp("checks")
    fake_runs.write_root(folder / "experiments")
    fake_runs.write_variant(folder / "experiments", "normed", {"model.qk_norm": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_runs.write_study(folder / "runs", ["root", "normed"], items=20, tasks=("arc_easy",), device=DEVICE)
    shutil.rmtree(folder / "runs" / "normed" / "seed_2")
    return folder


@pytest.fixture
def folder(template, tmp_path, monkeypatch):
    """A copy of it, whose evaluations are those of here."""
    shutil.copytree(template, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setattr(checks, "in_another_process", lambda what, function, *arguments: function(*arguments))
    return tmp_path / "study"


def change(path, **changes):
    write_json(path, {**read_json(path), **changes})


def change_start(folder, *, seed=1, **changes):
    path = folder / "runs" / "root" / f"seed_{seed}" / "config.json"
    change(path, starts=[{**start, **changes} for start in read_json(path)["starts"]])


def earlier(folder, **options):
    resolved = resolve_study(STUDY)
    jobs = make_jobs(STUDY, folder / "runs", dict.fromkeys(("root", "normed"), 9.0)).now
    return find_earlier(jobs, describe_now(resolved, DEVICE), **options)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refusal(folder, capsys, *arguments):
    """Returns the line with which the command is refused; nothing is written but to the cache."""
    before = contents(folder)
    assert ablate.main(["--parent=root", "--variants=normed", "--seeds=3", *arguments]) == 2
    assert contents(folder) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_agrees_is_left_alone(folder):
    assert earlier(folder) == EarlierRuns([], [])


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("code", {"code": "other", "git": {"commit": "a" * 40}}, "other code (of commit aaaaaaaaaa)"),
        ("code", {"own_code": {"experiment root": "b"}}, "other code (experiment root)"),
        ("versions", {"versions": {"jax": "0.0.1"}}, "other versions (jax 0.0.1, now "),
        ("device", {"device": "TPU v9"}, f"other device (TPU v9, now {DEVICE})"),
        ("environment", {"environment": recorded_options() | {"JAX_X": "1"}}, "other environment (JAX_X 1, now "),
    ],
)
def test_runs_that_could_not_be_compared_with_those_to_come_are_refused_unless_allowed(folder, kind, changes, words):
    change_start(folder, **changes)
    with pytest.raises(UserError) as error:
        earlier(folder)
    assert str(error.value).startswith(f"root seed 1: trained with {words}")
    assert f"use --retrain to set them aside and train them again; --allow={kind} compares" in str(error.value)
    assert earlier(folder, allow=(kind,)).trained_otherwise == []
    assert earlier(folder, retrain=True).trained_otherwise == [folder / "runs" / "root" / "seed_1"]
    shutil.copytree(folder / "runs" / "normed" / "seed_1", folder / "runs" / "normed" / "seed_2")
    assert earlier(folder).trained_otherwise == [], "nothing is left to train, and the comparison flags what differs"


def test_seeds_behind_those_of_the_study_are_checked_too_since_the_verdict_reads_them(folder):
    """A study of two seeds, after one of three."""
    few, runs = Study(parent="root", variants=("normed",), seeds=2, parent_seeds=2), folder / "runs"
    change_start(folder, seed=2, code="other")
    fake_runs.write_diverged(runs, resolve("normed"), 2)
    jobs, now = make_jobs(few, runs).now, describe_now(resolve_study(few), DEVICE)
    assert find_earlier(jobs, now, ended=ended_jobs(few, runs)).trained_otherwise == [], "nothing is to start"
    shutil.rmtree(runs / "normed" / "seed_1")
    with pytest.raises(UserError, match="root seed 2, normed seed 2: trained with other code"):
        find_earlier(jobs, now, ended=ended_jobs(few, runs))
    found = find_earlier(jobs, now, ended=ended_jobs(few, runs), retrain=True)
    assert found.trained_otherwise == [runs / name / "seed_2" for name in ("root", "normed")]


def test_data_that_moved_cannot_be_allowed(folder):
    jobs = make_jobs(STUDY, folder / "runs", dict.fromkeys(("root", "normed"), 9.0)).now
    now = describe_now(resolve_study(STUDY), DEVICE)
    now["root"]["digests"] = {"corpus.0": "other"}
    with pytest.raises(
        UserError, match=r"root seed 0, root seed 1, root seed 2: trained with other data \(corpus.0, tokenizer\)"
    ) as e:
        find_earlier(jobs, now)
    assert "--allow" not in str(e.value)


def test_runs_of_other_code_are_kept_aside_under_its_name(folder, capsys):
    change_start(folder, code="0123456789")
    workdir = folder / "runs" / "root" / "seed_1"
    workdir.with_name("seed_1.log").write_text("a log")
    kept = contents(workdir)
    for aside in ("before_01234567", "before_01234567_2"):
        shutil.copytree(workdir, folder / "copy")
        make_again(earlier(folder, retrain=True))
        assert not workdir.exists() and len(contents(workdir.parent / aside / "seed_1")) == len(kept)
        (folder / "copy").rename(workdir)
    assert (workdir.parent / "before_01234567" / "seed_1.log").read_text() == "a log"
    assert "seed_1: moved to " in capsys.readouterr().out


def test_runs_that_other_code_evaluated_are_evaluated_again_and_nothing_is_lost(folder):
    workdir = folder / "runs" / "root" / "seed_1"
    path = workdir / LAST / "arc_easy.json"
    change(path, code="0123456789")
    assert earlier(folder) == EarlierRuns([], []), "no task of its own"
    for config in (folder / "runs").glob("*/seed_*/config.json"):
        record = read_json(config)["config"]
        change(config, config={**record, "evaluation": {**record["evaluation"], "tasks": "arc_easy", "task_data": "."}})
    found = earlier(folder)
    assert found == EarlierRuns([], [workdir]) and earlier(folder, allow=("code",)) == EarlierRuns([], [])
    (workdir / LAST / "lambada.json").write_text(path.read_text())
    before = {each.name: each.read_bytes() for each in (workdir / LAST).iterdir()}
    write = f"""
import shutil, sys
workdir = sys.argv[1].removeprefix("--workdir=")
shutil.copytree({str(folder / "runs" / "root" / "seed_2" / LAST)!r}, workdir + "/{LAST}", dirs_exist_ok=True)
"""
    with pytest.raises(TrainingFailure, match=r"could not be evaluated again \(no device\).*same command resumes"):
        evaluate_again(found.evaluated_otherwise, (sys.executable, "-c", "raise SystemExit('no device')"))
    assert earlier(folder).evaluated_otherwise == [workdir], "what is gone is made again too"
    evaluate_again(found.evaluated_otherwise, (sys.executable, "-c", write))
    (kept,) = (each for each in (workdir / "evaluations").iterdir() if ".before_" in each.name)
    assert {each.name: each.read_bytes() for each in kept.iterdir()} == before
    assert "lambada.json" in {each.name for each in (workdir / LAST).iterdir()}, "another's work beside"
    (workdir / LAST / "lambada.json").unlink()
    assert earlier(folder) == EarlierRuns([], []) and load_finished_run(workdir).tasks


def test_a_study_that_is_over_needs_no_evaluation_while_all_agree(folder):
    shutil.copytree(folder / "runs" / "normed" / "seed_1", folder / "runs" / "normed" / "seed_2")
    for path in (folder / "runs").glob(f"*/seed_*/{LAST}/*.json"):
        change(path, code="0123456789")
    assert earlier(folder) == EarlierRuns([], [])
    change(folder / "runs" / "root" / "seed_1" / LAST / "validation.json", code="9876543210")
    assert len(earlier(folder).evaluated_otherwise) == 6


def test_code_that_moved_is_refused_by_the_command(folder, capsys):
    change_start(folder, code="other", git=None)
    line = refusal(folder, capsys, "--allow=device")
    assert line.startswith("jaxformer: root seed 1: trained with other code (other, now ")


def test_a_file_that_patches_the_package_is_refused_by_the_command(folder, capsys):
    path = folder / "experiments" / "normed.py"
    path.write_text(f"import jaxformer.model\njaxformer.model.activate = abs\n{path.read_text()}")
    assert "normed.py: it changes jaxformer.model.activate in place" in refusal(folder, capsys)


def test_tuning_is_checked_before_its_first_step_as_a_study_is(folder, capsys):
    change_start(folder, code="other", git=None)
    before = contents(folder)
    assert tune.main(["--experiment=root", "--allow=device"]) == 2
    assert "root at 0.004 seed 1: trained with other code (other, now " in capsys.readouterr().err
    fake_runs.write_root(folder / "experiments", corpus__kind="text", corpus__path="gone.txt")
    shutil.rmtree(folder / "runs")
    assert tune.main(["--experiment=root"]) == 2
    assert "jaxformer: root: corpus.path gone.txt: no such file" in capsys.readouterr().err
    assert not contents(folder).keys() - before.keys()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corpus.kind": "text", "corpus.path": "gone.txt"}, "corpus.path gone.txt: no such file"),
        ({"evaluation.task_data": "gone"}, "hellaswag data gone: no such file or folder"),
        ({"evaluation.task_data": "experiments"}, "hellaswag data experiments: the folder holds no hellaswag.jsonl"),
    ],
)
def test_data_that_are_missing_are_refused_once_before_planning(folder, capsys, values, words, plan):
    shutil.rmtree(folder / "runs")
    fake_runs.write_root(folder / "experiments", **{name.replace(".", "__"): value for name, value in values.items()})
    assert refusal(folder, capsys, *plan).startswith(f"jaxformer: root: {words}")


def test_a_corpus_of_one_validation_document_is_refused_once_it_is_prepared(folder, capsys, make_texts, tokenizer_path):
    shutil.rmtree(folder / "runs")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(120)))
    fields = {"corpus__kind": "jsonl", "corpus__path": "texts.jsonl", "tokenizer__path": str(tokenizer_path)}
    fields |= {"packing__row_length": 32, "evaluation__validation_bytes": 1, "packing__minimum_fill": 0.5}
    fake_runs.write_root(folder / "experiments", **fields)
    line = refusal(folder, capsys)
    assert line.startswith("jaxformer: root: corpus texts: it is validated on one document, or on pieces of one file")
    assert "evaluation.validation_bytes" in line


def test_data_that_two_experiments_share_are_prepared_once(folder, monkeypatch):
    prepared = []

    def prepare_data(experiment, seed):
        prepared.append(experiment.name)
        return SimpleNamespace(validation=[])

    monkeypatch.setattr(checks, "prepare_data", prepare_data)
    monkeypatch.setattr(checks, "digests", lambda data: {"corpus.0": "a", "plan.0": "of a seed"})
    found = checks.prepare_study(resolve_study(STUDY), folder / "runs")
    assert prepared == ["root"] and found == {"root": {"corpus.0": "a"}, "normed": {"corpus.0": "a"}}


def test_what_finishes_while_a_step_is_to_be_timed_is_not_timed(monkeypatch, tmp_path):
    """A command that was killed leaves runs that go on: the process that times finds none to be timed any more."""
    monkeypatch.setattr(checks, "mean_seconds", lambda folder: 1.0)
    monkeypatch.setattr(checks, "keep_compiled", lambda: None)
    planned = checks.Planned([resolve("baseline")], [], [], times_each=True)
    assert checks._time_steps(lambda runs: planned, tmp_path, 1) == {}
