"""A run goes on by its folder alone, and one of more steps equals one that had them from the start."""

import json
import shutil

import pytest
from tiny_run import assert_same_run, command, damage, run_until

import jaxformer.train
from jaxformer import load_experiment
from jaxformer.checkpoint.store import Checkpoints
from jaxformer.config import replace
from jaxformer.data.phases import Phase
from jaxformer.optimizer import decay_start
from jaxformer.run.continuation import shared_steps
from jaxformer.train import main

pytestmark = pytest.mark.device_free

WSD = ("--optimizer.schedule=wsd", "--optimizer.decay_share=0.25", "--checkpoint.keep=3")


@pytest.fixture(scope="module")
def short(experiment_files, tmp_path_factory, compiled):
    """The folder of a run of 8 steps, which decays from step 6 on, at which it saved for this: it is left as it is."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert main([*command(experiment_files["best_fit"], folder), *WSD, "--training.steps=8"]) == 0
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Lets `jaxformer train` end where a run would begin or go on; what it was given."""
    given = []
    monkeypatch.setattr(jaxformer.train, "train", lambda *arguments, **options: given.append((arguments, options)))
    return given


def read_config(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_wsd_run_that_is_extended_equals_one_that_had_the_steps_from_the_start(short, experiment_files, tmp_path):
    files = {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.is_file()}
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxformer.train, "train", lambda *_, **__: None)  # As if it were stopped before its first step.
        assert main([f"--resume={short}", "--extend_to=12", f"--workdir={longer}"]) == 0
    assert main([f"--resume={longer}"]) == 0
    assert main([*command(experiment_files["best_fit"], whole), *WSD, "--training.steps=12"]) == 0
    assert_same_run(longer, whole)
    assert {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.is_file()} == files
    first, second = map(read_config, (longer, whole))
    assert first["lineage"].pop("extended_from") == {"run": str(short), "step": 6, "steps": 8}
    assert second["lineage"].pop("extended_from") is None
    assert first["tracked_as"] not in ("", second["tracked_as"])
    for name in ("identity", "lineage", "experiment", "digests"):
        assert first[name] == second[name], name
    assert [start["step"] for start in first["starts"]] == [0, 6]


def test_extended_run_lies_beside_the_other_and_the_same_command_resumes_it(short, tmp_path, capfd):
    run, longer = shutil.copytree(short, tmp_path / "short"), tmp_path / "short_to_12"
    run_until("step", 9, [f"--resume={run}", "--extend_to=12"])
    assert longer.exists() and not (longer / "summary.json").exists()
    shutil.rmtree(run / "checkpoints" / "6")  # What it began with is known by itself.
    assert main([f"--resume={run}", "--extend_to=12"]) == 0
    assert json.loads((longer / "summary.json").read_text())["steps"] == 12
    assert "resumed from step 8" in capfd.readouterr().out
    assert read_config(longer)["lineage"]["extended_from"]["step"] == 6


def test_extended_run_learns_as_the_other_began(short, tmp_path, untrained, capfd):
    command = [f"--resume={short}", "--extend_to=16", f"--workdir={tmp_path / 'longer'}"]
    for more in ([], ["--plan"], ["--print_config"]):
        assert main([*command, "--optimizer.learning_rate=1e-3", *more]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "optimizer.learning_rate: 0.01 → 0.001 would change what the run learns; begin another" in line
    assert not untrained and not any(tmp_path.iterdir())
    assert main([*command, "--training.micro_batches=2"]) == 0
    begun = read_config(tmp_path / "longer")
    assert begun["config"]["training"]["micro_batches"] == 2 and begun["config"]["training"]["steps"] == 16
    assert begun["lineage"]["overrides"]["training.steps"] == [12, 16]
    assert begun["identity"] == read_config(short)["identity"] | {"training.steps": 16}


def test_plan_and_configuration_are_those_of_the_extended_run(short, untrained, capfd):
    assert main([f"--resume={short}", "--extend_to=16", "--print_config"]) == 0
    assert json.loads(capfd.readouterr().out)["training"]["steps"] == 16
    assert main([f"--resume={short}", "--extend_to=16", "--plan=H100"]) == 0
    assert "in 16 steps" in capfd.readouterr().out
    assert not untrained and list(short.parent.iterdir()) == [short]


def test_damaged_checkpoint_is_no_beginning_and_leaves_nothing_that_is_in_the_way(short, tmp_path, untrained, capfd):
    run = shutil.copytree(short, tmp_path / "short")
    longer, checkpoints, extend = tmp_path / "short_to_12", run / "checkpoints", [f"--resume={run}", "--extend_to=12"]
    damage(checkpoints / "6")
    damage(checkpoints / "4")
    assert main(extend) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"jaxformer: checkpoints {checkpoints}: no step can be used (6: ") and "; 4: " in line
    assert not longer.exists() and not untrained
    (longer / "checkpoints.unfinished" / "8").mkdir(parents=True)  # Of an attempt that was killed.
    damage(checkpoints / "4")
    assert main(extend) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"jaxformer: checkpoint 6 in {checkpoints} is damaged (")
    assert read_config(tmp_path / "short_to_12")["lineage"]["extended_from"]["step"] == 4
    files = {".lock", "checkpoints", "config.json", "metrics.jsonl"}
    assert {path.name for path in longer.iterdir()} == files
    assert [path.name for path in (longer / "checkpoints").iterdir()] == ["4"]


