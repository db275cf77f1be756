"""A run goes on by its folder alone, and one of more steps equals one that had them from the start."""

import json

import pytest
from tiny_run import assert_same_run, command, run_until

from jaxformer import load_experiment
from jaxformer.config import replace
from jaxformer.data.phases import Phase
from jaxformer.optimizer import decay_start
from jaxformer.run.continuation import shared_steps
from jaxformer.train import main

WSD = ("--optimizer.schedule=wsd", "--optimizer.decay_share=0.25")


@pytest.fixture
def begin(experiment_files, tmp_path, compiled):
    """Returns a function that trains in a folder by options, and returns it."""

    def train(folder, *options):
        path = tmp_path / folder
        assert main([*command(experiment_files["best_fit"], path), *options]) == 0
        return path

    return train


def test_wsd_run_that_is_extended_equals_one_that_had_the_steps_from_the_start(begin, tmp_path):
    run = begin("short", *WSD, "--training.steps=8")
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main([f"--resume={run}", "--extend_to=12", f"--workdir={tmp_path / 'longer'}"]) == 0
    assert_same_run(tmp_path / "longer", begin("whole", *WSD, "--training.steps=12"))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == files
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("longer", "whole"))
    origin = {"run": str(run), "step": 6, "steps": 8}  # It decays from step 6 on, at which it saved for this.
    assert first["lineage"].pop("extended_from") == origin
    assert second["lineage"].pop("extended_from") is None
    assert first["tracked_as"] not in ("", second["tracked_as"])
    for name in ("identity", "lineage", "experiment", "digests"):
        assert first[name] == second[name], name
    assert [start["step"] for start in first["starts"]] == [0, 6]


def test_extended_run_lies_beside_the_other_and_the_same_command_resumes_it(begin, tmp_path, capfd):
    run, longer = begin("short", *WSD, "--training.steps=8"), tmp_path / "short_to_12"
    run_until("step", 9, [f"--resume={run}", "--extend_to=12"])
    assert longer.exists() and not (longer / "summary.json").exists()
    assert main([f"--resume={run}", "--extend_to=12"]) == 0
    assert json.loads((longer / "summary.json").read_text())["steps"] == 12
    assert "resumed from step 8" in capfd.readouterr().out


def test_stopped_run_goes_on_by_its_folder_alone(uninterrupted, experiment_files, tmp_path):
    run_until("step", 7, command(experiment_files["best_fit"], tmp_path / "stopped"))
    assert main([f"--resume={tmp_path / 'stopped'}"]) == 0
    assert_same_run(tmp_path / "stopped", uninterrupted("best_fit"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--extend_to=16"], "its cosine schedule depends on the number of steps from step 4 on, and no checkpoint"),
        (["--extend_to=12"], "--extend_to (12) must be more than the 12 steps of"),
        (["--workdir=x"], "--workdir: a run that goes on has its own"),
        (["--seed=4"], "--seed: a run that goes on has its own; leave it out beside --resume"),
        (["--experiment=baseline"], "give --experiment=NAME to begin a run, or --resume=RUN to go on with one"),
        (["--optimizer.learning_rate=1"], "belongs to another configuration (optimizer.learning_rate: 0.01 -> 1.0)"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_refused_in_one_line(uninterrupted, options, reason, capfd):
    run = uninterrupted("best_fit")
    capfd.readouterr()
    assert main([f"--resume={run}", *options]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("share", [0.1, 0.2, 0.37, 1.0])
@pytest.mark.parametrize(("steps", "more"), [(40, 41), (100, 1000)])
def test_shared_steps_end_where_the_decay_begins(share, steps, more):
    wsd = {"optimizer.schedule": "wsd", "optimizer.decay_share": share, "optimizer.warmup_steps": 0}
    one = replace(load_experiment("baseline"), wsd | {"training.steps": steps})
    assert shared_steps(one, replace(one, {"training.steps": more})) == decay_start(one.optimizer, steps)


def test_cosine_shares_its_warmup_alone_and_phases_what_is_before_the_first():
    baseline = load_experiment("baseline")
    assert shared_steps(baseline, replace(baseline, {"training.steps": 2000})) == baseline.optimizer.warmup_steps + 1
    phases = {"optimizer.schedule": "wsd", "training.phases": (Phase(start=0.25, rows_per_step=8),)}
    one = replace(baseline, phases)
    assert shared_steps(one, replace(one, {"training.steps": 2000})) == 400
