"""Hyper-connections: the residual stream has several lanes, which layers read, mix and write by learned weights.

A layer reads a weighted sum of the lanes; the lanes are mixed with each other; and the layer's output is added to each
lane with a weight. `HyperConnections` (Zhu et al. 2024, arXiv 2409.19606) leaves the weights free.
`ManifoldHyperConnections` (Xie et al. 2025, arXiv 2512.24880) makes the mixing matrix doubly stochastic, so that a deep
stack neither grows nor shrinks the stream.

Both start as the plain model: all lanes are the embedding, and every layer reads a mean of them and adds its output to
each. At the end the mean of the lanes is taken, where the papers take the sum: the following norm removes the factor
except for its epsilon, and the start equals the plain model exactly.

Axes: J lane that is read, I lane that is written; and as in `model`. X is what is of no other name.
"""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.config import Bounds, PositiveFloat, PositiveInt32, check_fields
from jaxformer.layers import Kernel, RMSNorm, Scale, Sums
from jaxformer.model import ModelConfig, Residual


@dataclass(frozen=True)
class _Lanes(Residual):
    lanes: Annotated[int, Bounds(at_least=2)] = 4
    """Lanes of the stream, each as wide as the model; the papers' n."""

    def __post_init__(self):
        check_fields(self, type(self).__name__)

    def expand(self, x_ND: jax.Array) -> jax.Array:
        """Returns the stream, all of whose lanes are `x_ND`: (N, lanes, D)."""
        return jnp.repeat(x_ND[:, None], self.lanes, axis=1)

    def collapse(self, stream: jax.Array) -> jax.Array:
        """Returns the mean of the lanes."""
        return stream.astype(jnp.float32).mean(axis=1).astype(stream.dtype)


@dataclass(frozen=True)
class HyperConnections(_Lanes):
    """Free weights: each is a static one plus a small one that depends on the token."""

    dynamic: bool = True
    """Whether the weights depend on the token; static weights alone are the paper's SHC."""
    initial_scale: PositiveFloat = 0.01
    """Initial factor of the tanh of the part that depends on the token."""

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs, index: jax.Array) -> nnx.Module:
        """Returns the connections of one layer, which at first reads lane `index` modulo the lanes."""
        return _Free(self, config, index)


@dataclass(frozen=True)
class ManifoldHyperConnections(_Lanes):
    """Weights that are positive: a mixing matrix whose rows and columns sum to 1, reads below 1 and writes below 2.

    The initial static weights are ours: a layer reads half of lane `index` modulo the lanes and half of the mean of
    all, and a lane passes 0.05 of what it keeps to each other lane. Lanes differ later because different layers read
    them.
    """

    iterations: PositiveInt32 = 20
    """Iterations of Sinkhorn-Knopp, each one normalisation of rows and one of columns; the paper's t_max."""
    initial_scale: PositiveFloat = 0.01
    """Initial factor of the part that depends on the token."""

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs, index: jax.Array) -> nnx.Module:
        """Returns the connections of one layer."""
        return _OnManifold(self, config, index)


