"""At which sizes to ask a question, and on how many seeds, so that its effect at a larger size is known.

Axes: D design, N size.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level
from jaxformer.statistics.transfer import (
    FEWEST_SIZES,
    error_covariance,
    is_within_reach,
    predict_effect,
    prior_covariance,
    prior_grid,
)

POWER = 0.8

# Numbers of seeds at a size that a design can choose, as far as they do not exist yet: some of the interim analyses.
_SEEDS = (0, *INTERIM_SEEDS[::2], INTERIM_SEEDS[-1])

# If measured effects equal the true one, and errors are as expected, the target's sign is known by some number of
# standard deviations; chance moves that. Fitted to 160 designs of 3 to 5 sizes and 3 to 24 seeds, 4 to 256 x the
# compute away, with 80 simulated questions each. More is required, so that the cheapest designs, which are chosen, have
# the stated power.
_STEEPNESS, _NEEDED = 5.1, 2.09

# Designs whose powers are calculated together.
_TOGETHER = 256

# Variance of a size without runs, (bits per byte)^2.
_NOTHING_KNOWN = 1e6

# Before there are any data, bits per byte: the standard error by documents, and the smallest effect that matters.
EXPECTED_DOCUMENTS, EXPECTED_EFFECT = 0.0015, 0.005


class SizeOption(NamedTuple):
    """A size at which a question can be asked."""

    distance: float
    """log(compute / compute of the target): 0 at the target itself, where an ordinary comparison decides."""
    hours: float
    """Device hours of a seed: of the runs of both arms."""
    deviation: float
    """Standard deviation of one seed's difference, bits per byte."""
    documents: float = 0.0
    """Standard error of the difference by documents, bits per byte, which seeds do not reduce."""
    seeds: int = 0
    """Existing seeds, which cost nothing."""
    parent_hours: float = 0.0
    """Of `hours`, those of a run of the parent."""
    parent_seeds: int = 0
    """Existing seeds of the parent, which cost no `parent_hours`."""

    def hours_to(self, seeds: Any) -> Any:
        """Returns the device hours of the runs still missing for a number of seeds, or an array of numbers."""
        lacking, of_parent = (np.maximum(seeds - n, 0) for n in (self.seeds, max(self.seeds, self.parent_seeds)))
        return lacking * (self.hours - self.parent_hours) + of_parent * self.parent_hours


class Design(NamedTuple):
    """Seeds at each size, in the order of the options; 0 for a size that is not used."""

    seeds_N: tuple[int, ...]
    hours: float
    """Device hours of the seeds that do not exist yet."""
    power: float
    """Probability of a verdict, if the effect that matters is present at the target and at all sizes. For a hint, the
    probability that its sign is the sign at the target; the prior lets the effect differ between the two.
    """


class Designs(NamedTuple):
    """The possible designs."""

    sizes: Design | None
    """The cheapest choice of sizes with the wanted power; if none has it, the most powerful for the hours. None if
    there are fewer than three sizes, none has the target within reach, or all have the most seeds already.
    """
    target: Design | None
    """The same only at the target; None if that is no option, or has the most seeds already."""
    hint: Design | None
    """Three seeds at the size where they are cheapest: no verdict."""


def expected_deviation(compute: float) -> float:
    """Returns the standard deviation of one seed's difference before there are any data, bits per byte.

    Runs of two sizes of the baseline scatter by 0.0112 (5 seeds, 1.06e12 operations) and 0.0053 (4 seeds, 4.34e12
    operations): two that share nothing differ by the square root of 2 times that. It is assumed to fall further, but
    not below 0.003.

    Args:
        compute: floating-point operations of a run.
    """
    return max(0.016 * 0.7 ** (math.log(compute / 1e12) / math.log(4)), 0.003)


def cheapest_design(
    options: Sequence[SizeOption], effect: float, hours: float = math.inf, *, power: float = POWER
) -> Designs:
    """Returns the cheapest ways to know an effect at the target; each adds seeds to the existing ones.

    Args:
        effect: the smallest effect at the target that matters, bits per byte.
        hours: device hours to spend.

    Raises:
        ValueError: the effect, or the hours or the deviation of an option, is not above 0.
    """
    if not all(number > 0 for one in options for number in (one.hours, one.deviation, effect)):
        raise ValueError("the effect, and the hours and the deviation of a size, must be above 0")
    below = [n for n, one in enumerate(options) if one.distance]
    at = [n for n, one in enumerate(options) if not one.distance]
    sizes = _best_of_sizes(options, below, effect, hours, power) if len(below) >= FEWEST_SIZES else None
    target = _best_at_target(options, at[0], effect, hours, power) if at else None
    hint = min((_hint(options, n, effect) for n in below), key=lambda one: one.hours, default=None)
    return Designs(sizes, target, hint)


