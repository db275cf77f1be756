"""A run that was stopped, whatever stopped it, ends as the one that nothing stopped, bit by bit."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from copies import Copies
from tiny_run import assert_same_run, command, damage, read_metrics, run_until

import jaxformer.train
from jaxformer.config import UserError
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled", "default_signals"), pytest.mark.device_free]


# Checkpoints are saved after steps 4, 8 and 12, each before the validation of the step.
@pytest.mark.parametrize(
    ("variant", "stops"),
    [
        ("best_fit", [("step", 2), ("step", 7)]),
        ("best_fit", [("validation", 12)]),
        ("concat_and_split", [("step", 10)]),
        ("mixture_in_micro_batches", [("step", 7)]),
    ],
    ids=["twice", "before_the_last_validation", "concat_and_split", "mixture_in_micro_batches"],
)
def test_resumed_run_equals_the_uninterrupted_one(variant, stops, experiment_files, uninterrupted, tmp_path):
    arguments = command(experiment_files[variant], tmp_path / "run")
    for place, step in stops:
        run_until(place, step, arguments)
    assert main(arguments) == 0
    assert_same_run(tmp_path / "run", uninterrupted(variant))


def test_resumed_run_says_where_it_resumes(experiment_files, tmp_path, capsys):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 6, arguments)
    assert "resumed from" not in capsys.readouterr().out
    run_until("step", 7, arguments)
    assert "resumed from step 4\n" in capsys.readouterr().out


# Something that happens at step 6, when the checkpoint of step 4 may be written in the background.
ACCIDENT = """
import os, signal, time, jaxformer.loop
from jaxformer.run.progress import Progress

def kill(self, step, metrics):
    os.kill(os.getpid(), signal.SIGKILL)

def interrupt(self, step, metrics):
    os.kill(os.getpid(), signal.SIGINT)
    add(self, step, metrics)

def terminate_twice(self, step, metrics):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def terminate_in_validation(self, step, metrics):
    def validate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    jaxformer.loop.validate = validate
    add(self, step, metrics)

def fail_in_validation(self, step, metrics):
    def validate(state, *arguments):
        if int(state.step) == 8:
            raise RuntimeError("a shard\\nis gone")
        return validate_before(state, *arguments)

    validate_before, jaxformer.loop.validate = jaxformer.loop.validate, validate
    add(self, step, metrics)

def fail_in_every_validation(self, step, metrics):
    def validate(*arguments):
        raise MemoryError

    jaxformer.loop.validate = validate
    add(self, step, metrics)

