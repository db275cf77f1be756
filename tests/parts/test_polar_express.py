"""Polar Express against the published coefficients, linear programming and singular value decompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import linprog

from jaxformer.config import UserError
from jaxformer.layers import Kernel
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.parts.polar_express import PolarExpress, best_quintic, coefficients

# Amsel et al. 2025, listing 1, for singular values from 1e-3 on: before all but the last are shrunk by 1.01.
PUBLISHED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def test_coefficients_are_the_published_ones():
    shrunk = np.array(coefficients(8, 1e-3)[:-1]) * 1.01 ** np.array([1, 3, 5])
    np.testing.assert_allclose(shrunk, PUBLISHED[:-1], rtol=1e-6)
    np.testing.assert_allclose(coefficients(8, 1e-3)[-1], PUBLISHED[-1], rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.024, 1.0), (0.3, 1.7), (0.9, 1.1)])
def test_no_odd_quintic_is_nearer_to_one_over_the_interval(low, high):
    x = np.linspace(low, high, 2000)
    powers = np.stack([x, x**3, x**5], axis=1)
    # The least error e with -e <= polynomial(x) - 1 <= e, over (a, b, c, e).
    bounds = np.block([[powers, -np.ones((2000, 1))], [-powers, -np.ones((2000, 1))]])
    sides = np.concatenate([np.ones(2000), -np.ones(2000)])
    least = linprog([0, 0, 0, 1], A_ub=bounds, b_ub=sides, bounds=[(None, None)] * 3 + [(0, None)]).fun
    assert np.max(np.abs(powers @ best_quintic(low, high) - 1)) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize(("iterations", "error"), [(5, 0.148), (8, 1e-5)])
def test_direction_of_a_kernel_is_near_the_polar_factor_layer_by_layer(iterations, error):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, muon_momentum=0.0)
    optimizer = PolarExpress(iterations).transform(config, ModelConfig(vocabulary_size=9, width=8, depth=2, heads=2))
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.standard_normal((2, 5, 8)), full_matrices=False)
    singular = np.array([[1.0, 0.3, 0.1, 0.01, 0.002], [1.0, 0.9, 0.8, 0.7, 0.6]])
    kernels = nnx.State({"kernel": Kernel(jnp.float32(u * singular[:, None] @ v))})
    direction = jax.jit(lambda tree: optimizer.update(tree, optimizer.init(tree))[0])(kernels)["kernel"][...]
    # Muon's scale makes the root mean square of an orthogonal matrix 0.2.
    np.testing.assert_allclose(direction / (0.2 * 8**0.5), u @ v, rtol=0, atol=error)
    ours = np.linalg.svd(direction / (0.2 * 8**0.5), compute_uv=False)
    assert np.max(np.abs(ours - 1)) < error


def test_singular_values_cannot_start_from_nothing():
    with pytest.raises(UserError, match=r"PolarExpress.lowest \(0.0\) must be above 0 and below 1"):
        PolarExpress(lowest=0.0)
