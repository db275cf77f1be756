"""By how much a variant differs from its parent, with an error that counts seeds and items.

Variant and parent are trained on the same seeds (the same data order, the same initial values) and read the same
documents or items, so their difference is analysed. Both the seeds and the items are samples: another seed or another
document would have given another difference, and an error that counts only one of them is too small.

Axes: S seed, I document or item, G group of items, H stratum of groups.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from jaxformer.statistics.variance_prior import VariancePrior, exceeds, moderate

# Multiple of the level of an interim analysis at which a comparison's own variance is used too, where a prior moderates
# it. A prior controls errors only on average over comparisons: a comparison that varies more than the others has more.
# Its own variance at this multiple of the level bounds them: 0.0135 x 3.15 / 2 = 2.1 % on a side at the first analysis.
OWN_LEVEL = 3.15

# A p-value below this one is given as 0.
_SMALLEST_P_VALUE = 1e-100


class Difference(NamedTuple):
    """Variant minus parent, with the two parts of its variance.

    The interval's half-width is sqrt(t_seed^2 seed_variance + t_item^2 item_variance), each t the quantile for its own
    degrees of freedom. Its coverage is at least nominal whatever the ratio of the two variances (Banerjee 1960,
    Sankhya 22:357). One t with Satterthwaite's (1946) degrees of freedom is not enough: with two seeds and a true ratio
    of 9 to 1 it calls 13 % of equals different at 5 %, since seeds that happen to agree count as known.
    """

    mean: float
    """Mean, in the unit of the values; so are the square roots of the variances."""
    seed_variance: float
    """Variance of the mean by the choice of seeds."""
    seed_degrees_of_freedom: float
    """Seed degrees of freedom of that variance; infinite where it is not estimated."""
    item_variance: float = 0.0
    """Variance of the mean by the choice of documents or items."""
    item_degrees_of_freedom: float = math.inf
    """Item degrees of freedom of that variance; infinite where it is not estimated."""
    seeds_counted: bool = True
    """False if the seeds' variance is unknown: the error then counts the items only."""
    own: tuple[float, float] | None = None
    """(seed_variance, seed_degrees_of_freedom) before a prior moderated them, if one did: an interval is at least as
    wide as the one from these at `OWN_LEVEL` times its level.
    """

    @property
    def standard_error(self) -> float:
        """Root of both variances together."""
        return math.sqrt(self.seed_variance + self.item_variance)

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the t whose 95 % interval is as wide as this one: mean +- t x standard_error."""
        parts = self._parts()
        if len(parts) < 2:
            return parts[0][1] if parts else min(self.seed_degrees_of_freedom, self.item_degrees_of_freedom)
        quantile = self._half_width(0.05) / self.standard_error

        # Of the inverse, which makes infinitely many degrees of freedom the end of a finite range.
        def excess(inverse: float) -> float:
            return t_quantile(1 / inverse if inverse else math.inf, 0.05) - quantile

        most = 1 / min(df for _, df in parts)
        if most == 0 or excess(0.0) >= 0:
            return math.inf
        if excess(most) <= 0:
            return 1 / most
        return 1 / optimize.brentq(excess, 0.0, most)  # pyright: ignore[reportOperatorIssue]  # A float, without full_output.

    @property
    def p_value(self) -> float:
        """The two-sided p-value of no difference: 1 less the confidence of the interval that ends at 0."""
        distance = abs(self.mean)
        if distance == 0:
            return 1.0
        if self._half_width(_SMALLEST_P_VALUE) <= distance:
            return 0.0

        # Between -1/2 and 1/2 even where a quantile is infinite.
        def excess(log_p: float) -> float:
            return distance / (distance + self._half_width(math.exp(log_p))) - 0.5

        log_p = optimize.brentq(excess, math.log(_SMALLEST_P_VALUE), 0.0)
        return math.exp(log_p)  # pyright: ignore[reportArgumentType]  # A float, without full_output.

    @property
    def p_value_below(self) -> float:
        """The one-sided p-value of a difference that is not below 0."""
        return self.p_value / 2 if self.mean < 0 else 1 - self.p_value / 2

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the two-sided confidence interval (low, high)."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence ({confidence}) must be between 0 and 1")
        half_width = self._half_width(1 - confidence)
        return self.mean - half_width, self.mean + half_width

    def _parts(self) -> list[tuple[float, float]]:
        """Returns (variance, degrees of freedom) of the parts above zero; 0 times an infinite quantile would be NaN."""
        parts = [
            (self.seed_variance, self.seed_degrees_of_freedom),
            (self.item_variance, self.item_degrees_of_freedom),
        ]
        return [(variance, df) for variance, df in parts if variance > 0]

    def _half_width(self, alpha: float) -> float:
        half_width = math.hypot(*(math.sqrt(variance) * t_quantile(df, alpha) for variance, df in self._parts()))
        if self.own is None:
            return half_width
        variance, df = self.own
        alone = self._replace(seed_variance=variance, seed_degrees_of_freedom=df, own=None)
        return max(half_width, alone._half_width(min(1.0, OWN_LEVEL * alpha)))


def t_quantile(degrees_of_freedom: float, alpha: float) -> float:
    """Returns the quantile that |t| exceeds with probability alpha; from the lower tail, which a small alpha keeps."""
    return -float(special.stdtrit(degrees_of_freedom, alpha / 2))


def paired_difference(variant_S: np.ndarray, parent_S: np.ndarray, prior: VariancePrior | None = None) -> Difference:
    """Returns the paired t-test over seeds; a prior, if given and not exceeded, moderates its variance.

    Args:
        variant_S: a number from each seed's run of the variant.
        parent_S: the same from the parent's runs, with the same seeds in the same order.

    Raises:
        ValueError: the two differ in length, a value is not finite, or there are fewer than two seeds and no prior.
    """
    variant_S, parent_S = np.asarray(variant_S, np.float64), np.asarray(parent_S, np.float64)
    if variant_S.shape != parent_S.shape or variant_S.ndim != 1:
        raise ValueError(f"variant_S {variant_S.shape} and parent_S {parent_S.shape} must have one value per seed")
    difference_S = variant_S - parent_S
    _check_finite("the values of a paired difference", difference_S)
    prior = _fitting(prior, difference_S)
    known = _seed_variance(difference_S, prior)
    if known is None:
        raise ValueError(f"a paired difference over seeds ({len(difference_S)}) takes at least 2, or a prior")
    own = _seed_variance(difference_S, None) if prior else None
    return Difference(float(difference_S.mean()), *known, own=own)


def crossed_difference(
    differences_SI: np.ndarray,
    weights_I: np.ndarray | None = None,
    groups_I: np.ndarray | None = None,
    *,
    prior: VariancePrior | None = None,
    strata_I: np.ndarray | None = None,
) -> Difference:
    """Returns the mean difference if seeds and items were both drawn at random, each seed reading each item.

    A seed's difference is r_s = sum_i y_si / sum_i w_i, and the result is the mean of r_s. Its variance is
    seed + item - interaction, from `_variances`. The interaction stays in the seeds' part, which has fewer degrees of
    freedom, and is subtracted from the items' part. The seeds' part is at least the interaction and the items' at least
    0, so the sum is never below `seed` or `item`.

    With a single seed the interaction cannot be subtracted: with a prior the variance is then too large by C/I at most;
    without one the error counts the items only and `seeds_counted` is False.

    Args:
        differences_SI: variant minus parent: for validation the bits of a document, for a task the score of an item.
        weights_I: for validation the bytes of a document, so that the mean is in bits per byte; by default 1.
        groups_I: a label per item, equal where items do not vary independently (a common passage, twins); by default
            each item is a group.
        prior: of the variance of r_s; ignored if that exceeds it.
        strata_I: a label per item: the corpus from which it was drawn, if several were sampled separately.

    Raises:
        ValueError: a shape does not fit, a value is not finite, a weight is negative or all are 0, a group is in two
            strata, or a stratum has a single group, which cannot show how groups vary.
    """
    items = _check_items(differences_SI, weights_I, groups_I, strata_I)
    difference_S = items.differences_SI.sum(1) / items.weights_I.sum()
    mean = float(difference_S.mean())
    item, item_df, interaction = _variances(items, difference_S)
    prior = _fitting(prior, difference_S)
    known = _seed_variance(difference_S, prior)
    if known is None:
        return Difference(mean, 0.0, math.inf, item, item_df, seeds_counted=False)
    seed, seed_df = known
    own = _seed_variance(difference_S, None) if prior else None
    if own is not None:
        own = (max(own[0], interaction), own[1])
    return Difference(mean, max(seed, interaction), seed_df, max(item - interaction, 0.0), item_df, own=own)


def item_correlation(
    differences_NSI: Sequence[np.ndarray],
    weights_I: np.ndarray | None = None,
    groups_I: np.ndarray | None = None,
    *,
    strata_I: np.ndarray | None = None,
) -> float:
    """Returns the correlation, from 0 to 1, between the effects of the items on several mean differences.

    Products of their moves u (see `_variances`) estimate the covariance without the interactions that the variances
    contain; all pairs of differences are pooled. NaN if items have no effect, or with fewer than two differences.

    Args:
        differences_NSI: as in `crossed_difference`; each difference has its own seeds, on the same items.
        weights_I, groups_I, strata_I: as there.
    """
    moves, variances = [], []
    for differences_SI in differences_NSI:
        items = _check_items(differences_SI, weights_I, groups_I, strata_I)
        difference_S = items.differences_SI.sum(1) / items.weights_I.sum()
        moves_SG, correction_G = _moves(items, difference_S)
        item, _, interaction = _variances(items, difference_S)
        moves.append(np.sqrt(correction_G) * moves_SG.mean(0))
        variances.append(max(item - interaction, 0.0))
    if len(moves) < 2:
        return math.nan
    moves_NG, errors_N, pairs = np.stack(moves), np.sqrt(variances), np.triu_indices(len(moves), 1)
    shared, alone = (moves_NG @ moves_NG.T)[pairs].sum(), np.outer(errors_N, errors_N)[pairs].sum()
    return float(np.clip(shared / alone, 0, 1)) if alone > 0 else math.nan


class _Items(NamedTuple):
    """The checked arguments of `crossed_difference`."""

    differences_SI: np.ndarray
    weights_I: np.ndarray
    group_I: np.ndarray
    """Group of each item, from 0 on; `stratum_G`: stratum of each group."""
    stratum_G: np.ndarray
    groups_H: np.ndarray
    """Number of groups in each stratum."""
    share_G: np.ndarray
    """Share of each group in the weight of its stratum."""


def _check_items(
    differences_SI: np.ndarray, weights_I: np.ndarray | None, groups_I: np.ndarray | None, strata_I: np.ndarray | None
) -> _Items:
    differences_SI = np.asarray(differences_SI, np.float64)
    if differences_SI.ndim != 2 or not differences_SI.size:
        raise ValueError(f"differences_SI must have seeds and items, but its shape is {differences_SI.shape}")
    I = differences_SI.shape[1]  # noqa: E741
    weights_I = np.ones(I) if weights_I is None else np.asarray(weights_I, np.float64)
    if weights_I.shape != (I,):
        raise ValueError(f"weights_I {weights_I.shape} must have one weight per item ({I})")
    _check_finite("the differences of items", differences_SI)
    _check_finite("the weights of items", weights_I)
    stratum_I = _codes("strata_I", strata_I, np.zeros(I, np.int64))
    if weights_I.min() < 0 or np.bincount(stratum_I, weights=weights_I).min() == 0:
        raise ValueError("weights of items must be 0 or more, and not all 0 in a stratum")
    group_I = _codes("groups_I", groups_I, np.arange(I))
    stratum_G = np.zeros(group_I.max() + 1, np.int64)
    stratum_G[group_I] = stratum_I
    if (stratum_G[group_I] != stratum_I).any():
        raise ValueError("a group of items must lie in one stratum")
    share_G = np.bincount(group_I, weights=weights_I) / np.bincount(stratum_I, weights=weights_I)[stratum_G]
    if share_G.max() == 1:
        raise ValueError("items must come from at least 2 groups with weight in each stratum, not from a single one")
    return _Items(differences_SI, weights_I, group_I, stratum_G, np.bincount(stratum_G), share_G)


def _variances(items: _Items, difference_S: np.ndarray) -> tuple[float, float, float]:
    """Returns (item, its degrees of freedom, interaction) for `crossed_difference`.

    In the model y_si / w_i = mean + a_s + b_i + c_si of independent effects (two-way crossed, Searle, Casella and
    McCulloch 1992), for I items of equal weight, the variance of the mean is A/S + B/I + C/(SI). A group of items moves
    r_s by u_sg = sum over i in g of (y_si - r_s w_i) / sum_i w_i (linearisation, Cochran 1977, section 6). Centred
    within its stratum,

        seed         = var_s(r_s) / S                                        estimates A/S + C/(SI)
        item         = sum_g k_g (mean_s u_sg)^2                             estimates B/I + C/(SI)
        interaction  = sum_sg k_g (u_sg - mean_s u_sg)^2 / (S (S-1))         estimates C/(SI)

    where k_g is n/(n-1) for n groups of equal weight, and (n-1)/n / (1 - share of g in its stratum's weight)^2 in
    general, as in the delete-one jackknife (Efron 1982). With n/(n-1), 7 % of equals are called different at 5 % on 20
    documents whose lengths vary by a factor of e. With a single seed the interaction is 0.
    """
    moves_SG, correction_G = _moves(items, difference_S)
    moves_G, S = moves_SG.mean(0), len(difference_S)
    squares_G = correction_G * moves_G**2
    item_df = _item_degrees_of_freedom(squares_G, items.stratum_G, items.groups_H)
    interaction = float((correction_G * (moves_SG - moves_G) ** 2).sum()) / (S * (S - 1)) if S > 1 else 0.0
    return float(squares_G.sum()), item_df, interaction


def _moves(items: _Items, difference_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns u_sg, centred, and k_g of `_variances`."""
    total, stratum_G, groups_H = items.weights_I.sum(), items.stratum_G, items.groups_H
    moves_SG = _sums((items.differences_SI - difference_S[:, None] * items.weights_I) / total, items.group_I)
    moves_SG -= (_sums(moves_SG, stratum_G) / groups_H)[:, stratum_G]
    return moves_SG, (1 - 1 / groups_H[stratum_G]) / (1 - items.share_G) ** 2


def _check_finite(what: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite, but {np.count_nonzero(~np.isfinite(values))} are not")


def _fitting(prior: VariancePrior | None, difference_S: np.ndarray) -> VariancePrior | None:
    """Returns the prior, or None if the seeds' own variance exceeds it."""
    own, df = _own_variance(difference_S)
    return None if prior is None or exceeds(own, df, prior) else prior


def _own_variance(difference_S: np.ndarray) -> tuple[float, float]:
    S = len(difference_S)
    return float(difference_S.var(ddof=1)) if S > 1 else 0.0, float(max(S - 1, 0))


def _seed_variance(difference_S: np.ndarray, prior: VariancePrior | None) -> tuple[float, float] | None:
    """Returns the variance of the mean over seeds and its degrees of freedom; None if nothing estimates them."""
    variance, df = _own_variance(difference_S)
    if prior is not None:
        variance, df = moderate(variance, df, prior)
    return (variance / len(difference_S), df) if df > 0 else None


def _codes(what: str, labels_I: np.ndarray | None, default_I: np.ndarray) -> np.ndarray:
    """Returns labels as integers from 0 on."""
    if labels_I is None:
        return default_I
    if np.shape(labels_I) != default_I.shape:
        raise ValueError(f"{what} {np.shape(labels_I)} must have one label per item {default_I.shape}")
    return np.unique(np.asarray(labels_I), return_inverse=True)[1]


def _sums(values_SI: np.ndarray, code_I: np.ndarray) -> np.ndarray:
    """Returns the sums (S, codes) over the items of each code."""
    return np.stack([np.bincount(code_I, weights=values_I) for values_I in values_SI])


def _item_degrees_of_freedom(squares_G: np.ndarray, stratum_G: np.ndarray, groups_H: np.ndarray) -> float:
    """Returns the degrees of freedom of a sum of squares: all strata together (Satterthwaite 1946), or fewer.

    2 V^2 / var(V), where var(V) = 2 sum_g variance_g^2 and the fourth power of a normal move estimates 3 variance_g^2.
    2 is subtracted since the estimated V^2 is too large: its mean is (1 + 2 / df) V^2. So if a few items make most of
    the sum (long documents, or the only ones where the two differ), the degrees of freedom are few.
    """
    variance_H = np.bincount(stratum_G, weights=squares_G)
    if not variance_H.any():
        return float((groups_H - 1).sum())
    total = variance_H.sum()
    # As shares, whose squares do not vanish below the smallest float.
    shares_H, shares_G = variance_H / total, squares_G / total
    return float(min(1 / (shares_H**2 / (groups_H - 1)).sum(), 3 / (shares_G**2).sum() - 2))
