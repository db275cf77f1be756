"""Hybrid attention against loops over tokens, by the formulas of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parts.one_layer import (
    ENDS,
    POSITIONS,
    STARTS,
    TOKENS,
    WEIGHTS,
    B,
    T,
    apply_layer,
    make_layer,
    make_stream,
    rms_norm,
    rope,
)

from jaxformer.config import UserError
from jaxformer.layers import Context, Rows
from jaxformer.model import ModelConfig
from jaxformer.parts.hybrid_attention import CompressedSparse, HeavilyCompressed

CONFIG = ModelConfig(vocabulary_size=23, width=12, depth=1, heads=4, key_value_heads=2, head_width=6, norm_epsilon=0.03)
EPSILON = CONFIG.norm_epsilon


every_part = pytest.mark.parametrize(
    "part",
    [
        HeavilyCompressed(window=3, group=4, rotary_width=6),
        CompressedSparse(window=50, group=2, top_k=2, index_heads=3, index_width=5),
    ],
    ids=str,
)


def rotated(x_HK, position, width):
    """Returns the vectors of some heads, the last features turned by a position."""
    return np.stack([np.append(x[: len(x) - width], rope(x[len(x) - width :], position, 1e4)) for x in x_HK])


def numpy_groups(p, x_TD, positions, starts, size, kinds, rotary_width):
    """Returns, by its last token, the vectors of each complete group of a row: those of some heads."""
    J, heads, width = p["bias"].shape
    groups = {}
    for last in [t for t in range(T) if positions[t] % size == size - 1]:
        total, weighted = 0, 0
        for j in range(J):
            t = last - (J - 1) + j
            if t >= starts[last]:
                content, logits = (x_TD[t] @ p["kernel"]).reshape(kinds, 2, heads, width)[j // size]
                total, weighted = (
                    total + np.exp(logits + p["bias"][j]),
                    weighted + np.exp(logits + p["bias"][j]) * content,
                )
        vectors = rms_norm(weighted / total, p["norm"]["scale"], EPSILON)
        groups[last] = rotated(vectors, positions[last] - (size - 1), rotary_width)
    return groups


def numpy_scores(p, part, x_TD, positions, starts, t):
    """Returns the indexer's score of each group of a row, by its last token, for token t."""
    shape, width = (part.index_heads, part.index_width), part.index_width // 4 * 2
    queries = rotated((x_TD[t] @ p["query"]).reshape(shape), positions[t], width)
    weights = x_TD[t] @ p["head_weights"]
    keys = numpy_groups(p["pooling"], x_TD, positions, starts, part.group, 2, width)
    return {last: weights @ np.maximum(queries @ key[0], 0) / np.sqrt(np.prod(shape)) for last, key in keys.items()}


def numpy_hybrid_attention(p, part, x_TD, positions, starts):
    """Returns the attention of one row, the indexer's divergence and the groups' weight for each token."""
    H, G, K = CONFIG.heads, CONFIG.G, CONFIG.K
    is_sparse, width = isinstance(part, CompressedSparse), part.rotary_width or K // 4 * 2
    groups = numpy_groups(p["pooling"], x_TD, positions, starts, part.group, 1 + is_sparse, width)
    made = (x_TD @ p["query_key_value"]).reshape(T, H + G, K)
    near = [
        rotated(rms_norm(made[t, H:], p["key_value_norm"]["scale"], EPSILON), positions[t], width) for t in range(T)
    ]
    y_TD, divergence_T, weight_T = np.zeros_like(x_TD), np.zeros(T), np.zeros(T)
    for t in range(T):
        own = t - positions[t] % part.group  # The first token of its own group.
        seen = [last for last in groups if starts[t] <= last < own]
        if is_sparse:
            scores = numpy_scores(p["indexer"], part, x_TD, positions, starts, t)
            seen = sorted(seen, key=lambda last: -scores[last])[: part.top_k]
        entries = [near[s] for s in range(max(starts[t], t - part.window + 1), t + 1)] + [groups[last] for last in seen]
        queries = rotated(rms_norm(made[t, :H], p["query_norm"]["scale"], EPSILON), positions[t], width)
        attended, on_groups = [], np.zeros(len(seen))
        for h in range(H):
            keys = np.stack([entry[h // (H // G)] for entry in entries])
            weights = np.exp(keys @ queries[h] / np.sqrt(K))
            weights /= weights.sum() + np.exp(p["sinks"][h])
            attended.append(weights @ keys)
            on_groups += weights[len(entries) - len(seen) :]
        y_TD[t] = rotated(attended, -positions[t], width).reshape(-1) @ p["output"]
        weight_T[t] = on_groups.sum() / H
        if is_sparse and seen:
            shares, scored = on_groups / on_groups.sum(), np.exp([scores[last] for last in seen])
            divergence_T[t] = shares @ np.log(shares * scored.sum() / scored)
    return y_TD, divergence_T, weight_T


@every_part
def test_it_equals_loops_over_tokens(part):
    layer, params = make_layer(part, CONFIG)
    x_BTD = make_stream(CONFIG)
    y_BTD, sums = apply_layer(layer, CONFIG, x_BTD)
    rows = [numpy_hybrid_attention(params, part, np.float64(x_BTD[b]), POSITIONS[b], STARTS[b]) for b in range(B)]
    expected_BTD, divergence_BT, weight_BT = map(np.stack, zip(*rows, strict=True))
    np.testing.assert_allclose(y_BTD, expected_BTD, rtol=0, atol=2e-5)
    np.testing.assert_allclose(sums.metrics["weight_of_groups"], np.vdot(WEIGHTS, weight_BT), rtol=1e-5)
    if isinstance(part, CompressedSparse):
        np.testing.assert_allclose(sums.losses["indexer"], np.vdot(WEIGHTS, divergence_BT), rtol=1e-5)


@every_part
def test_output_and_gradients_are_the_same_however_many_rows_are_computed_at_once(part, monkeypatch):
    graphdef, params = nnx.split(make_layer(part, CONFIG)[0])
    rows = Rows(*(jnp.asarray([*x, x[0]]) for x in (TOKENS, POSITIONS, STARTS, ENDS, WEIGHTS)))
    x_ND, cotangent_ND = np.random.default_rng(3).standard_normal((2, 3 * T, CONFIG.width)).astype(np.float32)

    def objective(params, x_ND):
        y_ND, sums = nnx.merge(graphdef, params)(x_ND, Context(rows, None, None))
        return jnp.vdot(cotangent_ND, y_ND) + sum(sums.losses.values()), (y_ND, sums)

    results = []
    for rows_at_once in (3, 2, 1):
        monkeypatch.setattr("jaxformer.parts.hybrid_attention._TOKENS_AT_ONCE", rows_at_once * T)
        gradients, found = jax.jit(jax.grad(lambda *of: objective(*of), argnums=(0, 1), has_aux=True))(params, x_ND)
        results.append(jax.tree.leaves((found, gradients)))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            np.testing.assert_allclose(same, one, rtol=0, atol=1e-6 * max(1, np.abs(one).max()))


def test_a_rotary_width_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"rotary_width \(8\) must be even, and at most the head width \(6\)"):
        HeavilyCompressed(window=2, group=2, rotary_width=8).make(CONFIG, rngs=nnx.Rngs(params=0))
