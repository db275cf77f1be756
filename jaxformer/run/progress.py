"""What a run prints while it trains: a line every so many steps, and what went wrong."""

import collections
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.config import TrainingFailure
from jaxformer.data.packing import DIGESTS
from jaxformer.devices.device import peak_tflops
from jaxformer.devices.multihost import all_sum
from jaxformer.experiment.experiment import Experiment, evaluated_steps, spans_of
from jaxformer.flops import training_flops_per_token
from jaxformer.host.console import (
    Field,
    format_duration,
    print_line,
    print_notice,
    print_progress,
    show_status,
)
from jaxformer.optimizer import make_schedule
from jaxformer.run.durations import Durations
from jaxformer.run.metrics import BATCH, Writer
from jaxformer.skip_steps import MOST_IN_A_ROW, SPIKE

# Metrics of the clock, which no run repeats.
TIMES = ("train/tokens_per_second", "train/tflops", "train/waiting_for_data")

# The pace is measured over the last steps that took so many seconds and are so many, as far as there are. The end of a
# step is seen late if the host was waiting for data, and nearly at once if it was waiting for the step.
_PACE_SECONDS = 1.0
_PACE_STEPS = 4

# Seconds after which a terminal shows slow steps before their line is due.
_STATUS_SECONDS = 5.0

# The progress line shows the wait for batches if it takes a larger share of the time.
_NOTABLE_WAITING = 0.01


def _is_ready(value: Any) -> bool:
    """Returns whether a number is ready without waiting for the device."""
    return not hasattr(value, "is_ready") or value.is_ready()


class NonFiniteSteps(TrainingFailure):
    """Too many steps in a row were not finite, and nothing has changed since.

    Attributes:
        first_step: the first of them, from 1.
        last_step: the one that made them too many; later batches were not trained on.
    """

    def __init__(self, first_step: int, last_step: int, loss: float, gradient_norm: float):
        super().__init__(
            f"{MOST_IN_A_ROW} steps in a row had a loss or a gradient that is not finite; the first is step "
            f"{first_step}, with loss {loss} and gradient norm {gradient_norm}"
        )
        self.first_step = first_step
        self.last_step = last_step


class Pace(NamedTuple):
    """How fast steps were."""

    tokens_per_second: float
    """Targets, on all devices together."""
    tflops: float
    """TFLOP/s at this rate."""
    waiting_for_data: float
    """Share of the time that the loop waited for batches."""
    seconds_per_step: float
    """Seconds per step."""

    def scalars(self) -> dict[str, float]:
        """Returns the metrics `TIMES`."""
        return dict(zip(TIMES, self[: len(TIMES)], strict=True))


class Mark(NamedTuple):
    """A moment at which the end of a step was seen, and the work done until then."""

    seconds: float
    """Time of training, without evaluations."""
    steps: int
    targets: float
    waited: float
    """Seconds that the loop waited for batches."""


def measure_pace(first: Mark, last: Mark, flops_per_token: float) -> Pace:
    """Returns the pace between two moments."""
    seconds, steps, targets, waited = (b - a for a, b in zip(first, last, strict=True))
    rate = targets / seconds
    return Pace(rate, rate * flops_per_token / 1e12, waited / seconds, seconds / steps)


def step_scalars(step: int, metrics: Mapping, batch: int, learning_rates: np.ndarray) -> dict[str, Any]:
    """Returns what `metrics.jsonl` holds of a step.

    Args:
        metrics: of `train_step`, fetched.
        batch: the digest of all processes' batches.
        learning_rates: by step, where none was skipped.
    """
    # A step that does not count does not move the schedule.
    skipped_before = int(metrics["skipped"]) - (not metrics["counts"])
    return {
        "train/loss": metrics["loss"],
        "train/gradient_norm": metrics["gradient_norm"],
        "train/learning_rate": learning_rates[step - 1 - skipped_before],
        "train/spike_score": metrics["spike_score"],
        "train/skipped_steps": metrics["skipped"],
        BATCH: batch,
        **{f"train/{name}": np.asarray(by_layer).tolist() for name, by_layer in metrics["reported"].items()},
    }


def progress_fields(
    step: int, steps: int, metrics: Sequence[Mapping], pace: Pace | None, peak: float | None, left: float
) -> list[Field]:
    """Returns the fields of the progress line: loss, pace, and the time that remains.

    Args:
        metrics: of the steps that the line covers.
        pace: None while unknown.
        peak: TFLOP/s of all devices, or None if unknown.
        left: seconds until the run is over; NaN if unknown.
    """
    losses = [m["loss"] for m in metrics if math.isfinite(m["loss"])]
    skipped = metrics[-1]["skipped"]
    fields = [
        Field(f"step {step}/{steps}"),
        Field(f"loss {np.mean(losses):.3f}" if losses else "loss not finite", rank=1),
        Field(f"{skipped} skipped" if skipped else "", rank=3),
    ]
    if pace is not None:
        waiting = pace.waiting_for_data
        fields += [
            Field(f"{pace.tokens_per_second:,.0f} tokens/s", rank=2),
            Field(f"MFU {pace.tflops / peak:.1%}" if peak else f"{pace.tflops:.3f} TFLOP/s", rank=5),
            Field(f"waiting for data {waiting:.0%}" if waiting > _NOTABLE_WAITING else "", rank=4),
        ]
    return [*fields, Field(format_left(left))]


