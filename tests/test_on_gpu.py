"""What only a GPU can show: that compiled kernels compute what interpreted ones do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention import flash
from jaxformer.attention.dispatch import TOLERANCES, Implementation
from jaxformer.attention.document_mask import document_bounds, limit_window
from jaxformer.attention.support import AttentionShape, why_not
from jaxformer.attention.trial import attention_error, forward_backward, random_inputs
from jaxformer.devices.device import compute_capability
from jaxformer.loss_kernels import Kernels, candidate_tiles
from jaxformer.model import ModelConfig
from jaxformer.run import sanity_check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*Triton:DeprecationWarning"),
]

XLA = Implementation("xla")
B, T, H = 4, 700, 6


def make_bounds(T, seed=0, window=None):
    ids = np.cumsum(np.random.default_rng(seed).random((B, T)) < 6 / T, axis=1).astype(np.int32)
    bounds = document_bounds(jnp.asarray(ids))
    return limit_window(*bounds, window) if window else bounds


@pytest.mark.parametrize("window", [None, 130])
@pytest.mark.parametrize("G", [1, 2, 6])
@pytest.mark.parametrize("K", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_compiled_flash_attention_equals_xla_forward_and_backward(dtype, K, G, window):
    inputs = random_inputs(B, T, H, G, K, jnp.dtype(dtype))
    assert attention_error(Implementation("pallas"), XLA, inputs, *make_bounds(T, window=window)) < TOLERANCES[dtype]


@pytest.mark.parametrize("K", [64, 128])
def test_every_tile_that_fits_the_device_computes_the_same(K):
    candidates = flash.candidate_tiles(K, compute_capability(jax.devices()[0]))
    inputs = random_inputs(B, T, H, H, K, jnp.bfloat16)
    fitting = 0
    for i in range(max(map(len, candidates))):
        tiles = flash.Tiles(*(tiles[i % len(tiles)] for tiles in candidates))
        try:
            error = attention_error(Implementation("pallas", tiles), XLA, inputs, *make_bounds(T))
        except jax.errors.JaxRuntimeError as failure:
            assert "shared memory" in str(failure)
        else:
            fitting += 1
            assert error < TOLERANCES["bfloat16"], tiles
    assert fitting


@pytest.mark.parametrize("K", [64, 128])
def test_the_same_inputs_give_the_same_bits_five_times(K):
    inputs = random_inputs(B, 2048, H, 2, K, jnp.bfloat16)
    first = forward_backward(Implementation("pallas"), *inputs, *make_bounds(2048))
    for _ in range(4):
        for x, y in zip(first, forward_backward(Implementation("pallas"), *inputs, *make_bounds(2048)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_document_ignores_its_neighbours_exactly():
    starts, ends = document_bounds(jnp.asarray(np.repeat([[1, 2, 3]], B, axis=0).repeat([200, 250, 250], axis=1)))
    inputs = random_inputs(B, T, H, 2, 64, jnp.bfloat16)
    changed = tuple(x.at[:, 200:450].multiply(50) for x in inputs)
    ours = forward_backward(Implementation("pallas"), *inputs, starts, ends)
    for before, after in zip(ours, forward_backward(Implementation("pallas"), *changed, starts, ends), strict=True):
        np.testing.assert_array_equal(before[:, :200], after[:, :200])
        np.testing.assert_array_equal(before[:, 450:], after[:, 450:])


@pytest.mark.parametrize("documents", [1, 5])
def test_cudnn_equals_xla_where_it_can_run(documents):
    shape = AttentionShape(B, 512, H, H, 64, jnp.bfloat16, documents_per_row=documents)
    if refused := why_not("cudnn_packed", shape, jax.devices()[0]):
        pytest.skip(refused)
    lengths = [470, 42] if documents == 1 else [100, 1, 211, 150, 8, 42]
    ids = np.repeat([range(len(lengths))], B, axis=0).repeat(lengths, axis=1)
    starts, ends = document_bounds(jnp.asarray(ids))
    inputs = random_inputs(*shape[:6])
    implementation = Implementation("cudnn_packed", segments=documents + 1)
    assert attention_error(implementation, XLA, inputs, starts, ends) < TOLERANCES["bfloat16"]


@pytest.mark.parametrize("tile", candidate_tiles(0.0, None), ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("V", "width", "options"), [(32768, 384, {}), (50304, 640, {"z_loss": 1e-3}), (300, 48, {})])
def test_compiled_loss_equals_xla_forward_and_backward(monkeypatch, V, width, options, dtype, tile):
    monkeypatch.setattr(sanity_check, "find_kernels", lambda *_: Kernels(tile))
    for soft_cap, token_count in ((0.0, V), (15.0, V - 47)):
        config = ModelConfig(
            vocabulary_size=V, width=width, depth=1, heads=1, logit_soft_cap=soft_cap, loss="pallas", **options
        )
        assert sanity_check.check_loss(config, dtype, token_count).startswith("pallas")
