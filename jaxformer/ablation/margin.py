"""The value of tokens on the parent's own curve: which difference counts as equal, and what a gain is worth."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.experiment.experiment import tokens_by_step

# Shares of the steps between which the curve is fitted. The warmup is over then, and the decay of the learning rate has
# hardly begun, during which the curve's fall is no slope along the tokens. Small models (32 wide, 300 and 600 steps, a
# cosine at two rates and WSD at one, four seeds) were also trained at half and twice the tokens: the slope between
# these shares is 0.91 to 1.28 times the fall of the annealed loss for each factor e of the tokens; in the second half
# 0.54 to 1.06 times.
_BEGIN, _END = 0.3, 0.6

# Largest logarithm of a worth: a larger one makes no difference.
_MOST = 20.0


# Share of the losses up to which a slope counts as rounding.
_ROUNDING = 1e-9


class Margin(NamedTuple):
    """The effect of a share of the tokens, bits per byte."""

    bits_per_byte: float
    """NaN if no curve shows it."""
    standard_error: float
    """Over the seeds; NaN with one."""


def margin_of_tokens(parents: Sequence[FinishedRun], share: float) -> Margin:
    """Returns by how much a share more tokens would lower the parent's loss: mean slope along the log of the tokens."""
    slopes = _slopes(parents)
    if not len(slopes):
        return Margin(math.nan, math.nan)
    error = float(slopes.std(ddof=1)) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
    factor = math.log1p(share)
    return Margin(max(0.0, float(slopes.mean())) * factor, error * factor)


def worth_in_tokens(difference: float, parents: Sequence[FinishedRun], token_ratio: float = 1.0) -> float:
    """Returns how many times the variant's tokens the parent needs for the same loss, by the mean slope of its curve.

    Only the parent's curve is used, since a change of the optimizer or the schedule shapes the variant's. From the
    errors of the slope, the logarithm is up to a quarter too small, more often than too large; a factor beyond 2 lies
    far outside the fit. NaN if no curve falls.

    Args:
        difference: bits per byte, variant minus parent.
        token_ratio: the variant's tokens, relative to the parent's.
    """
    slopes = _slopes(parents)
    slope = float(slopes.mean()) if len(slopes) else math.nan
    return float(np.exp(min(-difference / slope, _MOST))) / token_ratio if slope > 0 else math.nan


def _slopes(runs: Sequence[FinishedRun]) -> np.ndarray:
    """Returns the slopes of runs that can be fitted."""
    return np.array([slope for run in runs if math.isfinite(slope := _slope(run))])


def _slope(run: FinishedRun) -> float:
    """Returns the fall of a run's bits per byte for each factor e of the tokens; NaN where it cannot be fitted."""
    validation_loss = run.summary.get("validation/loss", math.nan)
    tokens = tokens_by_step(run.experiment, len(run.losses))
    tokens = tokens / tokens[0]
    fitted = (tokens > _BEGIN * tokens[-1]) & (tokens <= _END * tokens[-1]) & np.isfinite(run.losses)
    if fitted.sum() < 3:
        return math.nan
    nats = float(np.polyfit(np.log(tokens[fitted]), run.losses[fitted], 1)[0])
    if abs(nats) <= _ROUNDING * float(np.abs(run.losses[fitted]).max()):  # A flat curve.
        return 0.0
    return -nats * run.bits_per_byte / validation_loss
