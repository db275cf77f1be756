"""Two-level screening designs: many changes in few runs, how their effects are aliased, and their analysis.

Every run has about half of the changes on, so that all runs count for every change: the effect of one is the mean of
the runs with it minus the mean of the runs without it. The price: an effect is an average over the other changes, and
is aliased with interactions: the effect of two changes together beyond the sum of both.

Axes: R row of a design, N change, P pair of changes, S seed.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import linalg, stats

from jaxformer.statistics.paired_difference import Difference

# Rows of the designs of Plackett and Burman; each can be folded over, which doubles them.
ROWS = (8, 12, 16, 20, 24)
_HALVES = (4, *ROWS)

# The most changes without effect that are expected among the survivors: each costs its confirmation. In simulations of
# 11 changes on two seeds with the hours of five, 1 finds as much as 2 to within 2 % of the improvements, 0.5 up to 4 %
# less.
EXPECTED_FALSE = 1.0

# Share of the changes that survive a single seed, whose error is unknown, if they seem better: as many as the hours of
# five seeds of each change can confirm on eleven seeds.
BEST_SHARE = 0.25


class Design(NamedTuple):
    """Which changes are on in which row; the first row is the parent, without any."""

    on_RN: np.ndarray
    """Whether a change is on, bool."""
    folded: bool
    """Whether the second half of the rows mirrors the first: on where it is off, and off where it is on."""

    @property
    def resolution(self) -> int:
        """4 where no effect is aliased with an interaction of two other changes, else 3 (Box & Hunter 1961)."""
        return 4 if self.folded else 3

    @property
    def signs_RN(self) -> np.ndarray:
        """1 where a change is on, -1 where it is off; the columns are orthogonal to each other and to 1."""
        return np.where(self.on_RN, 1.0, -1.0)


def smallest_rows(changes: int) -> int:
    """Returns the rows of the smallest design for so many changes.

    Raises:
        ValueError: there is none.
    """
    found = next((rows for rows in ROWS if rows > changes), None)
    if found is None or changes < 3:
        raise ValueError(f"a design takes 3 to {ROWS[-1] - 1} changes, not {changes}")
    return found


def make_design(changes: int, rows: int) -> Design:
    """Returns a design of so many changes, folded over where the rows allow it.

    A Hadamard matrix (Plackett & Burman 1946, Biometrika 33:305), or one and its negative (Box & Wilson 1951, J. R.
    Stat. Soc. B 13:1).

    Raises:
        ValueError: no design has so many rows or so many changes, or rows would repeat each other.
    """
    if rows % 2 == 0 and rows // 2 in _HALVES and changes <= rows // 2:
        half_RN = _hadamard(rows // 2)
        half_RN[:, 0] *= -1
        design = Design(np.vstack([half_RN, -half_RN])[:, :changes] > 0, True)
    elif rows not in ROWS:
        known = sorted({*ROWS, *(2 * half for half in _HALVES)})
        raise ValueError(f"designs have {', '.join(map(str, known))} rows, not {rows}")
    elif changes >= rows:
        raise ValueError(f"{rows} rows have room for {rows - 1} changes, not {changes}")
    else:
        design = Design(_hadamard(rows)[:, 1 : changes + 1] > 0, False)
    if len(np.unique(design.on_RN, axis=0)) < rows:
        raise ValueError(f"{rows} rows of {changes} changes would repeat each other: take fewer")
    return design


def _hadamard(order: int) -> np.ndarray:
    """Returns a matrix of 1 and -1 with orthogonal columns; the first is 1, and all else of the first row is -1."""
    if order & (order - 1) == 0:
        signs = linalg.hadamard(order).astype(float)
        signs[:, 1:] *= -1
        # First the products of an odd number of generators: no two of them multiply to a third.
        return signs[:, [0, *sorted(range(1, order), key=lambda column: column.bit_count() % 2 == 0)]]
    prime = order - 1  # By Paley (1933), J. Math. Phys. 12:311: squares modulo a prime, -1 not among them.
    squares = [number**2 % prime for number in range(prime)]
    numbers = np.arange(prime)
    core = np.where(np.isin((numbers[:, None] - numbers) % prime, squares), 1.0, -1.0)
    return np.hstack([np.ones((order, 1)), np.vstack([-np.ones((1, prime)), core])])


def interaction_weights(design: Design) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns (weights_NP, pairs): the share of each pair's interaction that the effect of a change contains.

    An interaction is the effect of two changes together at the parent, beyond the sum of both. The effect of a change
    contains half of each of its own interactions, by averaging over the other change. Of the interaction of two others
    it contains half of the correlation between its column and the product of theirs, which is 0 in a folded design (the
    alias matrix, Box & Wilson 1951).
    """
    signs_RN = design.signs_RN
    pairs = [*itertools.combinations(range(signs_RN.shape[1]), 2)]
    products_RP = np.stack([signs_RN[:, i] * signs_RN[:, j] for i, j in pairs], 1)
    weights_NP = signs_RN.T @ products_RP / len(signs_RN) / 2
    for p, pair in enumerate(pairs):
        weights_NP[list(pair), p] = 0.5
    return weights_NP, pairs


