"""Value embeddings against numpy."""

import numpy as np
import pytest
from flax import nnx
from parts.one_layer import POSITIONS, STARTS, TOKENS, B, T, apply_layer, make_layer, make_stream, rope

from jaxformer.config import UserError
from jaxformer.model import ModelConfig
from jaxformer.parts.value_embeddings import ValueEmbeddings

CONFIG = ModelConfig(vocabulary_size=23, width=12, depth=1, heads=4, key_value_heads=2, head_width=6)


def test_it_equals_numpy():
    layer, p = make_layer(ValueEmbeddings(gate_features=5), CONFIG)
    x_BTD, (H, G, K) = make_stream(CONFIG), (CONFIG.heads, CONFIG.G, CONFIG.K)
    y_BTD, _ = apply_layer(layer, CONFIG, x_BTD)
    for b in range(B):
        q, k, v = np.split((x_BTD[b] @ p["attention"]["qkv"]).reshape(T, H + 2 * G, K), [H, H + G], axis=1)
        gate = 2 / (1 + np.exp(-x_BTD[b][:, :5] @ p["gate"]))
        v = v + gate[:, :, None] * p["table"][TOKENS[b]].reshape(T, G, K)
        attended = np.zeros((T, H, K))
        for t, h in np.ndindex(T, H):
            g, seen = h // (H // G), range(STARTS[b, t], t + 1)
            query, keys = rope(q[t, h], POSITIONS[b, t], 1e4), [rope(k[s, g], POSITIONS[b, s], 1e4) for s in seen]
            weights = np.exp(keys @ query / np.sqrt(K))
            attended[t, h] = weights / weights.sum() @ v[seen, g]
        np.testing.assert_allclose(y_BTD[b], attended.reshape(T, -1) @ p["attention"]["out"], rtol=0, atol=2e-5)


def test_a_gate_wider_than_the_stream_is_refused():
    with pytest.raises(UserError, match=r"gate_features \(13\) must be at most model.width \(12\)"):
        ValueEmbeddings(gate_features=13).make(CONFIG, rngs=nnx.Rngs(params=0))
