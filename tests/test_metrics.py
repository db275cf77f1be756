"""Metrics on disk and on screen, and the FLOPs counted by hand."""

import json
import math
import sys

import clu
import pytest

from jaxformer.metrics import (
    Progress,
    TrainingFailure,
    Writer,
    duration,
    matmul_parameters,
    open_writer,
    peak_tflops,
    recent_loss,
    training_flops_per_token,
)
from jaxformer.model import ModelConfig


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


def test_run_without_tensorflow_says_in_one_line_that_it_writes_no_tensorboard(tmp_path, monkeypatch):
    # Neither in the package's memory nor to be imported again.
    monkeypatch.delattr(clu, "metric_writers", raising=False)
    for name in [name for name in sys.modules if name.startswith("clu.metric_writers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    writer, note = open_writer(tmp_path, first_step=0)
    writer.write(1, {"train/loss": 2.0})
    writer.close()
    assert "no TensorBoard" in note and "tensorflow" in note and "pip install" in note
    assert len(note.splitlines()) == 1
    assert read_lines(tmp_path) == [{"step": 1, "train/loss": 2.0}]


# D = 8, H x K = 2 x 6 = 12, G x K = 6, F = 20, L = 3, V = 10; a block's matrices are 8 x (12 + 2 x 6) into attention,
# 12 x 8 out of it, and 8 x 20 two or three times.
@pytest.mark.parametrize(("activation", "feed_forward"), [("gelu", 320), ("relu2", 320), ("swiglu", 480)])
@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"learned_positions": 9}])
def test_flops_equal_the_count_by_hand(activation, feed_forward, changes):
    config = ModelConfig(
        vocabulary_size=10,
        width=8,
        depth=3,
        heads=2,
        key_value_heads=1,
        head_width=6,
        feed_forward_width=20,
        activation=activation,
        **changes,
    )
    matrices = 3 * (192 + 96 + feed_forward) + 10 * 8
    assert matmul_parameters(config) == matrices
    # Forward, per token: 2 per matrix element, and for each layer 2 x 12 for each of the row's 7 / 2 keys, for the
    # logits and for the mix of the values. The backward pass takes twice that.
    forward = 2 * matrices + 3 * 2 * (2 * 12 * 7 / 2)
    assert training_flops_per_token(config, 7) == 3 * forward


# Of a row of 8 a query sees 4 keys on average. Where it sees no more than w, the first w queries see w / 2 on average,
# and the other 8 - w see w.
@pytest.mark.parametrize(
    ("window", "keys"), [(0, 4), (1, 7.5 / 8), (2, (2 + 6 * 2) / 8), (6, (18 + 2 * 6) / 8), (8, 4), (9, 4), (100, 4)]
)
def test_flops_with_a_sliding_window_equal_the_count_by_hand(window, keys):
    sizes = {"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2, "key_value_heads": 1, "head_width": 6}
    config = ModelConfig(**sizes, feed_forward_width=20, sliding_window=window)
    assert training_flops_per_token(config, 8) == 3 * (2 * matmul_parameters(config) + 3 * 2 * (2 * 12 * keys))


@pytest.mark.parametrize(
    ("device_kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Tesla T4", 65.0),
        ("cpu", None),
    ],
)
def test_peak_is_that_of_the_data_sheet_or_unknown(device_kind, expected):
    assert peak_tflops(device_kind) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_duration_is_told_in_minutes_or_hours(seconds, text):
    assert duration(seconds) == text


def make_progress(writer, **options):
    defaults = {"steps": 9, "every_steps": 3, "schedule": lambda step: step / 10, "flops_per_token": 1e6, "peak": None}
    return Progress(writer, **(defaults | options))


def metrics(loss):
    return {"loss": loss, "gradient_norm": 2 * loss, "targets": 64.0}


def test_progress_writes_every_step_with_the_rate_that_it_was_taken_at(tmp_path):
    writer = Writer(tmp_path, first_step=0)
    progress = make_progress(writer)
    for step in range(1, 6):
        progress.add(step, metrics(10.0 - step))
    progress.flush()
    writer.close()
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["train/loss"] for line in lines] == [9.0, 8.0, 7.0, 6.0, 5.0]
    assert [line["train/gradient_norm"] for line in lines] == [18.0, 16.0, 14.0, 12.0, 10.0]
    # The first step is taken at the schedule's step 0.
    assert [line["train/learning_rate"] for line in lines] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_progress_line_names_step_loss_and_utilisation(tmp_path, capsys):
    progress = make_progress(Writer(tmp_path, first_step=0), peak=50.0)
    for step in range(1, 5):
        progress.add(step, metrics(10.0 - step))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("first step")
    assert printed[1].startswith("step 3/9  loss 8.000") and "MFU" in printed[1] and "ETA" in printed[1]
    assert len(printed) == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_progress_stops_at_a_loss_that_is_not_finite(tmp_path, loss):
    progress = make_progress(Writer(tmp_path, first_step=0))
    progress.add(1, metrics(2.0))
    progress.add(2, metrics(loss))
    with pytest.raises(TrainingFailure, match=f"the loss at step 2 is {loss}"):
        progress.flush()
    assert [line["train/loss"] for line in read_lines(tmp_path)] == [2.0, str(loss)]


def test_validation_is_a_line_of_its_own(tmp_path, capsys):
    progress = make_progress(Writer(tmp_path, first_step=0))
    progress.add_validation(6, {"loss": 1.5, "bits_per_byte": 0.75})
    assert read_lines(tmp_path) == [{"step": 6, "validation/loss": 1.5, "validation/bits_per_byte": 0.75}]
    assert capsys.readouterr().out == "step 6/9  validation: 1.5000 nats per token, 0.7500 bits per byte\n"


def test_scalars_reach_tensorboard_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorflow")
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer, note = open_writer(tmp_path, first_step=0)
    assert note == f"tensorboard --logdir {tmp_path}"
    writer.write(3, {"train/loss": 2.5})
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    assert events.Tags()["tensors"] == ["train/loss"]
    assert [event.step for event in events.Tensors("train/loss")] == [3]