class Errors(NamedTuple):
    """Mean squares of an additive model's residuals, of two seeds or more, with their degrees of freedom."""

    between_seeds: np.ndarray
    """Between seeds of the same row: only noise."""
    df_between_seeds: int
    residual: np.ndarray
    """Of contrasts of the rows' means that estimate no effect: noise and interactions; 0 if there are none."""
    df_residual: int
    even: np.ndarray
    """Of contrasts in which a row and its mirror image agree, in a folded design: noise and interactions of two
    changes, which appear only here.
    """
    df_even: int

    def of_effects(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the variances of an effect by noise and by interactions, as far as residual contrasts show these.

        Args:
            runs: rows times seeds.
        """
        excess = np.maximum(self.residual - self.between_seeds, 0.0) if self.df_residual else 0 * self.between_seeds
        return 4 / runs * self.between_seeds, 4 / runs * excess


def estimate_effects(design: Design, values_RS: np.ndarray) -> np.ndarray:
    """Returns the effect of each change (N,); axes before R are batched."""
    return 2 / len(design.on_RN) * values_RS.mean(-1) @ design.signs_RN


def estimate_errors(design: Design, values_RS: np.ndarray) -> Errors:
    """Returns the mean squares by which rows differ beyond the sum of their changes; axes before R are batched."""
    (R, N), S = design.on_RN.shape, values_RS.shape[-1]
    mean_R = values_RS.mean(-1)
    centred_R = mean_R - mean_R.mean(-1, keepdims=True)
    rest_RS = values_RS - values_RS.mean(-2, keepdims=True) - centred_R[..., None]
    df_between_seeds, df_even = (R - 1) * (S - 1), R // 2 - 1 if design.folded else 0
    even_R = (centred_R + np.roll(centred_R, R // 2, -1)) / 2 if design.folded else 0 * centred_R
    residual_R = centred_R - even_R - estimate_effects(design, values_RS) @ design.signs_RN.T / 2
    df_residual = R - 1 - N - df_even
    return Errors(
        np.square(rest_RS).sum((-2, -1)) / df_between_seeds,
        df_between_seeds,
        S * np.square(residual_R).sum(-1) / max(df_residual, 1),
        df_residual,
        S * np.square(even_R).sum(-1) / max(df_even, 1),
        df_even,
    )


class Screened(NamedTuple):
    """The effects of a design's changes, and which of them are worth confirming."""

    effects: tuple[Difference, ...]
    """Of each change, the mean with it minus the mean without it. In its variance the seeds' part is noise, and the
    items' part the interactions, estimated from the residual contrasts.
    """
    survivors: tuple[int, ...]
    """Numbers of the changes that seem to be improvements, the surest first."""
    interactions_p: float
    """P-value of the hypothesis that effects are additive; NaN if no contrast is left to test it, or with one seed."""


def screen(design: Design, values_RS: np.ndarray) -> Screened:
    """Returns the effects of a design's changes, and which of them survive.

    Seeds are blocks: what all rows of a seed share cancels. The variance between seeds is pooled over all contrasts.
    The residual variance of the rows' means beyond that is attributed to interactions: an effect contains as much of
    them, on average, as the residual contrasts. A change survives if its one-sided p-value is at most `EXPECTED_FALSE`
    over the number of changes, which bounds the expected number of false survivors (per-family error rate): each costs
    its confirmation, and none is kept without that. With one seed the errors are unknown, and the best `BEST_SHARE` of
    the changes survive, if they seem better.

    Args:
        values_RS: the loss of each row on each seed, or another number that is better if lower.

    Raises:
        ValueError: a value is missing.
    """
    values_RS = np.asarray(values_RS, np.float64)
    R, N = design.on_RN.shape
    if values_RS.ndim != 2 or len(values_RS) != R or not values_RS.size or not np.isfinite(values_RS).all():
        raise ValueError(f"values_RS {values_RS.shape} must have a finite value of each of {R} rows on each seed")
    if values_RS.shape[1] == 1:
        effects_N = estimate_effects(design, values_RS)
        best = [int(n) for n in np.argsort(effects_N, kind="stable")[: math.ceil(BEST_SHARE * N)] if effects_N[n] < 0]
        unknown = tuple(Difference(float(effect), 0.0, math.inf, seeds_counted=False) for effect in effects_N)
        return Screened(unknown, tuple(best), math.nan)
    errors = estimate_errors(design, values_RS)
    chance, interactions = map(float, errors.of_effects(values_RS.size))
    parts = chance, errors.df_between_seeds, interactions, errors.df_residual or math.inf
    effects = tuple(Difference(float(effect), *parts) for effect in estimate_effects(design, values_RS))
    p_values = [each.p_value_below for each in effects]
    survivors = [n for n in sorted(range(N), key=p_values.__getitem__) if p_values[n] <= EXPECTED_FALSE / N]
    square, df = (errors.even, errors.df_even) if design.folded else (errors.residual, errors.df_residual)
    can_test = df and errors.between_seeds > 0
    p_value = float(stats.f.sf(square / errors.between_seeds, df, errors.df_between_seeds)) if can_test else math.nan
    return Screened(effects, tuple(survivors), p_value)