def terminate_while_saving_the_last(self, step, metrics):
    def save(run, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        save_before(run, *arguments)

    save_before, jaxformer.loop.save_now = jaxformer.loop.save_now, save
    add(self, step, metrics)

def fail_in_sample(self, step, metrics):
    def sample(*arguments, **options):
        raise MemoryError

    jaxformer.loop.sample_text = sample
    add(self, step, metrics)

add = Progress.add
Progress.add = lambda self, step, metrics: ({accident} if step == 6 else add)(self, step, metrics)
"""


@pytest.fixture(scope="module")
def run_into(compiled):
    """A function from an accident and arguments to how the run ended that had it."""
    with Copies(os.environ | compiled) as loaded:

        def run(accident, arguments, before=""):
            before += ACCIDENT.replace("{accident}", accident)
            return loaded.run(["train", *arguments], Path.cwd(), {}, timeout=300, before=before)

        yield run


# The status, what stands on standard error, and the step that the same command resumes from.
SAVING = "\njaxformer: {0}: saving after this step; a second signal stops at once\njaxformer: stopped by {0}; "
ACCIDENTS = {
    "kill": (-signal.SIGKILL, "", 4),
    "interrupt": (130, SAVING.format("SIGINT") + "step 6 is saved, and the same command resumes from there\n", 6),
    "terminate_while_saving_the_last": (
        143,
        SAVING.format("SIGTERM") + "step 12 is saved, and the same command resumes from there\n",
        12,
    ),
    "terminate_twice": (143, SAVING.format("SIGTERM").split("jaxformer: stopped")[0], 4),
    "terminate_in_validation": (
        143,
        "jaxformer: stopped by SIGTERM; the same command resumes from what is saved\n",
        8,
    ),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_run_that_was_stopped_says_so_and_resumed_equals_the_uninterrupted_one(
    accident, run_into, experiment_files, uninterrupted, tmp_path, capsys
):
    status, errors, step = ACCIDENTS[accident]
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into(accident, arguments)
    assert (ended.status, ended.err) == (status, errors)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(arguments) == 0
    # The checkpoint of step 4 may not have been whole when the process died.
    printed = capsys.readouterr().out
    is_killed = accident in ("kill", "terminate_twice")
    assert f"resumed from step {step}\n" in printed or (is_killed and "resumed" not in printed)
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))


def test_validation_that_fails_is_reported_and_the_run_goes_on(run_into, experiment_files, uninterrupted, tmp_path):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into("fail_in_validation", arguments)
    assert ended.status == 0
    assert ended.err == (
        "jaxformer: validation at step 8 failed (RuntimeError: a shard is gone); while its checkpoint is kept, "
        f"repeat with `jaxformer evaluate --workdir={tmp_path}/run --step=8`\n"
    )
    expected = [
        line for line in read_metrics(uninterrupted("best_fit")) if line["step"] != 8 or "validation/loss" not in line
    ]
    assert read_metrics(tmp_path / "run") == expected


def test_run_whose_last_validation_fails_is_finished_by_the_same_command(
    run_into, experiment_files, uninterrupted, tmp_path
):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into("fail_in_every_validation", arguments)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        "jaxformer: all 12 steps are trained and saved; the same command evaluates and finishes"
    )
    assert len(ended.err.splitlines()) == 3
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(arguments) == 0
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", uninterrupted("best_fit"))
    ]
    assert summaries[0]["validation/loss"] == summaries[1]["validation/loss"]


def test_sample_that_fails_is_reported_and_the_run_is_finished(run_into, experiment_files, tmp_path):
    ended = run_into("fail_in_sample", command(experiment_files["best_fit"], tmp_path / "run"))
    lines = [f"jaxformer: the sample of step {step} is not written (MemoryError: )\n" for step in (8, 12)]
    assert (ended.status, ended.err) == (0, "".join(lines))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert not (tmp_path / "run" / "sample.txt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_screen_that_cannot_be_written_to_costs_nothing(experiment_files, uninterrupted, run_into, tmp_path):
    full = "import os\nfor number in (1, 2):\n    os.dup2(os.open('/dev/full', os.O_WRONLY), number)\n"
    ended = run_into("add", command(experiment_files["best_fit"], tmp_path / "run"), full)
    assert ended == (0, "", "")
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))


def raise_at_once():
    raise UserError("token shards: gone")


def hang_until_a_signal_comes():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


@pytest.mark.parametrize(
    ("happens", "status", "line"),
    [
        (raise_at_once, 2, "token shards: gone"),
        (
            hang_until_a_signal_comes,
            143,
            "stopped by SIGTERM; step 7 is saved, and the same command resumes from there",
        ),
    ],
)
def test_data_that_do_not_come_end_the_run_with_what_was_learned_saved(
    happens, status, line, experiment_files, uninterrupted, tmp_path, monkeypatch, capsys
):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    make = jaxformer.train.make_phased_batches

    class Ending:
        def __init__(self, batches):
            self._batches = batches

        def __next__(self):
            if self._batches.get_state()["next_index"] == 7:
                happens()
            return next(self._batches)

        def __getattr__(self, name):
            return getattr(self._batches, name)

    with monkeypatch.context() as patch:
        patch.setattr(jaxformer.train, "make_phased_batches", lambda *args, **options: Ending(make(*args, **options)))
        assert main(arguments) == status
    assert capsys.readouterr().err == f"jaxformer: {line}\n"
    assert main(arguments) == 0
    assert "resumed from step 7\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))


def test_damaged_newest_checkpoint_is_reported_and_the_run_ends_as_the_uninterrupted_one(
    experiment_files, uninterrupted, tmp_path, capsys
):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 10, arguments)
    folder = tmp_path / "run" / "checkpoints"
    damage(folder / "8")
    capsys.readouterr()
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxformer: checkpoint 8 in {folder} is damaged (")
    assert captured.err.count("\n") == 1
    assert "resumed from step 4\n" in captured.out
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))
    shutil.rmtree(folder / "8.damaged")
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]
