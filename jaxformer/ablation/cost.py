"""What a variant costs beside its parent, and what its gain is worth."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.clock import Clock
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.flops import parameter_count


class Cost(NamedTuple):
    """What the variant takes, relative to its parent."""

    time_per_token: float
    """Ratio, NaN where it was not measured."""
    time_interval: tuple[float, float]
    """Interval of that ratio; (0, infinity) where it was not measured."""
    parameters: float
    """Ratio."""
    device_hours: float
    """Device hours of one run of the variant."""
    parent_device_hours: float
    """Device hours of one run of the parent."""

    @property
    def is_timed(self) -> bool:
        """Whether the time per token was measured."""
        return math.isfinite(self.time_per_token)


def compare_costs(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun], clock: Clock | None) -> Cost:
    """Returns what the variant's runs took, relative to the parent's of the same seeds.

    Args:
        clock: what was measured of the two arms in turns, if they were: the runs' own speeds show no ratio.
    """
    models = [runs[0].experiment.model for runs in (ours, theirs)]
    return Cost(
        clock.ratio if clock else math.nan,
        clock.interval if clock else (0.0, math.inf),
        parameter_count(models[0]) / parameter_count(models[1]),
        float(np.mean([run.device_hours for run in ours])),
        float(np.mean([run.device_hours for run in theirs])),
    )


def mean_worth(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> float:
    """Returns the mean of what the variants are worth in tokens, over the seeds where their curves say it.

    NaN where none does, and where the change is of the schedule, the optimizer or the batch: it shapes the very curve
    off which the worth would be read.
    """
    if shapes_the_curve(ours[0].record["lineage"]):
        return math.nan
    known = [worth_in_tokens(one, other) for one, other in zip(ours, theirs, strict=True)]
    known = [worth for worth in known if math.isfinite(worth)]
    return float(np.mean(known)) if known else math.nan


def shapes_the_curve(lineage: Mapping) -> bool:
    """Returns whether a change is one of the schedule, the optimizer or the batch."""
    return any(path.startswith(("optimizer.", "training.")) for path in lineage.get("change", ()))


def worth_in_tokens(variant: FinishedRun, parent: FinishedRun) -> float:
    """Returns how many times the variant's tokens the parent needs for the same validation loss.

    Read off the curve of the better one, where it reaches what the other ends with, between evaluations in the
    logarithm of the tokens. That curve was still to be annealed there, so the worth is understated; so it is where the
    first evaluation is beyond the other's end already. NaN where the curve has too few evaluations to say; what was
    validated before the first step is none.
    """
    better, other = (variant, parent) if variant.bits_per_byte <= parent.bits_per_byte else (parent, variant)
    curve = better.curve[better.curve[:, 0] > 0]
    steps, bits = curve[:, 0], np.minimum.accumulate(curve[:, 1])
    target = other.curve[-1, 1]
    if len(bits) < 2 or target < bits[-1]:
        return math.nan
    per_step = [run.summary["tokens"] / run.summary["steps"] for run in (better, other)]
    reached = math.exp(np.interp(-target, -bits, np.log(steps))) * per_step[0]
    ratio = other.summary["tokens"] / reached
    return ratio if better is variant else 1 / ratio
