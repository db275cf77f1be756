"""FLOPs counted by hand, parameters by building the model, and the peaks of devices."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from jaxformer.devices.device import peak_tflops
from jaxformer.flops import document_flops_per_token, matmul_parameters, parameter_count, training_flops_per_token
from jaxformer.model import ModelConfig, Transformer


# D = 8, H x K = 2 x 6 = 12, G x K = 6, F = 20, L = 3, V = 10; a block's matrices are 8 x (12 + 2 x 6) into attention,
# 12 x 8 out of it, and 8 x 20 two or three times.
@pytest.mark.parametrize(("activation", "feed_forward"), [("gelu", 320), ("relu2", 320), ("swiglu", 480)])
@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"learned_positions": 9}])
def test_flops_equal_the_count_by_hand(activation, feed_forward, changes):
    config = ModelConfig(
        vocabulary_size=10,
        width=8,
        depth=3,
        heads=2,
        key_value_heads=1,
        head_width=6,
        feed_forward_width=20,
        activation=activation,
        **changes,
    )
    matrices = 3 * (192 + 96 + feed_forward) + 10 * 8
    assert matmul_parameters(config) == matrices
    # Forward, per token: 2 per matrix element, and for each layer 2 x 12 for each of the row's 7 / 2 keys, for the
    # logits and for the mix of the values. The backward pass takes twice that.
    forward = 2 * matrices + 3 * 2 * (2 * 12 * 7 / 2)
    assert training_flops_per_token(config, 7) == 3 * forward


# Every option alone, and every two that change the number.
SIZES = [
    {},
    {"key_value_heads": 1},
    {"head_width": 6},
    {"feed_forward_width": 20},
    {"activation": "swiglu"},
    {"qk_norm": True},
    {"tied_embeddings": False},
    {"learned_positions": 9},
]
NO_SIZES = [{"activation": "relu2"}, {"norm": "layernorm"}, {"sliding_window": 3}, {"logit_soft_cap": 5.0}]


@pytest.mark.parametrize("changes", [a | b for a, b in itertools.combinations(SIZES, 2)] + NO_SIZES, ids=str)
def test_parameter_count_is_that_of_the_model(changes):
    config = ModelConfig(**{"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2} | changes)
    params = jax.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(params=0))))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


# Of a row of 8 a query sees 4 keys on average. Where it sees no more than w, the first w queries see w / 2 on average,
# and the other 8 - w see w.
@pytest.mark.parametrize(
    ("window", "keys"), [(0, 4), (1, 7.5 / 8), (2, (2 + 6 * 2) / 8), (6, (18 + 2 * 6) / 8), (8, 4), (9, 4), (100, 4)]
)
def test_flops_with_a_sliding_window_equal_the_count_by_hand(window, keys):
    sizes = {"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2, "key_value_heads": 1, "head_width": 6}
    config = ModelConfig(**sizes, feed_forward_width=20, sliding_window=window)
    assert training_flops_per_token(config, 8) == 3 * (2 * matmul_parameters(config) + 3 * 2 * (2 * 12 * keys))


# Documents of 3 and 2 tokens and one of 5: their tokens see 1, 2, 3, 1, 2 and 1, 2, 3, 4, 5 keys.
@pytest.mark.parametrize(("window", "keys"), [(0, 24 / 10), (2, 17 / 10), (5, 24 / 10)])
def test_flops_of_documents_equal_the_count_by_hand(window, keys):
    sizes = {"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2, "key_value_heads": 1, "head_width": 6}
    config = ModelConfig(**sizes, feed_forward_width=20, sliding_window=window)
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    # 6 x (3 x (192 + 96 + 320) + 80) and 12 x 3 x 2 x 6 for each key.
    assert document_flops_per_token(config, positions) == pytest.approx(11_424 + 432 * keys)


@pytest.mark.parametrize(
    ("device_kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Tesla T4", 65.0),
        ("cpu", None),
    ],
)
def test_peak_is_that_of_the_data_sheet_or_unknown(device_kind, expected):
    assert peak_tflops(device_kind) == expected
