"""What a person sees of a run, and where it stops by its numbers."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxformer.run.progress as progress_module
from jaxformer.evaluation.result_files import describe_validation
from jaxformer.host.console import format_duration, join_fields
from jaxformer.run.durations import Durations
from jaxformer.run.metrics import Writer
from jaxformer.run.progress import NonFiniteSteps, Pace, Progress, progress_fields
from jaxformer.skip_steps import MOST_IN_A_ROW

pytestmark = pytest.mark.device_free


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_duration_is_reported_in_minutes_or_hours(seconds, text):
    assert format_duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.pass_seconds(x)` moves it on."""

    class Clock:
        now = 0.0

        def pass_seconds(self, seconds):
            self.now += seconds

    one = Clock()
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: one.now)
    return one


def make_progress(writer, **options):
    steps = options.get("steps", 9)
    flops, tokens = np.full(steps, 1e6), np.full(steps, 64)
    defaults = {"steps": 9, "every_steps": 3, "learning_rates": np.arange(9) / 10, "peak": None}
    defaults |= {"flops_per_token": flops, "tokens_per_step": tokens, "evaluations": [steps], "known": Durations()}
    return Progress(writer, **(defaults | options))


def metrics(loss, **others):
    ours = {"loss": loss, "gradient_norm": 2 * loss, "targets": 64.0, "spike_score": 0.0}
    return (
        ours
        | {"batch": 1, "waited": 0.0, "counts": True, "skipped": 0, "non_finite_in_a_row": 0, "reported": {}}
        | others
    )


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_phase_has_a_pace_of_its_own_and_counts_in_the_time_that_remains(tmp_path, capsys, clock):
    sizes, flops = np.array([64, 64, 64, 128, 128, 128]), np.repeat([1e6, 3e6], 3)
    progress = make_progress(
        Writer(tmp_path, first_step=0),
        steps=6,
        every_steps=1,
        learning_rates=np.zeros(6),
        tokens_per_step=sizes,
        flops_per_token=flops,
    )
    for step in range(1, 7):
        if step == 4:
            progress.begin_phase(3, "larger ones")
            clock.pass_seconds(50)  # Compilation.
        clock.pass_seconds(2.0 if step < 4 else 8.0)
        progress.add(step, metrics(1.0, targets=float(sizes[step - 1])))
        progress.flush()
    printed = capsys.readouterr().out
    assert "step 2/6  loss 1.000  32 tokens/s  0.000 TFLOP/s  ETA 0:38" in printed  # 2 s, and 3 x 12 s by operations.
    assert "step 3/6  a phase begins: larger ones\nfirst step  after 58.0 s, compilation included\n" in printed
    assert "step 5/6  loss 1.000  16 tokens/s  0.000 TFLOP/s  ETA 0:08" in printed
    lines = read_lines(tmp_path)
    assert [line.get("train/tflops") for line in lines] == [None, 32e-6, 32e-6, None, 48e-6, 48e-6]


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


def test_progress_line_names_step_loss_and_utilisation(tmp_path, capsys, clock):
    progress = make_progress(Writer(tmp_path, first_step=0), peak=5e-4)
    for step in range(1, 5):
        progress.add(step, metrics(10.0 - step))
        clock.pass_seconds(1.0)
    assert capsys.readouterr().out.splitlines() == [
        "first step  after 0.0 s, compilation included",
        "step 3/9  loss 8.000  43 tokens/s  MFU 8.5%  ETA 0:09",  # Steps 2 and 3, of 64 targets, in 3 s.
    ]


def test_time_that_remains_counts_the_evaluations_to_come(tmp_path, capsys, clock):
    known = Durations(step=5.0, first_evaluation=40.0)
    progress = make_progress(Writer(tmp_path, first_step=0), evaluations=[3, 6, 9], every_steps=1, known=known)
    for step in range(1, 7):
        progress.add(step, metrics(1.0))
        clock.pass_seconds(2.0)
        if step == 3:
            progress.flush()
            clock.pass_seconds(10.0)
            progress.add_evaluation(3, {}, "validated")
    progress.flush()
    printed = capsys.readouterr().out
    assert "step 2/9  loss 1.000  16 tokens/s  0.000 TFLOP/s  ETA 2:28" in printed  # 7 x 4 s and 3 x 40 s as known.
    assert "step 6/9  loss 1.000  32 tokens/s  0.000 TFLOP/s  ETA 0:26" in printed  # 3 x 2 s and 2 x 10 s as measured.
    assert progress.step_seconds == 2.4 and progress.seconds_beside[3] == 10.0


