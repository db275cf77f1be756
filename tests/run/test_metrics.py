"""Metrics on disk: every line whole, whatever happens to the disk."""

import errno
import json
import math
import os

import numpy as np
import pytest

from jaxformer.config import TrainingFailure, UserError
from jaxformer.run.metrics import (
    Writer,
    check_recorded,
    curves,
    mean_rate,
    read_metrics,
    recent_loss,
    training_losses,
    validation_losses,
)

pytestmark = pytest.mark.device_free


def read_lines(folder):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def write_steps(folder, steps):
    writer = Writer(folder, first_step=0)
    for step in steps:
        writer.write(step, {"train/loss": 10.0 - step})
    writer.close()


def test_each_step_is_one_json_object_and_non_finite_values_survive_as_text(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    writer.write(1, {"a": 0.5, "b": math.nan})
    writer.write(2, {"a": math.inf, "b": -math.inf})
    writer.close()
    assert read_lines(tmp_path) == [{"step": 1, "a": 0.5, "b": "nan"}, {"step": 2, "a": "inf", "b": "-inf"}]
    assert math.isnan(float(read_lines(tmp_path)[0]["b"]))


def test_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    writer.write(1, {"a": 0.5})
    assert read_lines(tmp_path) == [{"step": 1, "a": 0.5}]
    writer.close()


def test_reopening_removes_the_lines_after_the_first_step(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4])
    writer = Writer(tmp_path, first_step=2)
    writer.write(3, {"train/loss": 0.25})
    writer.close()
    assert [(line["step"], line["train/loss"]) for line in read_lines(tmp_path)] == [(1, 9.0), (2, 8.0), (3, 0.25)]


@pytest.mark.parametrize("torn", ['{"step": 3, "train/lo', '{"st', "{", '{"step": 3'])
def test_reopening_removes_a_line_that_was_cut_off(tmp_path, torn):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    writer = Writer(tmp_path, first_step=7)
    writer.write(8, {"train/loss": 0.25})
    writer.close()
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 8]


def test_reopening_at_step_zero_begins_anew(tmp_path):
    write_steps(tmp_path, [1, 2])
    Writer(tmp_path, first_step=0).close()
    assert read_lines(tmp_path) == []


def test_recent_loss_is_the_mean_of_the_last_training_losses(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    for step in range(1, 6):
        writer.write(step, {"train/loss": 10.0 - step})
        writer.write(step, {"validation/loss": 99.0})
    writer.close()
    assert recent_loss(tmp_path, 2) == 5.5
    assert recent_loss(tmp_path) == 7.0


def test_training_losses_end_where_a_step_is_missing(tmp_path):
    write_steps(tmp_path, [1, 2, 4])
    assert training_losses(tmp_path).tolist() == [9.0, 8.0]
    assert recent_loss(tmp_path, 2) == 7.0


def test_steps_that_are_missing_are_reported_and_a_run_without_any_is_refused(tmp_path):
    assert check_recorded(tmp_path, [], 0) is None
    with pytest.raises(UserError, match=r"metrics.jsonl: none of the 4 steps so far is there; restore the file"):
        check_recorded(tmp_path, [], 4)
    write_steps(tmp_path, [1, 2, 4, 5])
    lines = read_metrics(tmp_path)
    assert check_recorded(tmp_path, lines, 2) is None
    assert "1 of the 4 steps so far are missing" in (check_recorded(tmp_path, lines, 4) or "")


def test_lines_that_a_full_disk_does_not_take_are_written_later_in_order(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    file = writer._file
    writer._file = FullDisk(file)
    reported = [writer.write(step, {"a": float(step)}) for step in (1, 2, 3)]
    assert reported[0].endswith("No space left on device; lines that cannot be written are kept for later")
    assert reported[1:] == [None, None]
    writer._file = file
    assert writer.write(4, {"a": 4.0}) is None
    writer.close()
    assert read_lines(tmp_path) == [{"step": step, "a": float(step)} for step in (1, 2, 3, 4)]


def test_lines_that_were_never_written_are_a_failure_in_the_end(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    writer._file = FullDisk(writer._file)
    writer.write(1, {"a": 1.0})
    with pytest.raises(TrainingFailure, match="No space left on device; its last 1 lines are not written"):
        writer.close()


class FullDisk:
    """A file on a disk that takes ten more bytes."""

    def __init__(self, file):
        self._file, self._room = file, 10

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, self._room = data[: self._room], 0
        return self._file.write(taken)

    def close(self):
        self._file.close()

    @property
    def closed(self):
        return self._file.closed


def test_what_is_not_a_whole_line_is_left_out_and_the_others_stay(tmp_path):
    text = '{"step": 1, "a": 1.0}\n[2]\n\x00\x00\n{"a": 2.0}\n{"step": 3, "validation/loss": "nan"}\n{"step": 4'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    Writer(tmp_path, first_step=9).close()
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "train/loss": null}',
        '{"step": 2, "train/loss": "a"}',
        '{"step": 2, "train/loss": [1]}',
        '{"step": 2, "train/loss": 1' + "0" * 400 + "}",
        '{"step": 2.0, "train/loss": 1}',
        "[" * 100_000,
    ],
    ids=["null", "text", "list", "beyond floats", "step no integer", "nested"],
)
def test_line_that_no_writer_wrote_is_left_out(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": "inf"}}\n{line}\n')
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": "inf"}]


def test_list_by_layer_is_written_and_read_and_its_mean_and_range_are_the_curves(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    writer.write(1, {"train/loss": 3.0, "train/feed_forward/load": np.array([[1.0, 2.0], [math.inf, 4.0]])})
    writer.close()
    (line,) = read_metrics(tmp_path)
    assert line == {"step": 1, "train/loss": 3.0, "train/feed_forward/load": [[1.0, 2.0], ["inf", 4.0]]}
    assert curves(line | {"train/feed_forward/load": [[1.0, 2.0], [4.0, 5.0]]}) == {
        "train/loss": 3.0,
        "train/feed_forward/load": 3.0,
        "train/feed_forward/load/min": 1.0,
        "train/feed_forward/load/max": 5.0,
    }
    assert curves({"step": 1, "train/feed_forward/load": []}) == {}


def test_validation_losses_are_read_by_step(tmp_path):
    assert validation_losses(read_metrics(tmp_path)) == {}
    writer = Writer(tmp_path, first_step=0)
    writer.write(4, {"train/loss": 3.0})
    writer.write(4, {"validation/loss": 2.5})
    writer.write(8, {"validation/loss": math.nan})
    writer.close()
    losses = validation_losses(read_metrics(tmp_path))
    assert losses[4] == 2.5 and math.isnan(losses[8]) and len(losses) == 2


def test_rate_of_equal_numbers_of_steps_is_that_of_all_of_them():
    seconds = np.array([1.0, 3.0])  # For 600 tokens each.
    assert mean_rate(600 / seconds) == pytest.approx(1200 / seconds.sum())
    assert mean_rate(np.array([math.nan, 5.0, 5.0])) == 5
    assert math.isnan(mean_rate(np.array([math.nan]))) and math.isnan(mean_rate(np.array([])))
