"""What layers are made of: kinds of parameters, what a layer receives and returns, norms, activations, rotations.

Nothing here depends on the model's configuration; your own parts are made of the same.

Kernels have the compute dtype, and the matmuls and the residual stream follow. Norms, rotations and logits are float32
regardless, and so are the tables and their gradients: a frequent token's row sums over thousands of tokens, which
bfloat16 cannot (4,096 times 0.01 gives 4 there). The axes are those of `model.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.config import require
from jaxformer.record import Part

# Standard deviation of matrices at initialisation, as in GPT-2 (Radford et al. 2019); those that write to the residual
# stream are divided by the square root of their number. At width 128 and 200 steps this validated 0.15 bits per byte
# better than 1 / sqrt(fan-in).
INITIAL_SCALE = 0.02


class Kernel(nnx.Param):
    """A matrix that multiplies: decayed by the optimizer and cast to the compute dtype."""


class Table(nnx.Param):
    """A matrix that is looked up: decayed by the optimizer, float32 always."""


class Scale(nnx.Param):
    """A vector of per-feature gains: float32 always, never decayed."""


class SelfUpdated(nnx.Param):
    """A parameter that no optimizer moves: a step replaces it by `rule(value, gradient)`; float32 always.

    Pass the rule, `SelfUpdated(value, rule=function)`; a layer may define any gradient for it. It does not count in the
    gradient norm. Example: a bias that balances the load of experts.
    """


def optimized(params: nnx.State) -> nnx.State:
    """Returns the parameters of a tree, or their gradients, that an optimizer updates."""
    return nnx.filter_state(params, nnx.Not(SelfUpdated))


def make_kernel(rngs: nnx.Rngs, fan_in: int, fan_out: int, scale: float = 1.0) -> Kernel:
    """Returns a matrix drawn with a deviation of `scale` x `INITIAL_SCALE`."""
    return Kernel(scale * INITIAL_SCALE * jax.random.normal(rngs.params(), (fan_in, fan_out)))


class Rows(NamedTuple):
    """The tokens of B rows and their places; layers compute all N = B x T tokens as one sequence."""

    tokens_BT: jax.Array
    """int32 ids."""
    positions_BT: jax.Array
    """int32, in the document."""
    starts_BT: jax.Array
    """int32, the first key in the row that a query may see: where its document begins."""
    ends_BT: jax.Array
    """int32, the end of the queries in the row that see a key."""
    weights_BT: jax.Array
    """float32, weight of each token in the loss; 0 at padding."""

    @property
    def document_N(self) -> jax.Array:
        """A number for each token, equal within a document: where the document begins in the whole batch."""
        B, T = self.starts_BT.shape
        return (self.starts_BT + T * jnp.arange(B, dtype=jnp.int32)[:, None]).reshape(-1)


class Context(NamedTuple):
    """What a layer receives beside the stream."""

    rows: Rows
    """Of the batch; in decoding, rows of one token each."""
    rotation_N1K: tuple[jax.Array, jax.Array] | None
    """For `rotate`."""
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """`(q_NHK, k_NGK, v_NGK) -> attended_NHK`: causal, within documents and the layer's window, by the device's
    implementation or from a cache. Logits are scaled by 1 / sqrt(K), and values are as wide as keys.
    """


class Sums(flax.struct.PyTreeNode):
    """What a layer returns beside its output, under names of its own: each a sum over the tokens that have weight.

    Both appear in a step's metrics under their names, by layer, divided by the weight of the batch. They are exact for
    any micro-batches and devices. A layer with nothing to report returns `Sums()`.
    """

    losses: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    """float32 scalars that are added to the objective."""
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    """float32 scalars, or vectors, that are only reported."""


def by_place(**sums: Sums) -> Sums:
    """Returns the sums of several places as one, named PLACE/NAME.

    Raises:
        UserError: one of them gives a loss and a metric one name.
    """
    for place, each in sums.items():
        twice = ", ".join(each.losses.keys() & each.metrics.keys())
        require(not twice, f"the Sums of model.{place} call a loss and a metric {twice}; rename one of them")

    def named(field: str):
        return {
            f"{place}/{name}": x for place, of_place in sums.items() for name, x in getattr(of_place, field).items()
        }

    return Sums(named("losses"), named("metrics"))


# The backward pass recomputes the inside of these from their inputs. Kept by the scan, it was half of a step's memory:
# 24 of 49 GB at 500 million parameters and 16,384 tokens. Between unrolled blocks XLA may still keep it.
_from_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


class Norm(Part):
    """What normalises the stream before each layer, and after the last."""

    def make(self, width: int, epsilon: float) -> nnx.Module:
        """Returns a module from x, of shape (..., width), to x normalised along its last axis."""
        raise NotImplementedError


class RMSNorm(nnx.Module):
    """Divides the last axis by its root mean square, in float32, and scales it by a learned gain.

    An epsilon is added to the mean square, under the root.
    """

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = Scale(jnp.ones(width, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, of any shape (..., width), normalised along its last axis."""
        return _rms_norm(x, self.scale[...], self.epsilon)


