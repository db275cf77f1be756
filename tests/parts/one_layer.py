"""A part's module alone, on two packed rows, for its comparison with numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.dispatch import attend
from jaxformer.attention.document_mask import document_bounds
from jaxformer.layers import Context, Rows
from jaxformer.model import make_rotation

# Two rows of documents; 0 is padding.
SEGMENT_IDS = np.array([[1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 2, 2, 0, 0]], np.int32)
B, T = SEGMENT_IDS.shape
STARTS, ENDS = (np.asarray(bound) for bound in document_bounds(jnp.asarray(SEGMENT_IDS)))
POSITIONS = np.arange(T, dtype=np.int32) - STARTS
TOKENS = np.random.default_rng(1).integers(0, 23, (B, T)).astype(np.int32)
WEIGHTS = (SEGMENT_IDS > 0).astype(np.float32)


def make_layer(part, config):
    """Returns the module, and its parameters in float64: so large that each shows, and no gain is 1."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: part.make(config, rngs=nnx.Rngs(params=0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.float32((x.ndim == 1) + 0.4 * rng.standard_normal(x.shape)), params)
    return nnx.merge(graphdef, params), jax.tree.map(np.float64, nnx.to_pure_dict(params))


def make_stream(config):
    """Returns a normed stream (B, T, D)."""
    return np.random.default_rng(2).standard_normal((B, T, config.width)).astype(np.float32)


@functools.partial(nnx.jit, static_argnums=1)
def apply_layer(layer, config, x_BTD):
    """Returns what a module adds to the stream (B, T, D), and its sums."""
    rows = Rows(*map(jnp.asarray, (TOKENS, POSITIONS, STARTS, ENDS, WEIGHTS)))

    def attend_rows(*qkv):
        of_rows = (x.reshape(B, T, *x.shape[1:]) for x in qkv)
        return attend(*of_rows, rows.starts_BT, rows.ends_BT, implementation="xla").reshape(qkv[0].shape)

    rotation = make_rotation(config, rows.positions_BT.reshape(-1), config.K)
    y_ND, sums = layer(x_BTD.reshape(B * T, -1), Context(rows, rotation, attend_rows))
    return y_ND.reshape(x_BTD.shape), sums


def rms_norm(x, scale, epsilon):
    """Returns x normalised along its last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def rope(x, position, base):
    """Returns a vector with its pairs (i, i + R / 2) turned by a position's angles."""
    r = len(x) // 2
    turned = (x[:r] + 1j * x[r:]) * np.exp(1j * position * base ** -(np.arange(r) / r))
    return np.concatenate([turned.real, turned.imag])
