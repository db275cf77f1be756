"""The ratio of a variant's and its parent's time per token, measured in turns, and its interval.

The speeds recorded by two runs do not measure it: they depend on what else the machine did at the time. Arms that
compute the same differed by 14 to 32 % that way. `clock_measurement` measures; this module stores and reads.
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

# Keys of a run's record that its step and its time depend on, beside the seed.
_RECORDED = ("config", "attention", "code", "environment", "device", "devices", "cores")
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


class Clock(NamedTuple):
    """A variant's time per token, divided by its parent's."""

    log_ratios: tuple[float, ...]
    """Natural logarithm of the ratio, for each round of turns."""

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
    """Returns an interval for the median of the distribution of independent values; it misses with at most `alpha`.

    Its ends are order statistics, by the binomial distribution, for any distribution of the values. So rounds slowed
    down by a busy machine hardly move it. Infinite where there are too few.
    """
    ordered = np.sort(values)
    below = int(stats.binom.ppf(alpha / 2, len(ordered), 0.5))  # The most values that may be left out on either side.
    below -= stats.binom.cdf(below, len(ordered), 0.5) > alpha / 2
    return (float(ordered[below]), float(ordered[-1 - below])) if below >= 0 else (-math.inf, math.inf)


def made_with(parent: FinishedRun, variant: FinishedRun) -> dict[str, Any]:
    """Returns what the times of two arms depend on, from their runs' records."""
    return {"parent": _of_arm(parent.record), "variant": _of_arm(variant.record)}


def _of_arm(record: dict) -> dict[str, Any]:
    data = {name: digest for name, digest in record["digests"].items() if not name.startswith("plan.")}
    versions = {name: record["versions"].get(name) for name in _PACKAGES}
    return {**{name: record.get(name) for name in _RECORDED}, "digests": data, "versions": versions}


def read_clock(parents: Sequence[FinishedRun], variants: Sequence[FinishedRun]) -> Clock | None:
    """Returns the measurement of two arms; None where there is none, or the arms have changed since."""
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
        print_notice(f"{path}: damaged ({error}); `jaxformer ablate` measures it again")
        return None


def write_clock(clock: Clock, parent: FinishedRun, variant: FinishedRun) -> None:
    """Writes the measurement of two arms beside the variant's runs.

    Raises:
        OSError: it cannot be written.
    """
    low, high = clock.interval
    record = {"ratio": clock.ratio, "interval": [low, high], "confidence": 1 - LEVEL, **clock._asdict()}
    write_json(_path(variant), for_json({**record, "made_with": made_with(parent, variant)}))


def _path(variant: FinishedRun) -> Path:
    return variant.workdir.parent / CLOCK