class _Connections(nnx.Module):
    """Weights are float32, and so are the sums that they weight."""

    def __call__(self, stream_NJD: jax.Array, layer) -> tuple[jax.Array, Sums]:
        """Returns the stream after a layer, and the layer's sums."""
        read_NJ, mix_NJI, write_NI = self.weights(stream_NJD)
        x_ND = (read_NJ[:, :, None] * stream_NJD).sum(axis=1).astype(stream_NJD.dtype)
        y_ND, sums = layer(x_ND)
        mixed_NID = (mix_NJI[:, :, :, None] * stream_NJD[:, :, None]).sum(axis=1)
        return (mixed_NID + write_NI[:, :, None] * y_ND[:, None]).astype(stream_NJD.dtype), sums

    def weights(self, stream_NJD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the weights by which lanes are read, mixed and written; N may be 1, for all tokens."""
        raise NotImplementedError


class _Free(_Connections):
    def __init__(self, part: HyperConnections, config: ModelConfig, index: jax.Array):
        J, self.is_dynamic = part.lanes, part.dynamic
        self.read = Scale(jax.nn.one_hot(index % J, J))
        self.mix = Scale(jnp.eye(J))
        self.write = Scale(jnp.ones(J))
        if part.dynamic:
            self.norm = RMSNorm(config.width, config.norm_epsilon)
            self.of_token = Kernel(jnp.zeros((config.width, J + 2)))
            self.scale = Scale(jnp.full(2, part.initial_scale))

    def weights(self, stream_NJD):
        read_1J, mix_1JI, write_1I = self.read[...][None], self.mix[...][None], self.write[...][None]
        if not self.is_dynamic:
            return read_1J, mix_1JI, write_1I
        free_NJX = jnp.tanh(_product(self.norm(stream_NJD), self.of_token[...]))
        of_lanes, of_write = self.scale[...]
        read_NJ, mix_NJI, write_NI = free_NJX[:, :, 0], free_NJX[:, :, 2:], free_NJX[:, :, 1]
        return read_1J + of_lanes * read_NJ, mix_1JI + of_lanes * mix_NJI, write_1I + of_write * write_NI


class _OnManifold(_Connections):
    def __init__(self, part: ManifoldHyperConnections, config: ModelConfig, index: jax.Array):
        J, self.iterations = part.lanes, part.iterations
        read_J = (jax.nn.one_hot(index % J, J) + 1 / J) / 2
        self.read = Scale(jnp.log(read_J / (1 - read_J)))
        self.mix = Scale(np.log(0.05) * (1 - jnp.eye(J)))
        self.write = Scale(jnp.zeros(J))
        self.norm = RMSNorm(J * config.width, config.norm_epsilon)
        self.of_token = Kernel(jnp.zeros((J * config.width, 2 * J + J * J)))
        self.scale = Scale(jnp.full(3, part.initial_scale))

    def weights(self, stream_NJD):
        N, J, _ = stream_NJD.shape
        free_NX = _product(self.norm(stream_NJD.reshape(N, -1)), self.of_token[...])
        of_read, of_mix, of_write = self.scale[...]
        read_NJ, write_NI, mix_NX = jnp.split(free_NX, [J, 2 * J], axis=1)
        mix_NJI = self.mix[...][None] + of_mix * mix_NX.reshape(N, J, J)
        return (
            jax.nn.sigmoid(self.read[...][None] + of_read * read_NJ),
            doubly_stochastic(mix_NJI, self.iterations),
            2 * jax.nn.sigmoid(self.write[...][None] + of_write * write_NI),
        )


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


@functools.partial(jax.checkpoint, static_argnums=1, prevent_cse=False)
def doubly_stochastic(free_NJI: jax.Array, iterations: int) -> jax.Array:
    """Returns positive matrices whose rows and columns sum to 1: exponentials, normalised (Sinkhorn & Knopp 1967).

    The weights of lane I are normalised last, and so sum to 1 after any number of iterations: equal lanes stay equal.
    The backward pass computes the iterations again.
    """

    def normalise(mix_NJI, _):
        mix_NJI = mix_NJI / mix_NJI.sum(axis=2, keepdims=True)
        return mix_NJI / mix_NJI.sum(axis=1, keepdims=True), None

    # Values below exp(-20) of the largest of their row count as that: sums and their squares stay above 0. A factor of
    # a row changes nothing, and the gradient of a maximum is 0 / 0 if its operand is recomputed.
    largest_NJ1 = jax.lax.stop_gradient(free_NJI.max(axis=2, keepdims=True))
    relative_NJI = jnp.maximum(free_NJI - largest_NJ1, -20)
    return jax.lax.scan(normalise, jnp.exp(relative_NJI), None, length=iterations)[0]
