"""Trackers are given each step once, in order, with all that is known of it, and none that fails harms a run."""

import json

import pytest
from tiny_run import STEPS, command, run_until

from jaxformer import load_experiment
from jaxformer.config import UserError
from jaxformer.run.metrics import BATCH, Writer
from jaxformer.tracking.config import TrackingConfig, check_installed
from jaxformer.tracking.tracker import Trackers, open_trackers
from jaxformer.train import train

pytestmark = pytest.mark.device_free


class Recorder:
    """A tracker that keeps what it is given; one with a `last_step` is given what lies behind that."""

    def __init__(self, **attributes):
        self.steps, self.others = [], []
        vars(self).update(attributes)

    def log_hyperparameters(self, values):
        self.others.append(values)

    def log(self, step, values):
        self.steps.append((step, values))

    def log_summary(self, values):
        self.others.append(values)

    def finish(self):
        self.others.append("finished")


class Witness(Recorder):
    """A tracker that sees, once it has written out what it was given, whether the file at `path` is there."""

    def finish(self):
        super().finish()
        self.others.append(self.path.exists())


class Failing(Recorder):
    """A tracker that takes one step."""

    def log(self, step, values):
        super().log(step, values)
        if len(self.steps) > 1:
            raise ConnectionError("nobody answers")


def write(folder, first_step, last_step, trackers, *, attempt):
    """Trains from one step to another and stops there, without its validation; validates each second step."""
    with trackers, Writer(folder, first_step, trackers) as writer:
        for step in range(first_step, last_step + 1):
            if step % 2 == 0 and step not in (0, last_step):
                writer.write(step, {"validation/loss": attempt})
            if step < last_step:
                writer.write(step + 1, {"train/loss": attempt, "train/layers/load": [1.0, 2.0], BATCH: 1})


def row(train, validation=None):
    values = {"train/loss": train, "train/layers/load": 1.5, "train/layers/load/min": 1.0, "train/layers/load/max": 2.0}
    return values if validation is None else values | {"validation/loss": validation}


def test_a_step_comes_once_with_all_that_is_known_of_it(tmp_path):
    recorder = Recorder()
    trackers = Trackers([("own", recorder)])
    write(tmp_path, 0, 5, trackers, attempt=1)
    assert recorder.steps == [(1, row(1)), (2, row(1, 1)), (3, row(1)), (4, row(1, 1))]
    assert recorder.others == ["finished"]


def test_tracker_goes_on_behind_its_last_step_and_one_without_begins_anew(tmp_path):
    write(tmp_path, 0, 5, Trackers(), attempt=1)
    recorders = {"new": Recorder(), "behind": Recorder(last_step=1), "ahead": Recorder(last_step=4)}
    write(tmp_path, 2, 6, Trackers(recorders.items()), attempt=2)
    steps = [(1, row(1)), (2, row(1, 2)), (3, row(2)), (4, row(2, 2)), (5, row(2))]
    assert recorders["new"].steps == steps
    assert recorders["behind"].steps == steps[1:]
    assert recorders["ahead"].steps == steps[4:]


def test_tracker_that_fails_is_reported_once_and_left_and_the_others_go_on(tmp_path, capsys):
    failing, recorder = Failing(), Recorder()
    write(tmp_path, 0, 5, Trackers([("failing", failing), ("own", recorder)]), attempt=1)
    assert len(failing.steps) == 2 and failing.others == ["finished"] and len(recorder.steps) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "failing is stopped for this run (ConnectionError: nobody answers)" in line


def test_nothing_is_made_for_steps_that_no_tracker_lacks(tmp_path, monkeypatch):
    write(tmp_path, 0, 5, Trackers(), attempt=1)
    made = []
    monkeypatch.setattr("jaxformer.run.metrics.curves", lambda line: made.append(line) or {"train/loss": 1.0})
    write(tmp_path, 4, 5, Trackers(), attempt=1)
    write(tmp_path, 5, 5, Trackers([("own", Recorder(last_step=4))]), attempt=1)
    assert [line["step"] for line in made] == [5]


def test_tracker_that_cannot_be_opened_is_reported_and_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxformer.tracking.tracker._open", lambda *_: 1 / 0)
    assert open_trackers(TrackingConfig(to="wandb"), tmp_path, "a", "b", "c") == {}
    assert "wandb cannot be opened (ZeroDivisionError" in capsys.readouterr().err


def test_trackers_are_named_by_a_list_and_an_unknown_or_absent_one_is_refused(monkeypatch):
    assert TrackingConfig(to="wandb, trackio,wandb").names == ["wandb", "trackio"]
    with pytest.raises(UserError, match="did you mean tensorboard"):
        TrackingConfig(to="tensorbord")
    monkeypatch.setattr("jaxformer.tracking.config.find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(UserError, match=r"tracking.to needs wandb: pip install 'jaxformer\[wandb\]'"):
        check_installed(TrackingConfig(to="wandb,trackio"))


@pytest.mark.usefixtures("compiled")
def test_own_tracker_is_given_a_run_that_stops_and_goes_on(experiment_files, tmp_path, capfd):
    run, experiment = tmp_path / "run", load_experiment(str(experiment_files["best_fit"]))
    run_until("step", 7, command(experiment_files["best_fit"], run))
    recorder = Recorder()
    witness = Witness(path=run / "summary.json")
    summary = train(experiment, run, seed=3, trackers=[recorder, Failing(), second := Recorder(), witness])
    assert [step for step, _ in recorder.steps] == list(range(1, STEPS + 1))
    assert [step for step, values in recorder.steps if "validation/loss" in values] == [4, 8, 12]
    assert recorder.steps[-1][1]["sample"] == (run / "sample.txt").read_text()
    record = json.loads((run / "config.json").read_text())
    assert recorder.others == [record, summary, "finished"]
    assert (second.steps, second.others) == (recorder.steps, recorder.others)
    assert witness.others == [record, summary, "finished", False]
    assert len(record["tracked_as"]) == 12 and "Failing is stopped for this run" in capfd.readouterr().err
