"""FLOPs counted by hand, parameters by building the model, and the peaks of devices."""

import numpy as np
import pytest

from jaxformer.devices.device import peak_tflops
from jaxformer.flops import (
    active_parameters,
    document_flops_per_token,
    embedding_parameters,
    forward_operations,
    kernel_parameters,
    parameter_count,
    training_flops_per_token,
)
from jaxformer.model import ModelConfig


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
    assert kernel_parameters(config) == matrices - 10 * 8
    assert forward_operations(config, 7).hidden == 2 * 3 * (feed_forward - 160)
    assert active_parameters(config, 7) == parameter_count(config)
    # Forward, per token: 2 per matrix element, and for each layer 2 x 12 for each of the row's 7 / 2 keys, for the
    # logits and for the mix of the values. The backward pass takes twice that.
    forward = 2 * matrices + 3 * 2 * (2 * 12 * 7 / 2)
    assert training_flops_per_token(config, 7) == 3 * forward


# V D = 80; a block's matrices are 8 x 24, 8 x 8, 8 x 32 and 32 x 8, and its norms have 16 gains; the last norm has 8.
@pytest.mark.parametrize(
    ("changes", "blocks", "rest"),
    [
        ({}, 784, 88),
        ({"key_value_heads": 1}, 784 - 8 * 8, 88),
        ({"activation": "swiglu", "feed_forward_width": 20}, 784 - 512 + 480, 88),
        ({"qk_norm": True, "norm": "layernorm"}, 784 + 8, 88),
        ({"tied_embeddings": False, "learned_positions": 9}, 784, 88 + 80 + 72),
        ({"sliding_window": 3, "window_pattern": "SSL"}, 784, 88),
    ],
)
def test_parameter_count_equals_the_count_by_hand(changes, blocks, rest):
    config = ModelConfig(**{"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2} | changes)
    assert parameter_count(config) == 3 * blocks + rest
    assert embedding_parameters(config) == (80 if config.tied_embeddings else 160)


# Of a row of 8 a query sees 4 keys on average. Where it sees no more than w, the first w queries see w / 2 on average,
# and the other 8 - w see w.
@pytest.mark.parametrize(
    ("window", "keys"), [(0, 4), (1, 7.5 / 8), (2, (2 + 6 * 2) / 8), (6, (18 + 2 * 6) / 8), (8, 4), (9, 4), (100, 4)]
)
def test_flops_with_a_sliding_window_equal_the_count_by_hand(window, keys):
    sizes = {"vocabulary_size": 10, "width": 8, "depth": 3, "heads": 2, "key_value_heads": 1, "head_width": 6}
    config = ModelConfig(**sizes, feed_forward_width=20, sliding_window=window)
    assert training_flops_per_token(config, 8) == 3 * (2 * 1904 + 3 * 2 * (2 * 12 * keys))


def test_layers_without_the_window_count_all_keys():
    sizes = {"vocabulary_size": 10, "width": 8, "depth": 4, "heads": 2, "sliding_window": 2}
    counts = [training_flops_per_token(ModelConfig(**sizes, window_pattern=p), 8) for p in ("", "SL", "SSL", "L")]
    in_window, mixed, third, full = (count - counts[0] for count in counts)
    assert (in_window, mixed, third) == (0, full / 2, full / 4)
    assert full == 3 * 4 * 2 * (2 * 8 * (4 - (2 + 6 * 2) / 8))


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
        ("Tesla T4", 8.1),
        ("cpu", None),
    ],
)
def test_peak_is_that_of_the_data_sheet_or_unknown(device_kind, expected):
    assert peak_tflops(device_kind) == expected
