"""Scores from log-likelihoods: accuracies, and smoother measures that are more sensitive.

A small model's accuracy changes more by chance than by an experiment; the likelihood of the right answer does not
(Heineman et al. 2025, arXiv 2508.13144). Standard errors are for a mean over independent items.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.evaluation.items import Item


class Estimate(NamedTuple):
    """A mean over items, and its standard error; NaN for a single item."""

    mean: float
    standard_error: float


class ItemScores(NamedTuple):
    """The scores of each item, float64 (items,)."""

    acc: np.ndarray
    """1 if the right option is the likeliest, the first of equals; a single option is right if each of its tokens is
    the likeliest.
    """
    acc_norm: np.ndarray
    """The same for log-likelihoods divided by the characters of the options."""
    gold_bits_per_byte: np.ndarray
    """Bits of the right option, per UTF-8 byte of its text."""
    margin: np.ndarray
    """Nats per character by which the right option leads the best other one, each divided by its own characters; above
    0 only if `acc_norm` is 1, and NaN for a single option.
    """


def score_items(items: Sequence[Item], log_likelihoods: Sequence[np.ndarray], is_greedy: Iterable[bool]) -> ItemScores:
    """Returns the scores of items.

    Args:
        log_likelihoods: nats of each item's options.
        is_greedy: for each item's right option, whether the model itself would write it.
    """
    rows = []
    for item, nats, greedy in zip(items, log_likelihoods, is_greedy, strict=True):
        characters = np.array([len(option.text) for option in item.options])
        per_character = nats / characters
        gold = item.gold
        bits_per_byte = -nats[gold] / math.log(2) / len(item.options[gold].text.encode())
        if len(item.options) == 1:
            rows.append((greedy, greedy, bits_per_byte, math.nan))
        else:
            margin = per_character[gold] - np.delete(per_character, gold).max()
            rows.append((nats.argmax() == gold, per_character.argmax() == gold, bits_per_byte, margin))
    return ItemScores(*np.array(rows, np.float64).T)


def chance(items: Sequence[Item]) -> float:
    """Returns the accuracy of guessing."""
    return float(np.mean([1 / len(item.options) for item in items]))


def estimate(values: np.ndarray) -> Estimate:
    """Returns the mean of independent values, and its standard error."""
    n = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan)


def estimate_ratio(strata: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """Returns sum over sum of pairs, and the standard error if the pairs of each stratum were drawn independently.

    By linearisation (Cochran 1977, Sampling Techniques, section 6): a pair (y, x) moves the ratio r by (y - r x) / sum.

    Args:
        strata: (numerators, denominators) of each.
    """
    total = sum(float(x.sum()) for _, x in strata)
    r = sum(float(y.sum()) for y, _ in strata) / total
    variance = 0.0
    for y, x in strata:
        n, moves = len(y), (y - r * x) / total
        variance += n * float(moves.var(ddof=1)) if n > 1 else math.nan
    return Estimate(r, math.sqrt(variance))


def flatten_estimates(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Returns each mean by its name, and each standard error by the name and `_standard_error`."""
    means = {name: value.mean for name, value in estimates.items()}
    return means | {f"{name}_standard_error": value.standard_error for name, value in estimates.items()}
