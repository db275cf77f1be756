"""The cost of a variant relative to its parent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.clock import Clock
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.flops import parameter_count


class Cost(NamedTuple):
    """The cost of a variant, relative to its parent."""

    time_per_token: float
    """Ratio, NaN if not measured."""
    time_interval: tuple[float, float]
    """Interval of that ratio; (0, infinity) if not measured."""
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
    """Returns the cost of the variant's runs, relative to the parent's of the same seeds.

    Args:
        clock: the two arms measured in turns, if they were: the runs' own speeds do not show the ratio.
    """
    models = [runs[0].experiment.model for runs in (ours, theirs)]
    return Cost(
        clock.ratio if clock else math.nan,
        clock.interval if clock else (0.0, math.inf),
        parameter_count(models[0]) / parameter_count(models[1]),
        float(np.mean([run.device_hours for run in ours])),
        float(np.mean([run.device_hours for run in theirs])),
    )