def transfer_power(options: Sequence[SizeOption], seeds_DN: np.ndarray, effect: float) -> np.ndarray:
    """Returns the probabilities (D,) that designs give TRANSFERS for an effect that is the same at all sizes."""
    distance_N, _, sd_N, documents_N = (np.array(values) for values in zip(*(one[:4] for one in options), strict=True))
    seeds_DN = np.asarray(seeds_DN)
    seed_DN = np.where(seeds_DN > 0, sd_N**2 / np.maximum(seeds_DN, 1), _NOTHING_KNOWN)
    item_DN, infinite_DN = np.broadcast_to(documents_N**2, seed_DN.shape), np.full(seed_DN.shape, np.inf)
    errors_DNN = error_covariance(seed_DN, np.maximum(seeds_DN - 1, 1), item_DN, infinite_DN)
    below_D = predict_effect(np.full(seed_DN.shape, effect), errors_DNN, distance_N, np.zeros(1)).below[:, 0]
    return special.ndtr(_STEEPNESS * (-special.ndtri(below_D) - _NEEDED))


def target_power(option: SizeOption, seeds: int, effect: float) -> float:
    """Returns the probability that the ordinary comparison at the target excludes 0 on the side of the effect."""
    level, df = interim_level(seeds), seeds - 1
    error = math.hypot(option.deviation / math.sqrt(seeds), option.documents)
    return float(1 - special.nctdtr(df, effect / error, -special.stdtrit(df, level / 2)))


def _best_of_sizes(
    options: Sequence[SizeOption], below: Sequence[int], effect: float, hours: float, power: float
) -> Design | None:
    ours = [options[n] for n in below]
    seeds_DN = np.array([*itertools.product(*(sorted({max(seeds, one.seeds) for seeds in _SEEDS}) for one in ours))])
    seeds_DN = seeds_DN[(seeds_DN > 0).sum(1) >= FEWEST_SIZES]
    # Existing seeds have not decided it.
    seeds_DN = seeds_DN[(seeds_DN > [one.seeds for one in ours]).any(1)]
    distance_DN = np.where(seeds_DN > 0, [one.distance for one in ours], np.nan)
    seeds_DN = seeds_DN[is_within_reach(np.nanmin(distance_DN, 1), np.nanmax(distance_DN, 1))]
    if not len(seeds_DN):
        return None
    hours_D = np.sum([one.hours_to(seeds_D) for one, seeds_D in zip(ours, seeds_DN.T, strict=True)], 0)
    order_D = np.argsort(hours_D, kind="stable")
    seeds_DN, hours_D = seeds_DN[order_D], hours_D[order_D]
    paid = max(int((hours_D <= hours).sum()), 1)
    # The most seeds at all sizes have the most power: if it does not suffice, no design does.
    first = paid - 1 if paid == len(hours_D) and transfer_power(ours, seeds_DN[-1:], effect)[0] < power else 0
    power_D = np.zeros(len(hours_D))
    for start in range(first, paid, _TOGETHER):
        part = slice(start, min(start + _TOGETHER, paid))
        power_D[part] = transfer_power(ours, seeds_DN[part], effect)
        if power_D[part].max() >= power:
            break
    best = _choose(hours_D[:paid], power_D[:paid], hours, power)
    seeds_N = np.zeros(len(options), int)
    seeds_N[list(below)] = seeds_DN[best]
    return Design(tuple(seeds_N.tolist()), float(hours_D[best]), float(power_D[best]))


def _choose(hours_D: np.ndarray, power_D: np.ndarray, hours: float, power: float) -> int:
    """Returns the cheapest design that suffices; else the most powerful for the hours, or else the cheapest."""
    is_enough_D, is_paid_D = power_D >= power, hours_D <= hours
    if (is_enough_D & is_paid_D).any():
        return int(np.argmin(np.where(is_enough_D & is_paid_D, hours_D, np.inf)))
    return int(np.argmax(np.where(is_paid_D, power_D, -1.0)) if is_paid_D.any() else np.argmin(hours_D))


def _best_at_target(options: Sequence[SizeOption], n: int, effect: float, hours: float, power: float) -> Design | None:
    one = options[n]
    seeds_D = np.array([seeds for seeds in INTERIM_SEEDS if seeds > one.seeds])
    if not len(seeds_D):
        return None
    power_D = np.array([target_power(one, int(seeds), effect) for seeds in seeds_D])
    hours_D = one.hours_to(seeds_D)
    best = _choose(hours_D, power_D, hours, power)
    return Design(_only(options, n, int(seeds_D[best])), float(hours_D[best]), float(power_D[best]))


def _hint(options: Sequence[SizeOption], n: int, effect: float) -> Design:
    one, seeds = options[n], max(options[n].seeds, INTERIM_SEEDS[0])
    _, slope_G, deviation_G, weight_G = prior_grid()
    covariance_G = prior_covariance(np.array([one.distance]), slope_G[:, None, None], deviation_G[:, None, None])
    law_G = effect**2 * (covariance_G[:, 0, 0] - 1)
    is_right_G = special.ndtr(effect / np.sqrt(law_G + one.deviation**2 / seeds + one.documents**2))
    return Design(_only(options, n, seeds), float(one.hours_to(seeds)), float((weight_G * is_right_G).sum()))


def _only(options: Sequence[SizeOption], n: int, seeds: int) -> tuple[int, ...]:
    return tuple(seeds if i == n else 0 for i in range(len(options)))