def test_line_that_is_long_in_coming_is_replaced_by_a_status_at_the_pace_of_this_phase(tmp_path, monkeypatch, clock):
    shown, sizes = [], np.array([64.0] * 4 + [256.0] * 6)
    monkeypatch.setattr(progress_module, "show_status", shown.append)
    writer = Writer(tmp_path, first_step=0)
    options = {"steps": 10, "learning_rates": np.zeros(10), "flops_per_token": np.ones(10), "tokens_per_step": sizes}
    progress = make_progress(writer, every_steps=100, **options)
    for step in range(1, 8):
        if step == 5:
            progress.begin_phase(4, "larger ones")
        clock.pass_seconds(3.0 if step < 5 else 12.0)
        progress.add(step, metrics(1.0))
    assert shown == [
        "step 1/10  loss 1.000  ETA unknown",
        "step 3/10  loss 1.000  ETA 1:15",  # 1 step of 3 s, and 6 of four times as many operations.
        "step 5/10  loss 1.000  ETA unknown",
        "step 6/10  loss 1.000  ETA 0:48",
        "step 7/10  loss 1.000  ETA 0:36",
    ]


def test_time_that_remains_is_shown_before_the_first_step_as_such_runs_had_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(progress_module, "show_status", shown.append)
    make_progress(Writer(tmp_path, first_step=0), known=Durations(step=5.0, evaluation=15.0)).begin(4)
    make_progress(Writer(tmp_path, first_step=0)).begin(0)
    assert shown == [
        "step 4/9  compiling the step  ETA 0:40",
        "step 0/9  compiling the step  ETA unknown",
    ]


def read_times(folder, name):
    return [line[f"train/{name}"] for line in read_lines(folder) if f"train/{name}" in line]


def test_wait_counts_in_the_time_in_which_it_passed(tmp_path, clock):
    """The wait for a batch lies before its step, and the end of the step before is seen after it."""
    with Writer(tmp_path, first_step=0) as writer:
        progress = make_progress(writer, every_steps=1)
        progress.add(1, metrics(1.0))
        for step, waited in ((2, 3.0), (3, 5.0), (4, 0.0)):
            clock.pass_seconds(waited + 1.0)
            progress.add(step, metrics(1.0, waited=waited))
    # The end of step 2 is seen 10 s after that of step 1, of which 8 were waits; that of step 3 one second later.
    assert read_times(tmp_path, "waiting_for_data") == [pytest.approx(8 / 10), pytest.approx(8 / 11)]
    assert read_times(tmp_path, "tokens_per_second") == [pytest.approx(64 / 10), pytest.approx(128 / 11)]


@given(
    every=st.integers(1, 3),
    steps=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=40),
)
def test_share_of_waiting_never_passes_one_and_no_rate_is_of_less_than_a_second(every, steps):
    now = 0.0
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_module.time, "perf_counter", lambda: now)
        with Writer(Path(folder), first_step=0) as writer:
            progress = make_progress(writer, every_steps=every, steps=40, learning_rates=np.zeros(40))
            for step, (waited, computed, is_due, is_evaluated) in enumerate(steps, 1):
                now += waited
                progress.add(step, metrics(1.0, waited=waited))
                now += computed
                if is_due or is_evaluated:
                    progress.flush()
                if is_evaluated:
                    now += 100.0
                    progress.add_evaluation(step, {}, "")
            progress.flush()
        assert all(share <= 1 + 1e-9 for share in read_times(Path(folder), "waiting_for_data"))
        # As many tokens in a second as all steps have.
        assert all(rate <= 64 * (len(steps) - 1) for rate in read_times(Path(folder), "tokens_per_second"))


def test_pace_is_that_of_the_last_second_and_steps_without_evaluations(tmp_path, clock):
    with Writer(tmp_path, first_step=0) as writer:
        progress = make_progress(writer, every_steps=1, steps=99, learning_rates=np.zeros(99))
        for step in range(1, 61):
            progress.add(step, metrics(1.0))
            clock.pass_seconds(0.125 if step < 30 else 0.0625)
            if step % 5 == 0:
                progress.flush()
                clock.pass_seconds(60.0)
                progress.add_evaluation(step, {}, "")
    rates = read_times(tmp_path, "tokens_per_second")
    assert rates[0] == pytest.approx(64 / 0.125, rel=0.2) and rates[-1] == pytest.approx(64 / 0.0625, rel=0.2)
    assert len(rates) == 60 - 7  # None within the first second.


PACE = Pace(tokens_per_second=1_234_567.0, tflops=212.3, waiting_for_data=0.27, seconds_per_step=3.5)
WHOLE = "step 12345/610352  loss 2.987  31 skipped  1,234,567 tokens/s  MFU 21.5%  waiting for data 27%  ETA 581:23:44"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (None, WHOLE),
        (len(WHOLE), WHOLE),
        (100, WHOLE.replace("  MFU 21.5%", "")),
        (79, "step 12345/610352  loss 2.987  31 skipped  1,234,567 tokens/s  ETA 581:23:44"),
        (60, "step 12345/610352  loss 2.987  ETA 581:23:44"),
        (40, "step 12345/610352  ETA 581:23:44"),
        (20, "step 1234...81:23:44"),
    ],
)
def test_progress_line_fits_and_keeps_step_and_eta(columns, line):
    ours = [metrics(2.987, skipped=31)]
    assert join_fields(progress_fields(12345, 610352, ours, PACE, 989.0, 3.5 * (610352 - 12345)), columns) == line


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
    assert "step 3/9  loss 3.000  1 skipped  ETA unknown\n" in capsys.readouterr().out


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
