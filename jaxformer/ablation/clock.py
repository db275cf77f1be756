"""How much longer a variant's token takes than its parent's: what was measured of both arms in turns, and its interval.

The speeds that two runs record are no measure of it: they are of other hours, and of whatever else the machine did
then. Arms that compute the same differed by 14 to 32 % so. `clock_measurement` measures; this is kept and read here.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.config import UserError
from jaxformer.host.console import print_notice
from jaxformer.host.files import for_json, read_json, write_json

# In the folder of a variant's runs.
CLOCK = "clock.json"

# Probability that an interval of the ratio misses it.
LEVEL = 0.01

# Of a run's record, what its step and its time depend on beside the seed.
_RECORDED = ("config", "attention", "code", "environment", "device", "devices", "cores")
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


class Clock(NamedTuple):
    """The time of a variant's token, divided by that of its parent's."""

    log_ratios: tuple[float, ...]
    """Natural logarithm of the ratio, of each round of turns."""

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return math.exp(float(np.median(self.log_ratios)))

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the ratio at `LEVEL`."""
        low, high = median_interval(self.log_ratios, LEVEL)
        return math.exp(low), math.exp(high)


def median_interval(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Returns an interval that misses the median of what independent values are drawn from with at most `alpha`.

    Its ends are values, counted from either side by the binomial distribution, whatever distribution they have: rounds
    that a busy machine slows down move it no further than the rounds beside them. Infinite where there are too few.
    """
    ordered = np.sort(values)
    below = int(stats.binom.ppf(alpha / 2, len(ordered), 0.5))  # Values left out on either side: the most that may be.
    below -= stats.binom.cdf(below, len(ordered), 0.5) > alpha / 2
    return (float(ordered[below]), float(ordered[-1 - below])) if below >= 0 else (-math.inf, math.inf)


def made_with(parent: FinishedRun, variant: FinishedRun) -> dict[str, Any]:
    """Returns what the times of two arms depend on, as their runs recorded it."""
    return {"parent": _of_arm(parent.record), "variant": _of_arm(variant.record)}


def _of_arm(record: dict) -> dict[str, Any]:
    data = {name: digest for name, digest in record["digests"].items() if not name.startswith("plan.")}
    versions = {name: record["versions"].get(name) for name in _PACKAGES}
    return {**{name: record.get(name) for name in _RECORDED}, "digests": data, "versions": versions}


def read_clock(parents: Sequence[FinishedRun], variants: Sequence[FinishedRun]) -> Clock | None:
    """Returns what was measured of two arms; None where nothing was, or where they are no longer what was measured."""
    if not parents or not variants:
        return None
    path = _path(variants[0])
    try:
        record = read_json(path) or {}
        if record.get("made_with") != for_json(made_with(parents[0], variants[0])):
            return None
        ratios = tuple(map(float, record["log_ratios"]))
        if not ratios or not all(map(math.isfinite, ratios)):
            raise ValueError("its ratios are not finite")
        clock = Clock(ratios)
        if math.isinf(clock.interval[1]):
            raise ValueError("it has too few rounds")
        return clock
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        print_notice(f"{path}: damaged ({error}); `jaxformer ablate` measures it anew")
        return None


def write_clock(clock: Clock, parent: FinishedRun, variant: FinishedRun) -> None:
    """Keeps what was measured of two arms beside the variant's runs.

    Raises:
        OSError: it cannot be written.
    """
    low, high = clock.interval
    record = {"ratio": clock.ratio, "interval": [low, high], "confidence": 1 - LEVEL, **clock._asdict()}
    write_json(_path(variant), for_json({**record, "made_with": made_with(parent, variant)}))


def _path(variant: FinishedRun) -> Path:
    return variant.workdir.parent / CLOCK
