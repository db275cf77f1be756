"""The bounds of documents against masks that are written out pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention.document_mask import document_bounds, limit_window, visible_share

B, T = 3, 13
WINDOWS = [1, 2, 4, T - 1, T, T + 1, 1 << 20]


def make_segment_ids(seed):
    # Ids come back later in the row, as the padding's 0 may: only neighbours make a document.
    return np.random.default_rng(seed).choice(3, (B, T), p=[0.1, 0.2, 0.7]).astype(np.int32)


def document_of(segment_ids):
    """Returns the document of each token, counted in its row."""
    return np.cumsum(np.diff(segment_ids, axis=1, prepend=-1) != 0, axis=1)


def oracle_mask_BTS(segment_ids, window=T):
    """Returns whether query t sees key s, for each pair."""
    documents = document_of(segment_ids)
    mask = np.zeros((B, T, T), bool)
    for b, t, s in np.ndindex(B, T, T):
        mask[b, t, s] = documents[b, t] == documents[b, s] and 0 <= t - s < window
    return mask


def mask_by_starts_BTS(starts):
    t, s = np.arange(T)[None, :, None], np.arange(T)[None, None, :]
    return (np.asarray(starts)[:, :, None] <= s) & (s <= t)


def mask_by_ends_BTS(ends):
    t, s = np.arange(T)[None, :, None], np.arange(T)[None, None, :]
    return (s <= t) & (t < np.asarray(ends)[:, None, :])


@pytest.mark.parametrize("seed", range(5))
def test_document_bounds_are_the_runs_of_equal_ids(seed):
    ids = make_segment_ids(seed)
    starts, ends = jax.jit(document_bounds)(jnp.asarray(ids))
    for b, row in enumerate(document_of(ids)):
        for document in range(1, row[-1] + 1):
            run = np.flatnonzero(row == document)
            assert set(zip(starts[b, run].tolist(), ends[b, run].tolist(), strict=True)) == {(run[0], run[-1] + 1)}
    assert starts.dtype == ends.dtype == jnp.int32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("window", WINDOWS)
def test_starts_and_ends_of_a_window_are_the_pairs_of_its_mask_from_both_sides(window, seed):
    ids = make_segment_ids(seed)
    starts, ends = limit_window(*document_bounds(jnp.asarray(ids)), window)
    expected = oracle_mask_BTS(ids, window)
    np.testing.assert_array_equal(mask_by_starts_BTS(starts), expected)
    np.testing.assert_array_equal(mask_by_ends_BTS(ends), expected)


@pytest.mark.parametrize("window", WINDOWS)
def test_bounds_of_a_window_never_decrease_along_the_row_and_stay_in_it(window):
    for bound in limit_window(*document_bounds(jnp.asarray(make_segment_ids(0))), window):
        assert bound.dtype == jnp.int32
        assert np.diff(bound, axis=1).min() >= 0
        assert bound.min() >= 0 and bound.max() <= T


def test_window_as_long_as_the_longest_document_changes_nothing():
    ids = make_segment_ids(0)
    bounds = document_bounds(jnp.asarray(ids))
    longest = int((bounds[1] - bounds[0]).max())
    assert 1 < longest < T
    for window in (longest, T, T + 5, 2**31 - 1):
        for limited, bound in zip(limit_window(*bounds, window), bounds, strict=True):
            np.testing.assert_array_equal(limited, bound)
    assert np.any(limit_window(*bounds, longest - 1)[0] != bounds[0])


def test_limiting_twice_is_limiting_to_the_shorter_window():
    bounds = document_bounds(jnp.asarray(make_segment_ids(1)))
    for first, second in ((2, 4), (4, 2)):
        for twice, once in zip(
            limit_window(*limit_window(*bounds, first), second), limit_window(*bounds, 2), strict=True
        ):
            np.testing.assert_array_equal(twice, once)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("window", [1, 3, T])
def test_visible_share_is_the_share_of_the_causal_pairs_that_are_left(window, seed):
    ids = make_segment_ids(seed)
    starts, _ = limit_window(*document_bounds(jnp.asarray(ids)), window)
    left, causal = oracle_mask_BTS(ids, window).sum(), B * sum(range(1, T + 1))
    assert visible_share(starts) == pytest.approx(left / causal, rel=1e-6)


def test_all_pairs_of_one_document_are_visible():
    assert visible_share(jnp.zeros((2, T), jnp.int32)) == pytest.approx(1, rel=1e-6)
