"""What a person sees of a run, and where it stops by its numbers."""

import json
import math

import numpy as np
import pytest

from jaxformer.evaluation.result_files import describe_validation
from jaxformer.host.console import format_duration
from jaxformer.run.metrics import Writer
from jaxformer.run.progress import NonFiniteSteps, Progress
from jaxformer.skip_steps import MOST_IN_A_ROW

pytestmark = pytest.mark.device_free


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_duration_is_reported_in_minutes_or_hours(seconds, text):
    assert format_duration(seconds) == text


def make_progress(writer, **options):
    defaults = {"steps": 9, "every_steps": 3, "learning_rates": np.arange(9) / 10, "flops_per_token": 1e6, "peak": None}
    return Progress(writer, **(defaults | options))


def metrics(loss, **others):
    ours = {"loss": loss, "gradient_norm": 2 * loss, "targets": 64.0, "spike_score": 0.0}
    return ours | {"batch": 1, "waited": 0.0, "counts": True, "skipped": 0, "non_finite_in_a_row": 0} | others


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


def test_waiting_for_data_is_measured_and_reported(tmp_path, capsys):
    writer = Writer(tmp_path, first_step=0)
    progress = make_progress(writer)
    for step in range(1, 8):  # The clock stands still beside these waits.
        progress.add(step, metrics(1.0, waited=1e3 if step > 4 else 0.0))
    writer.close()
    shares = [line["train/waiting_for_data"] for line in read_lines(tmp_path) if "train/waiting_for_data" in line]
    assert shares[0] == 0 and shares[1] > 1
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert "waiting" not in first and "waiting for data" in second


def test_progress_goes_on_over_a_loss_that_is_not_finite_and_counts_it(tmp_path, capsys):
    progress = make_progress(Writer(tmp_path, first_step=0))
    progress.add(1, metrics(2.0))
    progress.add(2, metrics(math.nan, counts=False, skipped=1, non_finite_in_a_row=1))
    progress.add(3, metrics(4.0, skipped=1))
    progress.flush()
    lines = read_lines(tmp_path)
    assert [line["train/loss"] for line in lines] == [2.0, "nan", 4.0]
    assert [line["train/skipped_steps"] for line in lines] == [0.0, 1.0, 1.0]
    # The step that was skipped did not move the schedule.
    assert [line["train/learning_rate"] for line in lines] == [0.0, 0.1, 0.1]
    assert "step 3/9  loss 3.000  1 skipped  " in capsys.readouterr().out


def test_progress_stops_once_too_many_in_a_row_were_not_finite_and_names_the_first(tmp_path):
    progress = make_progress(Writer(tmp_path, first_step=0), steps=99, every_steps=50, learning_rates=np.zeros(99))
    for step in range(1, 4):
        progress.add(step, metrics(2.0))
    for row in range(1, MOST_IN_A_ROW + 3):
        in_a_row = min(row, MOST_IN_A_ROW)
        progress.add(3 + row, metrics(math.inf, counts=False, skipped=in_a_row, non_finite_in_a_row=in_a_row))
    with pytest.raises(NonFiniteSteps, match=r"8 steps in a row .* the first is step 4, with loss inf") as failure:
        progress.flush()
    assert (failure.value.first_step, failure.value.last_step) == (4, 3 + MOST_IN_A_ROW)
    assert len(read_lines(tmp_path)) == 3 + MOST_IN_A_ROW + 2


def test_progress_reports_the_largest_spike_of_its_steps(tmp_path, capsys):
    progress = make_progress(Writer(tmp_path, first_step=0))
    progress.add(1, metrics(2.0, spike_score=5.9))
    progress.add(2, metrics(7.0, spike_score=6.1))
    progress.add(3, metrics(9.0, spike_score=12.34, counts=False, skipped=1))
    progress.flush()
    spikes = [line for line in capsys.readouterr().out.splitlines() if "spike" in line]
    assert spikes == [
        "step 3/9  spike: loss 9.000, 12.3 standard deviations above the last, skipped; 2 spikes in 3 steps"
    ]


def test_evaluation_is_a_line_of_its_own(tmp_path, capsys):
    progress = make_progress(Writer(tmp_path, first_step=0))
    validation = {"loss": 1.5, "bits_per_byte": 0.75, "bits_per_byte_standard_error": 0.125}
    progress.add_evaluation(6, {"validation/loss": 1.5}, f"validation: {describe_validation(validation)}")
    assert read_lines(tmp_path) == [{"step": 6, "validation/loss": 1.5}]
    assert capsys.readouterr().out == "step 6/9  validation: 1.5000 nats per token, 0.7500 ± 0.1250 bits per byte\n"


def test_error_that_one_document_cannot_have_is_not_reported():
    validation = {"loss": 1.5, "bits_per_byte": 0.75, "bits_per_byte_standard_error": float("nan")}
    assert describe_validation(validation) == "1.5000 nats per token, 0.7500 bits per byte"
