"""Draws against the softmax, and options that are refused."""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats

from jaxformer.attention.reference import MASKED
from jaxformer.config import UserError
from jaxformer.evaluation.sampling import Sampling, draw

pytestmark = pytest.mark.device_free

V = 37
compiled_draw = jax.jit(draw)
LOGITS_V = 2 * np.random.default_rng(0).standard_normal(V).astype(np.float32)


def draws(logits_V, rows, number=0, **options):
    """Returns a token of each of so many rows of the same logits."""
    return np.asarray(compiled_draw(np.tile(logits_V, (rows, 1)), number, Sampling(**options).arrays()))


def truncated_softmax(logits_V, sampling):
    """Returns the probabilities by sorting, in float64."""
    logits_V = np.float64(logits_V) / sampling.temperature
    order = np.argsort(-logits_V)
    weights = np.exp(logits_V[order] - logits_V.max())
    weights[sampling.top_k or V :] = 0
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    weights[before >= sampling.top_p] = 0
    probabilities_V = np.zeros(V)
    probabilities_V[order] = weights / weights.sum()
    return probabilities_V


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.6},
        {"temperature": 1.0, "top_k": V, "top_p": 0.999},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_truncated_softmax(options):
    probabilities_V, rows = truncated_softmax(LOGITS_V, Sampling(**options)), 4000
    counts_V = np.bincount(draws(LOGITS_V, rows, **options, seed=7), minlength=V)
    assert not counts_V[probabilities_V == 0].any()
    # Ids of fewer than 5 expected draws are one class.
    order = np.argsort(probabilities_V)
    observed, expected = counts_V[order], rows * probabilities_V[order]
    rare = int(np.searchsorted(np.cumsum(expected), 5, side="right")) if expected.min() < 5 else 0
    groups = [0, *range(rare + 1, V)] if rare else range(V)
    observed, expected = np.add.reduceat(observed, groups), np.add.reduceat(expected, groups)
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) > 2
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01


def test_temperature_0_takes_the_likeliest():
    assert set(draws(LOGITS_V, 50, temperature=0, top_k=9, top_p=0.5)) == {LOGITS_V.argmax()}


def test_draws_repeat_with_the_seed_and_differ_by_seed_number_and_row_and_not_by_the_other_rows():
    rows = draws(LOGITS_V, 50, temperature=2.0)
    assert (rows == draws(LOGITS_V, 50, temperature=2.0)).all() and len(set(rows)) > 10
    assert (rows[:20] == draws(LOGITS_V, 20, temperature=2.0)).all()
    for other in (draws(LOGITS_V, 50, temperature=2.0, seed=1), draws(LOGITS_V, 50, number=1, temperature=2.0)):
        assert 0 < (rows == other).sum() < 15, "12 % of two independent draws are equal"


def test_draws_of_successive_tokens_are_independent():
    tokens = [int(draws(np.zeros(V, np.float32), 1, number)[0]) for number in range(400)]
    pairs = np.zeros((V, V))
    np.add.at(pairs, tuple(np.array(list(itertools.pairwise(tokens))).T), 1)
    assert scipy.stats.chisquare(pairs.sum(axis=0)).pvalue > 0.01
    assert pairs.max() < 5, "a pair of tokens comes 0.3 times on average"


@pytest.mark.parametrize("options", [{}, {"top_k": 9, "top_p": 0.99}, {"top_k": V}], ids=str)
def test_ids_that_stand_for_no_token_are_never_drawn(options):
    logits_V = np.where(np.arange(V) < 5, LOGITS_V, np.float32(MASKED))
    assert set(draws(logits_V, 500, temperature=1000.0, **options)) == set(range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, r"tokens \(0\) must be at least 1 and at most 2\*\*17"),
        ({"tokens": 1 << 18}, r"tokens \(262144\) must be at least 1 and at most 2\*\*17"),
        ({"tokens": 2.5}, "tokens must be of type int, not 2.5"),
        ({"temperature": -1.0}, r"temperature \(-1\.0\) must be 0, for the likeliest token, or between 0.001 and 1000"),
        ({"temperature": math.nan}, r"temperature \(nan\) must be finite"),
        ({"temperature": math.inf}, r"temperature \(inf\) must be finite"),
        ({"temperature": 1e-38}, r"temperature \(1e-38\) must be 0"),
        ({"top_k": -1}, r"top_k \(-1\) must be at least 0 and below 2\*\*31"),
        ({"top_k": 1.5}, "top_k must be of type int, not 1.5"),
        ({"top_p": 0.0}, r"top_p \(0\.0\) must be above 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p \(1\.01\) must be above 0 and at most 1"),
        ({"top_p": math.nan}, r"top_p \(nan\) must be finite"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0 and below 2\*\*32"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)
