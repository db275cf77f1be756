"""The command that runs a study: real runs, killed on the way, skipped once they are finished, and judged."""

import json

import numpy as np
import pytest
import tiny_run

from jaxformer.ablation import run_study
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.commands import ablate
from jaxformer.experiment.resolution import resolve
from jaxformer.jobs.queue import Status
from jaxformer.run.metrics import training_losses

pytestmark = [pytest.mark.slow, pytest.mark.device_free]


@pytest.fixture
def command(tmp_path, experiment_files, compiled, monkeypatch):
    """The study of one variant, with one seed, in an empty folder."""
    for name, value in compiled.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "root.py").write_text(experiment_files["best_fit"].read_text())
    (tmp_path / "experiments" / "normed.py").write_text(
        "from jaxformer.experiment import Variant\nEXPERIMENT = Variant(parent='root', question='Why?',"
        " change={'model.qk_norm': True}, expected=(-1, 1), source='a test')\n"
    )
    return ["--parent=root", "--variants=normed", "--seeds=1", "--clock=off"]


def checked():
    return Checked({"root": 9.0, "normed": 9.0}, EarlierRuns([], []))


def test_a_study_is_run_to_its_end_once_and_judged(command, monkeypatch, capsys, tmp_path):
    runs = {name: tmp_path / "runs" / name / "seed_0" for name in ("root", "normed")}
    monkeypatch.setattr(ablate, "check_runs", lambda *_, **options: checked())
    assert ablate.main([*command, "--parallel=2", "--price=2"]) == 0
    reported = capsys.readouterr().out
    assert "2 runs to go, 0.01 device hours, price 0.01" in reported and "UNDECIDED" in reported

    configs = {name: json.loads((run / "config.json").read_text()) for name, run in runs.items()}
    assert configs["normed"]["lineage"]["change"] == {"model.qk_norm": [False, True]}
    assert configs["normed"]["lineage"]["parents"] == ["root"]
    lines = {name: [line for line in tiny_run.read_metrics(run) if "train/loss" in line] for name, run in runs.items()}
    batches = {name: [line["train/batch"] for line in lines[name]] for name in runs}
    assert batches["root"] == batches["normed"] and len(set(batches["root"])) == tiny_run.STEPS
    assert not np.array_equal(training_losses(runs["root"]), training_losses(runs["normed"]))
    comparison = json.loads(next((tmp_path / "runs" / "normed").glob("comparison_*.json")).read_text())
    assert comparison["flags"] == [] and comparison["seeds"] == [0]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert ablate.main(command) == 0
    assert "0 runs to go" in capsys.readouterr().out
    trained = {path: at for path, at in before.items() if not path.name.startswith(("comparison_", "noise."))}
    assert all(path.stat().st_mtime_ns == at for path, at in trained.items())


def test_the_plan_is_reported_and_nothing_is_started(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ablate, "check_runs", lambda *_, **options: checked())
    assert ablate.main([*command, "--plan"]) == 0
    reported = capsys.readouterr().out
    assert "2 runs to go" in reported and "1 seed, 0 over  12 steps" in reported
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --study, or --parent and --variants"),
        (["--parent=root"], "give --study, or --parent and --variants"),
        (["--parent=root", "--variants=norme"], "unknown experiment 'norme'"),
        (["--parent=root", "--variants=normed,normed"], "twice"),
        (["--parent=root", "--variants=normed", "--parallel=0"], "must be at least 1"),
        (["--study=none.py"], "study file none.py: no such file"),
        (["--study=labtop"], "unknown study 'labtop'; did you mean laptop?"),
        (["--study=none.py", "--parent=root"], "not both"),
        (["--leave_one_out=root"], "root is not a promoted variant"),
        (["--leave_one_out=root", "--parent=root"], "give --leave_one_out alone"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_nothing_is_started(
    command, arguments, message, capsys, monkeypatch, tmp_path
):
    def check_runs(plan, runs, **options):
        plan(runs)
        return checked()

    monkeypatch.setattr(ablate, "check_runs", check_runs)
    assert ablate.main(arguments) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_variant_that_is_clearly_worse_is_stopped_with_all_its_seeds(command, monkeypatch, tmp_path):
    from jaxformer.jobs.launch import Job
    from jaxformer.jobs.queue import State

    curves = {("root", 0): 3.0, ("root", 1): 3.01, ("root", 2): 2.99, ("normed", 0): 4.0}
    rng = np.random.default_rng(0)

    def losses(workdir):
        return np.full(100, curves[workdir.parent.name, int(workdir.name[-1])]) + rng.normal(0, 0.01, 100)

    def status(name, seed, state):
        workdir = tmp_path / "runs" / name / f"seed_{seed}"
        return Status(Job(name, seed, (f"--workdir={workdir}",), workdir, 100, 9.0), state, 50, 3.0, 1.0, 1.0, 0.0, "")

    statuses = [
        *(status("root", seed, State.FINISHED) for seed in range(3)),
        status("normed", 0, State.RUNNING),
        status("normed", 1, State.WAITING),
    ]
    stopped = []

    class Stopping:
        def stop(self, job, reason):
            stopped.append((job.name, job.seed, reason))

    monkeypatch.setattr(run_study, "training_losses", losses)
    monkeypatch.setattr(
        run_study, "read_json_or_empty", lambda path: {"validation/loss": curves["root", int(path.parent.name[-1])]}
    )
    lineages = {"normed": resolve("normed").lineage}
    run_study.stop_what_is_worse(Stopping(), statuses, lineages)
    assert [(name, seed) for name, seed, _ in stopped] == [("normed", 0), ("normed", 1)]
    assert "nats above its parent's" in stopped[0][2]
    curves["normed", 0], stopped[:] = 2.0, []
    run_study.stop_what_is_worse(Stopping(), statuses, lineages)
    assert not stopped
    # Of a parent whose summaries are damaged nothing is known, and nothing is stopped.
    curves["normed", 0] = 4.0
    monkeypatch.setattr(run_study, "read_json_or_empty", lambda path: {})
    run_study.stop_what_is_worse(Stopping(), statuses, lineages)
    assert not stopped