def test_checkpoint_that_is_deleted_meanwhile_is_no_damage(short, tmp_path, untrained, monkeypatch, capfd):
    run, restore = shutil.copytree(short, tmp_path / "short"), Checkpoints.restore

    def delete_and_restore(self, step, items):
        shutil.rmtree(run / "checkpoints" / "6", ignore_errors=True)
        return restore(self, step, items)

    monkeypatch.setattr(Checkpoints, "restore", delete_and_restore)
    assert main([f"--resume={run}", "--extend_to=12"]) == 0
    assert capfd.readouterr().err == ""
    assert read_config(tmp_path / "short_to_12")["lineage"]["extended_from"]["step"] == 4


def test_folder_of_an_extended_run_is_the_same_however_the_other_is_typed(short, tmp_path, untrained, monkeypatch):
    name = read_config(short)["experiment"]
    run = tmp_path / "runs" / name / "seed_3"
    run.mkdir(parents=True)
    shutil.copy(short / "config.json", run)
    (run / "checkpoints").mkdir()
    monkeypatch.setattr(jaxformer.train, "begin_extended_run", lambda run, source: run.lineage)
    found = set()
    for folder, typed in ((tmp_path, f"runs/{name}/seed_3"), (run.parent, "seed_3"), (run, "."), (run / "code", "..")):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main([f"--resume={typed}", "--extend_to=16"]) == 0
        workdir = untrained[-1][0][1]
        found.add(workdir.absolute())
        assert workdir.is_absolute() == (folder != tmp_path), "one below this folder is shown as the other was typed"
    (workdir,) = found
    assert workdir.parents[1] == tmp_path / "runs" and workdir.name == "seed_3" and workdir.parent != run.parent


def test_stopped_run_goes_on_by_its_folder_alone(uninterrupted, experiment_files, tmp_path):
    run_until("step", 7, command(experiment_files["best_fit"], tmp_path / "stopped"))
    assert main([f"--resume={tmp_path / 'stopped'}"]) == 0
    assert_same_run(tmp_path / "stopped", uninterrupted("best_fit"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--extend_to=16"], "its cosine schedule depends on the number of steps from step 4 on, and no checkpoint"),
        (["--extend_to=12"], "--extend_to (12) must be more than the 12 steps of"),
        (["--extend_to=0"], "--extend_to (0) must be more than the 12 steps of"),
        (["--workdir=x"], "--workdir: a resumed run keeps its own"),
        (["--seed=4"], "--seed: a resumed run keeps its own; leave it out with --resume"),
        (["--name=", "--question="], "--name and --question: a resumed run keeps its own"),
        (["--experiment=baseline"], "give --experiment=NAME to start a run, or --resume=RUN to resume one"),
        (["--optimizer.learning_rate=1"], "optimizer.learning_rate: 0.01 → 1.0 would change what the run learns"),
        (["--model.n_embd=8"], "unknown key model.n_embd; did you mean model.width?"),
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
