"""Warnings about a run: a sample that repeats itself, and a loss that has risen."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxformer.run.metrics import Series

# Of a text: characters at its end that count, characters of a piece, the fewest characters to judge, and the smallest
# share of distinct pieces.
_END, _PIECE, _FEWEST, _LEAST_DISTINCT = 1000, 8, 200, 0.3

# Share by which a loss may exceed its lowest value; means of training losses also by so many standard errors.
_VALIDATION_RISE, _TRAINING_RISE, _STANDARD_ERRORS = 0.02, 0.03, 4

# Training losses of a window: a tenth of those so far, and no fewer than these.
_SMALLEST_WINDOW = 50


class Rise(NamedTuple):
    """A loss that has risen, nats per target."""

    latest: float
    lowest: float
    step: int
    """Of the lowest."""

    def __str__(self) -> str:
        share = self.latest / self.lowest - 1
        return f"{self.latest:.4g}, lies {share:.1%} above its lowest, {self.lowest:.4g} at step {self.step:,}"


def find_alarms(series: Mapping[str, Series], text: str, first_step: int) -> list[str]:
    """Returns the warnings about a run, a line each, with what to do.

    Args:
        series: of `metrics.jsonl`.
        text: the latest sample, or ''.
        first_step: of the last phase, within which losses are compared.
    """
    lines = []
    if rise := find_validation_rise(_after(series, "validation/loss", first_step)):
        lines.append(
            f"the validation loss, {rise}: that checkpoint is better; if the training loss falls, take fewer steps or "
            "more text, else lower optimizer.learning_rate"
        )
    if rise := find_training_rise(_after(series, "train/loss", first_step)):
        lines.append(
            f"the training loss, {rise}: go back to a checkpoint from before, and lower optimizer.learning_rate"
        )
    if is_repetitive(text):
        lines.append("the sample repeats itself: if the next one does too, lower optimizer.learning_rate")
    return lines


def find_validation_rise(losses: Series) -> Rise | None:
    """Returns the latest validation loss and the lowest before it, if it lies more than 2 % above that.

    In nine runs of the baseline, of `first` and of its variants, validated every 20 steps, it rose by 0.5 % at most.
    """
    is_earlier = np.isfinite(losses.values)
    is_earlier[-1:] = False
    earlier = losses.values[is_earlier]
    if not len(earlier) or losses.values[-1] <= (1 + _VALIDATION_RISE) * earlier.min():
        return None
    return Rise(float(losses.values[-1]), float(earlier.min()), int(losses.steps[is_earlier][earlier.argmin()]))


def find_training_rise(losses: Series) -> Rise | None:
    """Returns the mean of the latest training losses and the lowest such mean before, where it has risen.

    The means are of windows of a tenth of the finite losses so far, at least 50, counted back from the latest. It has
    risen if it lies above the lowest by over 3 %, and by over four standard errors of their difference, estimated
    within the two windows. In nine runs of the baseline, of `first` and of its variants it never lay more than 0.6 %
    above the lowest from step 100 on.
    """
    is_finite = np.isfinite(losses.values)
    steps, values = losses.steps[is_finite], losses.values[is_finite]
    window = max(_SMALLEST_WINDOW, len(values) // 10)
    windows_NW = values[len(values) % window :].reshape(-1, window)
    if len(windows_NW) < 2:
        return None
    means_N, variances_N = windows_NW.mean(axis=1), windows_NW.var(axis=1, ddof=1) / window
    lowest = int(means_N[:-1].argmin())
    rise, error = means_N[-1] - means_N[lowest], math.sqrt(variances_N[-1] + variances_N[lowest])
    if rise <= max(_TRAINING_RISE * means_N[lowest], _STANDARD_ERRORS * error):
        return None
    last_step = int(steps[len(values) % window + (lowest + 1) * window - 1])
    return Rise(float(means_N[-1]), float(means_N[lowest]), last_step)


def is_repetitive(text: str) -> bool:
    """Returns whether a text repeats itself: fewer than 30 % of the pieces of 8 characters at its end are distinct.

    The end is the last 1,000 characters, white space counts as one space, and a text of fewer than 200 characters is
    not judged. Of 80 samples of the baseline, from step 20 on, the lowest share is 88 %; of 1,930 excerpts of
    Python code 33 %, but for a table of constants; of a phrase over and over less than 10 %.
    """
    end = " ".join(text.split())[-_END:]
    pieces = [end[i : i + _PIECE] for i in range(len(end) - _PIECE + 1)]
    return len(text) >= _FEWEST and len(set(pieces)) <= _LEAST_DISTINCT * len(pieces)


def _after(series: Mapping[str, Series], name: str, first_step: int) -> Series:
    steps, values = series.get(name, Series(np.zeros(0, int), np.zeros(0)))
    return Series(steps[steps > first_step], values[steps > first_step])