class LayerNorm(RMSNorm):
    """Subtracts the last axis's mean, in float32, then applies RMSNorm; without the paper's bias."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, of any shape (..., width), normalised along its last axis."""
        x_float = x.astype(jnp.float32)
        return super().__call__(x_float - jnp.mean(x_float, axis=-1, keepdims=True)).astype(x.dtype)


@functools.partial(_from_inputs, static_argnums=2)
@jax.named_scope("norm")
def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    x_float = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x_float * x_float, axis=-1, keepdims=True) + epsilon)
    return (x_float * inverse * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Activation(Part):
    """The function between the two matmuls of a feed-forward, called with the outputs of the first."""

    matrices: ClassVar[int] = 1
    """How many matrices feed it, each as wide as the feed-forward."""

    def __call__(self, *hidden_NF: jax.Array) -> jax.Array:
        """Returns the features, of one shape with each of the `matrices` arrays."""
        raise NotImplementedError


class GELU(Activation):
    """The tanh approximation (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""

    def __call__(self, hidden_NF):
        """Returns the activation of one array."""
        return jax.nn.gelu(hidden_NF)


class SquaredReLU(Activation):
    """So et al. 2021, arXiv 2109.08668."""

    def __call__(self, hidden_NF):
        """Returns the activation of one array."""
        return jnp.square(jax.nn.relu(hidden_NF))


class SwiGLU(Activation):
    """A gate of SiLU (Shazeer 2020, arXiv 2002.05202): equal parameters need 2/3 of the width."""

    matrices: ClassVar[int] = 2

    def __call__(self, gate_NF, value_NF):
        """Returns the gated values."""
        return jax.nn.silu(gate_NF) * value_NF


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({"gelu": GELU(), "relu2": SquaredReLU(), "swiglu": SwiGLU()})


def find_activation(activation: str | Activation) -> Activation:
    """Returns an activation by its name, or as it is."""
    return ACTIVATIONS[activation] if isinstance(activation, str) else activation


@functools.partial(_from_inputs, static_argnums=0)
def activate(activation: Activation, hidden_NX: jax.Array) -> jax.Array:
    """Returns the activation of features that lie side by side, X = `matrices` x F."""
    return activation(*jnp.split(hidden_NX, activation.matrices, axis=-1))


def rotate(x_NHK: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Rotates the pairs (i, i + K / 2) of the last axis by their position's angle, in float32."""
    if rotation is None:
        return x_NHK
    cos_N1k, sin_N1k = rotation
    x_NHK, half, dtype = x_NHK.astype(jnp.float32), x_NHK.shape[-1] // 2, x_NHK.dtype
    first, second = x_NHK[..., :half], x_NHK[..., half:]
    turned = jnp.concatenate([first * cos_N1k - second * sin_N1k, second * cos_N1k + first * sin_N1k], axis=-1)
    return turned.astype(dtype)


def unembed(
    features_ND: jax.Array, unembedding_VD: jax.Array, soft_cap: float = 0.0, token_count: int | None = None
) -> jax.Array:
    """Returns float32 `logits_NV`.

    Args:
        soft_cap: c in c * tanh(logit / c); 0 for none.
        token_count: ids at and beyond it have the logit MASKED, and so no probability; None for all. They are
            computed all the same, since a matmul of a multiple of 128 columns is the fastest.
    """
    logits_NV = jnp.einsum("ND,VD->NV", features_ND, unembedding_VD, preferred_element_type=jnp.float32)
    logits_NV = soft_cap * jnp.tanh(logits_NV / soft_cap) if soft_cap else logits_NV
    V = unembedding_VD.shape[0]
    if token_count is None or token_count == V:
        return logits_NV
    return jnp.where(jnp.arange(V)[None, :] < token_count, logits_NV, MASKED)


def where(condition: bool | jax.Array, x: Any, y: Any) -> Any:
    """Returns x or y; a condition known while tracing adds nothing to the program."""
    return (x if condition else y) if isinstance(condition, bool) else jnp.where(condition, x, y)
