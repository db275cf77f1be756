"""Cautious decay against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.layers import Kernel, Scale, Table
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.parts.cautious_decay import CautiousDecay


def random(seed):
    rng = np.random.default_rng(seed)
    kinds = {"embedding": (Table, (7, 5)), "kernel": (Kernel, (3, 5, 8)), "scale": (Scale, (3, 5))}
    return nnx.State({name: kind(jnp.float32(rng.standard_normal(shape))) for name, (kind, shape) in kinds.items()})


def test_matrices_decay_where_the_update_shrinks_them_too_and_nowhere_else():
    config = OptimizerConfig(
        learning_rate=0.2, warmup_steps=0, weight_decay=0.5, epsilon=0.1, clip_norm=1e9, decay=CautiousDecay()
    )
    params, gradient, optimizer = random(0), random(1), make_optimizer(config, 11)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    for name, parameter in params.items():
        x, g = parameter[...], gradient[name][...]
        direction = g / (np.abs(g) + 0.1)  # AdamW's first.
        decay = 0.0 if name == "scale" else 0.5 * np.where(direction * x >= 0, x, 0)
        np.testing.assert_allclose(updates[name][...], -0.2 * (direction + decay), rtol=1e-5, atol=1e-7)
