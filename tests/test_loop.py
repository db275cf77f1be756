"""Numbers that are not finite: counted and skipped, and too many of them kept in a file that replays them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import REPOSITORY, command, read_metrics

import jaxformer.loop
import jaxformer.train
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


def poison(monkeypatch, steps):
    """Makes the batches of these steps, from 1, end in a loss that is not a number."""
    make = jaxformer.train.make_phased_batches

    class Poisoned:
        def __init__(self, batches):
            self._batches = batches

        def __next__(self):
            batch = next(self._batches)
            bad = self._batches.get_state()["next_index"] in steps
            return batch._replace(loss_weights_BT=batch.loss_weights_BT * np.float32(np.nan if bad else 1))

        def __getattr__(self, name):
            return getattr(self._batches, name)

    monkeypatch.setattr(
        jaxformer.train, "make_phased_batches", lambda *args, **options: Poisoned(make(*args, **options))
    )


def test_steps_that_are_not_finite_are_counted_and_the_run_goes_on(experiment_files, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {3, 7, 8})
    assert main(command(experiment_files["best_fit"], tmp_path / "run")) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["step"] for line in lines if line["train/loss"] == "nan"] == [3, 7, 8]
    assert [line["train/skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    # The schedule waits with the optimizer state.
    rates = [line["train/learning_rate"] for line in lines]
    assert rates[2] == rates[3] and rates[6] == rates[7] == rates[8]
    assert "step 12/12  loss " in (printed := capsys.readouterr().out) and "  3 skipped" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["status"] == "finished"
    assert summary["train/loss"] == pytest.approx(np.mean([float(x) for x in losses_of(lines) if x != "nan"]))


def losses_of(lines):
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("every", [5, 50])  # The tests below look at each step.
def test_where_a_run_stops_by_its_numbers_does_not_depend_on_how_often_it_looks(
    every, experiment_files, tmp_path, monkeypatch, capfd
):
    workdir = tmp_path / "run"
    arguments = [*command(experiment_files["best_fit"], workdir), f"--training.log_every_steps={every}"]
    arguments += ["--checkpoint.every_steps=100", "--evaluation.every_steps=100"]
    with monkeypatch.context() as patch:
        poison(patch, range(2, 10))
        assert main(arguments) == 1
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["9"]
        assert main(arguments) == 0
    assert "resumed from step 9\n" in capfd.readouterr().out
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines if line["train/loss"] == "nan"] == list(range(2, 10))
    assert [line["train/skipped_steps"] for line in lines] == [0, *range(1, 9), 8, 8, 8]


def test_failure_by_the_numbers_is_reported_though_it_cannot_be_kept(experiment_files, tmp_path, monkeypatch, capfd):
    poison(monkeypatch, range(3, 13))

    def fail(path, fault):
        raise OSError("the disk is gone")

    monkeypatch.setattr(jaxformer.loop, "write_fault", fail)
    assert main(command(experiment_files["best_fit"], tmp_path / "run")) == 1
    error = capfd.readouterr().err
    assert "the first is step 3, with loss nan and gradient norm nan; they could not be saved" in error
    assert error.endswith("(OSError: the disk is gone)\n") and error.count("\n") == 1


def test_run_that_is_not_finite_for_long_ends_with_a_file_that_replays_it(
    experiment_files, tmp_path, monkeypatch, capfd, compiled
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, range(3, 13))
        assert main(command(experiment_files["best_fit"], workdir)) == 1
    path = workdir / "faults" / "step_3.npz"
    errors = capfd.readouterr().err
    assert errors == (
        "jaxformer: 8 steps in a row had a loss or a gradient that is not finite; the first is step 3, with loss nan "
        f"and gradient norm nan; `jaxformer replay-step {path}` replays it\n"
    )
    assert not (workdir / "summary.json").exists()
    page = " ".join((workdir / "run.html").read_text().split())
    assert "<b>failed</b> at step 10 of 12: 8 steps in a row had a loss" in page and "skipped: 8" in page
    replay = [sys.executable, "-m", "jaxformer", "replay-step", str(path)]
    replayed = subprocess.run(replay, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | compiled)
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert "the same, bit by bit, as when it failed" in replayed.stdout
    assert "blocks.attention.qkv" in replayed.stdout
    # What was right about the run goes on, with nothing of the steps that failed.
    assert main(command(experiment_files["best_fit"], workdir)) == 0
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines if line["train/loss"] == "nan"] == list(range(3, 11))
