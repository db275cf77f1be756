"""Hyper-connections against the formulas of the papers, one token at a time in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.layers import Sums
from jaxformer.model import ModelConfig
from jaxformer.parts.hyper_connections import HyperConnections, ManifoldHyperConnections, doubly_stochastic

N, J, D, INDEX = 5, 3, 7, 4
MODEL = ModelConfig(vocabulary_size=32, width=D, depth=2, heads=1, head_width=6, norm_epsilon=0.02)
PARTS = {
    "static": HyperConnections(lanes=J, dynamic=False),
    "dynamic": HyperConnections(lanes=J),
    "manifold": ManifoldHyperConnections(lanes=J, iterations=3),
}


def numpy_weights(name, p, stream_JD):
    """Returns what is read of each lane, how much of each lane (row) goes to each, and what is written."""

    def normed(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + MODEL.norm_epsilon) * p["norm"]["scale"]

    if name == "static":
        return p["read"], p["mix"], p["write"]
    if name == "dynamic":
        read_J, write_J, *mix_IJ = np.tanh(normed(stream_JD) @ p["of_token"]).T
        of_lanes, of_write = p["scale"]
        return (
            p["read"] + of_lanes * read_J,
            p["mix"] + of_lanes * np.array(mix_IJ).T,
            p["write"] + of_write * write_J,
        )
    free = normed(stream_JD.ravel()) @ p["of_token"] * np.repeat(p["scale"][[0, 2, 1]], [J, J, J * J])
    mix_JI = np.exp(p["mix"] + free[2 * J :].reshape(J, J))
    for _ in range(PARTS[name].iterations):
        mix_JI /= mix_JI.sum(axis=1, keepdims=True)
        mix_JI /= mix_JI.sum(axis=0, keepdims=True)
    return 1 / (1 + np.exp(-p["read"] - free[:J])), mix_JI, 2 / (1 + np.exp(-p["write"] - free[J : 2 * J]))


@pytest.mark.parametrize("name", PARTS)
def test_stream_equals_the_formula_for_each_token(name):
    make = PARTS[name].make
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make(MODEL, rngs=nnx.Rngs(0), index=jnp.int32(INDEX))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), params)
    stream_NJD = rng.standard_normal((N, J, D)).astype(np.float32)

    @jax.jit
    def connected(params, stream_NJD):
        return nnx.merge(graphdef, params)(stream_NJD, lambda x_ND: (jnp.sin(x_ND), Sums(metrics={"of": x_ND[0]})))

    after_NJD, sums = connected(params, stream_NJD)
    p = jax.tree.map(np.float64, nnx.to_pure_dict(params))
    for token, stream_JD in enumerate(np.float64(stream_NJD)):
        read_J, mix_JI, write_I = numpy_weights(name, p, stream_JD)
        expected_ID = mix_JI.T @ stream_JD + np.outer(write_I, np.sin(read_J @ stream_JD))
        np.testing.assert_allclose(after_NJD[token], expected_ID, rtol=0, atol=1e-5)
        if token == 0:
            np.testing.assert_allclose(sums.metrics["of"], read_J @ stream_JD, rtol=0, atol=1e-5)


def test_mixing_matrices_are_doubly_stochastic_and_whatever_they_are_made_of_finite():
    @jax.jit
    def mixed_and_gradient(free_NJI):
        mixed_NJI, pull = jax.vjp(lambda free: doubly_stochastic(free, 20), free_NJI)
        return mixed_NJI, *pull(jnp.ones_like(mixed_NJI).at[:, 0].set(2.0))

    free_NJI = np.random.default_rng(0).standard_normal((N, J, J)).astype(np.float32)
    mixed_NJI, gradient_NJI = mixed_and_gradient(free_NJI)
    assert mixed_NJI.min() > 0 and np.abs(gradient_NJI).max() > 1e-9
    np.testing.assert_allclose(mixed_NJI.sum(axis=1), np.ones((N, J)), atol=1e-6)
    np.testing.assert_allclose(mixed_NJI.sum(axis=2), np.ones((N, J)), atol=1e-4)
    assert all(np.isfinite(x).all() for x in mixed_and_gradient(300 * free_NJI))
