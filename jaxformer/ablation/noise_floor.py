"""The seed noise of an experiment: measured once, and used in every comparison with it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.statistics.variance_prior import VariancePrior, fit_prior


class NoiseFloor(NamedTuple):
    """How much runs of one experiment differ only because of their seeds."""

    seeds: tuple[int, ...]
    """Seeds of the runs."""
    bits_per_byte: tuple[float, ...]
    """Bits per byte of each."""
    variances: Mapping[str, tuple[float, int]]
    """Variance of one seed's paired difference, and its degrees of freedom, for each compared variant."""

    @property
    def standard_deviation(self) -> float:
        """Of a run's bits per byte; NaN with fewer than two seeds."""
        return float(np.std(self.bits_per_byte, ddof=1)) if len(self.seeds) > 1 else math.nan

    def prior(self, variant: str, seeds: int) -> VariancePrior | None:
        """Returns the prior for the variance of a variant's difference, beside its own seeds.

        It is fitted to the variances of the parent's other comparisons, if there are three. Otherwise a single seed
        takes the variance of two unpaired runs, and more seeds have their own.
        """
        known = [(variance, df) for name, (variance, df) in self.variances.items() if name != variant and variance > 0]
        if len(known) >= 3:
            return fit_prior(*np.array(known, np.float64).T)
        if seeds > 1 or len(self.seeds) < 2:
            return None
        df = len(self.seeds) - 1
        return VariancePrior(2 * self.standard_deviation**2, df, df)


def noise_floor(parents: Sequence[FinishedRun]) -> NoiseFloor:
    """Returns the noise of runs of one experiment without known comparisons."""
    parents = sorted(parents, key=lambda run: run.seed)
    return NoiseFloor(tuple(run.seed for run in parents), tuple(run.bits_per_byte for run in parents), {})