def format_left(seconds: float) -> str:
    """Returns the time left of a run, as a field of its line; NaN before it is known."""
    return f"ETA {format_duration(seconds)}" if math.isfinite(seconds) else "ETA unknown"


def spike_line(steps: int, window: Sequence[tuple[int, Mapping]]) -> str | None:
    """Returns the line on the largest loss spike of a window of steps, or None without one."""
    spikes = [(step, m) for step, m in window if m["spike_score"] > SPIKE]
    if not spikes:
        return None
    step, m = max(spikes, key=lambda spike: spike[1]["spike_score"])
    return (
        f"step {step}/{steps}  spike: loss {m['loss']:.3f}, {m['spike_score']:.1f} standard deviations "
        f"above the last{'' if m['counts'] else ', skipped'}; {len(spikes)} spikes in {len(window)} steps"
    )


class Progress:
    """Collects metrics, writes them by step and prints a line every so many steps.

    Attributes:
        first_step_ended: when the end of the first step was seen, by `time.perf_counter`.
        seconds_beside: seconds of saves and evaluations, by the step before them.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        steps: int,
        every_steps: int,
        learning_rates: np.ndarray,
        flops_per_token: np.ndarray,
        tokens_per_step: np.ndarray,
        peak: float | None,
        evaluations: Sequence[int],
        known: Durations,
    ):
        """Args: as in the run's configuration.

        `learning_rates`, `flops_per_token` and `tokens_per_step` are by step, `peak` is TFLOP/s of all devices;
        `evaluations` are the steps after which there is one, and `known` is what such runs took before.
        """
        self._writer = writer
        self._steps = steps
        self._every = every_steps
        self._learning_rates = learning_rates
        self._flops_per_token = flops_per_token
        costs = flops_per_token * tokens_per_step
        self._costs = costs / costs[0]
        self._peak = peak
        self._evaluations = evaluations
        self._known = known
        self._waiting: list[tuple[int, dict]] = []
        self._started = time.perf_counter()  # Moved on by time that is not training.
        self._total = Mark(0.0, 0, 0.0, 0.0)
        self._marks: collections.deque[Mark] = collections.deque()  # Possible starts of a pace.
        self._first: Mark | None = None
        self._last_step = 0
        self._shown = 0.0  # When a line was shown last, in time of training.
        self._first_bad: tuple[int, float, float] | None = None
        self.first_step_ended = math.nan
        self.seconds_beside: collections.defaultdict[int, float] = collections.defaultdict(float)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step after the first, on average; NaN without one."""
        steps = self._total.steps - 1
        return (self._total.seconds - self._first.seconds) / steps if self._first and steps > 0 else math.nan

    def begin(self, step: int) -> None:
        """Shows on a terminal that the step is being compiled."""
        left = self._seconds_left(step, self._known.step)
        show_status(f"step {step}/{self._steps}  compiling the step  {format_left(left)}")

    def _seconds_left(self, step: int, step_seconds: float) -> float:
        """Returns the seconds from a step, and the evaluation after it, until the run is over.

        Args:
            step_seconds: of such a step; NaN if unknown.
        """
        steps_to_come = float(self._costs[step:].sum() / self._costs[max(0, step - 1)])
        done = [self.seconds_beside[each] for each in self._evaluations if self.seconds_beside.get(each)]
        # The first of this run was compiled.
        known = [*done[1:][-1:], self._known.evaluation, *done, self._known.first_evaluation, 0.0]
        evaluation = next(each for each in known if math.isfinite(each))
        return steps_to_come * step_seconds + evaluation * sum(each >= step for each in self._evaluations)

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a dispatched step, which may not be computed yet.

        Args:
            step: its number, from 1.
            metrics: of `train_step`, with `batch`, the digest of its batch, and `waited`, the seconds that the host
                waited for it.
        """
        self._total = self._total._replace(waited=self._total.waited + metrics["waited"])
        if self._waiting and self._waiting[-1][0] % self._every == 0:
            self.flush()
        self._waiting.append((step, metrics))
        if not self._marks:
            jax.block_until_ready(metrics)
            seconds, before = time.perf_counter() - self._started, self._total
            print_line(f"first step  after {seconds - before.seconds:.1f} s, compilation included")
            # No pace includes compilation.
            targets = before.targets + float(metrics["targets"])
            self._marks.append(Mark(seconds, before.steps + 1, targets, before.waited))
            if self._first is None:
                self._first, self.first_step_ended = self._marks[0], time.perf_counter()
            self._shown = -math.inf
        self._refresh()

    def _refresh(self) -> None:
        """Shows the last finished step on a terminal, if its line is not due soon."""
        now = time.perf_counter() - self._started
        if now - self._shown < _STATUS_SECONDS:
            return
        done = [each for each in self._waiting if jax.tree.all(jax.tree.map(_is_ready, each[1]))]
        if not done:
            return
        self._shown, (step, metrics), first = now, done[-1], self._marks[0]
        steps = self._total.steps + len(done) - first.steps
        left = self._seconds_left(step, (now - first.seconds) / steps if steps else self._known.step)
        show_status(f"step {step}/{self._steps}  loss {float(metrics['loss']):.3f}  {format_left(left)}")

    def begin_phase(self, step: int, batches: str) -> None:
        """Prints what the batches after a step are, and times their steps separately; the first is compiled.

        Raises: as of `flush`.
        """
        self.flush()
        self.resume_clock()
        self._marks.clear()
        print_line(f"step {step}/{self._steps}  a phase begins: {batches}")

    def flush(self) -> None:
        """Waits for the steps so far, writes their metrics and prints a line.

        Raises:
            NonFiniteSteps: too many in a row were not finite.
        """
        if not self._waiting:
            return
        window = [(step, jax.device_get(metrics)) for step, metrics in self._waiting]
        batches = all_sum([m["batch"] for _, m in window], DIGESTS)
        last, _ = window[-1]
        pace = self._measure([m for _, m in window], float(self._flops_per_token[last - 1]))
        for (step, m), batch in zip(window, batches, strict=True):
            scalars = step_scalars(step, m, batch, self._learning_rates)
            print_notice(self._writer.write(step, scalars | (pace.scalars() if pace and step == last else {})))
        if line := spike_line(self._steps, window):
            print_line(line)
        self._stop_if_frozen(window)
        self._shown = self._total.seconds
        if self._total.steps > 1:
            left = self._seconds_left(last, pace.seconds_per_step if pace else self._known.step)
            print_progress(*progress_fields(last, self._steps, [m for _, m in window], pace, self._peak, left))
        self._waiting, self._last_step = [], last

    def _measure(self, metrics: Sequence[Mapping], flops_per_token: float) -> Pace | None:
        """Takes the metrics of steps that have just ended; returns the pace, or None where it is not known yet."""
        before = self._total
        now = Mark(
            time.perf_counter() - self._started,
            before.steps + len(metrics),
            before.targets + sum(float(m["targets"]) for m in metrics),
            before.waited,
        )
        self._total = now
        while len(self._marks) > 1:
            seconds, steps = now.seconds - self._marks[1].seconds, now.steps - self._marks[1].steps
            if seconds < _PACE_SECONDS or steps < _PACE_STEPS:
                break
            self._marks.popleft()
        first = self._marks[0]
        if now.steps == first.steps:  # Only the first step.
            return None
        self._marks.append(now)
        return measure_pace(first, now, flops_per_token) if now.seconds - first.seconds >= _PACE_SECONDS else None

    def _stop_if_frozen(self, window: Sequence[tuple[int, Mapping]]) -> None:
        """Remembers the first of consecutive non-finite steps, and raises once they are too many."""
        for step, m in window:
            if m["non_finite_in_a_row"] == 1:
                self._first_bad = (step, float(m["loss"]), float(m["gradient_norm"]))
            if m["non_finite_in_a_row"] >= MOST_IN_A_ROW:
                # If this is the first that it sees, they began before the run was resumed.
                first, *numbers = self._first_bad or (step, float(m["loss"]), float(m["gradient_norm"]))
                raise NonFiniteSteps(first, step, *numbers)

    def add_evaluation(self, step: int, scalars: dict[str, float], text: str) -> None:
        """Writes an evaluation and prints a text about it; flush first, so that its time does not count as a step's."""
        print_notice(self._writer.write(step, scalars))
        print_line(f"step {step}/{self._steps}  {text}")
        self.resume_clock()

    def leave_out(self, seconds: float) -> None:
        """Excludes so many of the seconds since the last flush from the training time."""
        self._started += seconds

    def resume_clock(self) -> None:
        """Excludes the time since the last flush, such as a wait for a save, from the training time."""
        started = time.perf_counter() - self._total.seconds
        self.seconds_beside[self._last_step] += started - self._started
        self._started = started


def make_progress(experiment: Experiment, writer: Writer, known: Durations, device_kind: str, devices: int) -> Progress:
    """Returns the progress of a run on so many devices of a kind. Args: known: what it is expected to take."""
    steps, spans = experiment.training.steps, spans_of(experiment)
    flops = [training_flops_per_token(experiment.model, span.row_length) for span in spans]
    counts = [span.steps for span in spans]
    peak = experiment.training.peak_tflops or peak_tflops(device_kind)
    return Progress(
        writer,
        steps=steps,
        every_steps=experiment.training.log_every_steps,
        learning_rates=np.asarray(make_schedule(experiment.optimizer, steps)(np.arange(steps))),
        flops_per_token=np.repeat(flops, counts),
        tokens_per_step=np.repeat([span.tokens_per_step for span in spans], counts),
        peak=peak and peak * devices,
        evaluations=evaluated_steps(experiment),
        known=known,
    )
