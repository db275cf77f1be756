"""Latent attention against numpy, by the formulas of its paper."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from parts.one_layer import POSITIONS, STARTS, B, apply_layer, make_layer, make_stream, rms_norm, rope

from jaxformer.config import UserError
from jaxformer.model import ModelConfig
from jaxformer.parts.latent_attention import LatentAttention

CONFIG = ModelConfig(vocabulary_size=23, width=12, depth=1, heads=3, head_width=6, norm_epsilon=0.03)


def numpy_latent_attention(p, part, config, x_TD, positions, starts):
    """The attention of one row, head by head and query by query."""
    H, K, rank, R = config.heads, config.K, part.key_value_rank, part.rotary_width or config.K // 4 * 2
    C, epsilon, base = K - R, config.norm_epsilon, config.rope_base
    down = x_TD @ p["down"]
    key_values = rms_norm(down[:, :rank], p["key_value_norm"]["scale"], epsilon) @ p["key_value"]
    of_query = rms_norm(down[:, rank + R :], p["query_norm"]["scale"], epsilon) if part.query_rank else x_TD
    shared = [rope(k, at, base) for k, at in zip(down[:, rank : rank + R], positions, strict=True)]
    queries = (of_query @ p["query"]).reshape(len(x_TD), H, K)
    contents, values = np.split(key_values.reshape(len(x_TD), H, C + K), [C], axis=2)
    attended = np.zeros((len(x_TD), H, K))
    for t, h in np.ndindex(len(x_TD), H):
        q, seen = queries[t, h], range(starts[t], t + 1)
        rotated = rope(q[C:], positions[t], base)
        weights = np.exp([(q[:C] @ contents[s, h] + rotated @ shared[s]) / np.sqrt(K) for s in seen])
        attended[t, h] = weights / weights.sum() @ values[seen, h]
    return attended.reshape(len(x_TD), H * K) @ p["output"]


@pytest.mark.parametrize("part", [LatentAttention(5), LatentAttention(7, query_rank=5, rotary_width=2)], ids=str)
def test_it_equals_numpy(part):
    layer, params = make_layer(part, CONFIG)
    x_BTD = make_stream(CONFIG)
    y_BTD, _ = apply_layer(layer, CONFIG, x_BTD)
    for b in range(B):
        expected = numpy_latent_attention(params, part, CONFIG, np.float64(x_BTD[b]), POSITIONS[b], STARTS[b])
        np.testing.assert_allclose(y_BTD[b], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("rotary_width", "key_value_heads", "message"),
    [
        (8, 0, r"rotary_width \(8\) must be even, and at most the head width \(6\)"),
        (2, 1, "leave model.key_value_heads at 0"),
    ],
)
def test_what_does_not_fit_is_refused(rotary_width, key_value_heads, message):
    config = dataclasses.replace(CONFIG, key_value_heads=key_value_heads)
    with pytest.raises(UserError, match=message):
        LatentAttention(5, rotary_width=rotary_width).make(config, rngs=nnx.Rngs(params=0))
