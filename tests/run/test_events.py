"""TensorBoard's files hold what `metrics.jsonl` does, each step once; only where TensorFlow is installed."""

import pytest

from jaxformer.run.metrics import Writer, open_writer

tensorflow = pytest.importorskip("tensorflow")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read_events(folder):
    """Returns the (step, value) pairs of each scalar, as TensorBoard reads them, in the order of the files."""
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0}, purge_orphaned_data=False)
    events.Reload()
    return {
        name: [(event.step, float(tensorflow.make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }


def write_steps(folder, first_step, last_step, attempt):
    """Goes on from a step to another, with the number of the attempt as every value; validates each second step."""
    writer, note = open_writer(folder, first_step=first_step)
    assert note == f"tensorboard --logdir {folder}"
    for step in range(first_step, last_step + 1):
        if step % 2 == 0 and step > 0:
            writer.write(step, {"validation/loss": attempt})
        if step < last_step:
            writer.write(step + 1, {"train/loss": attempt, "train/batch": 1})
    writer.close()


def test_run_that_was_stopped_twice_has_each_step_once_with_its_last_value(tmp_path):
    write_steps(tmp_path, 0, 6, attempt=1)
    write_steps(tmp_path, 4, 5, attempt=2)
    write_steps(tmp_path, 2, 7, attempt=3)
    assert read_events(tmp_path) == {
        "train/loss": [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 3), (7, 3)],
        "validation/loss": [(2, 3), (4, 3), (6, 3)],
    }


def test_what_a_killed_process_did_not_write_is_written_when_the_run_goes_on(tmp_path):
    write_steps(tmp_path, 0, 6, attempt=1)
    (path,) = tmp_path.glob("*tfevents*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 5])  # It ends within an event.
    assert read_events(tmp_path)["train/loss"][-1][0] < 6
    write_steps(tmp_path, 6, 7, attempt=2)
    assert read_events(tmp_path) == {
        "train/loss": [(step, 1) for step in range(1, 7)] + [(7, 2)],
        "validation/loss": [(2, 1), (4, 1), (6, 2)],
    }


def test_steps_of_a_time_without_tensorboard_are_there_too(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    for step in (1, 2):
        writer.write(step, {"train/loss": float("nan") if step == 1 else 2.0})
    writer.close()
    write_steps(tmp_path, 2, 3, attempt=2)
    found = read_events(tmp_path)["train/loss"]
    assert [step for step, _ in found] == [1, 2, 3] and found[1:] == [(2, 2), (3, 2)]
