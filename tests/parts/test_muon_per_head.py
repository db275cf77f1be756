"""Muon per head against Muon of each head's matrix alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.config import UserError
from jaxformer.layers import Kernel, Scale
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, transform_of
from jaxformer.parts.muon_per_head import PerHead

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
# Two heads of queries and one of keys and of values, of 4 features.
MODEL = ModelConfig(vocabulary_size=9, width=6, depth=3, heads=2, key_value_heads=1, head_width=4)


def directions(optimizer, tree, steps=2):
    """Returns the last of some directions."""
    transformation = transform_of(optimizer, CONFIG, MODEL)
    state, update = transformation.init(tree), jax.jit(transformation.update)
    for step in range(steps):
        direction, state = update(jax.tree.map(lambda x, step=step: x + step, tree), state, tree)
    return direction


def make_tree(**shapes):
    rng = np.random.default_rng(0)
    return nnx.State(
        {
            name: (Kernel if len(shape) == 3 else Scale)(jnp.float32(rng.standard_normal(shape)))
            for name, shape in shapes.items()
        }
    )


def test_each_head_is_orthogonalised_as_if_it_were_alone_and_all_else_as_without():
    tree = make_tree(qkv=(3, 6, 16), up=(3, 6, 7), scale=(3, 6))
    ours, plain = directions(PerHead(), tree), directions("muon", tree)
    heads = {f"head_{i}": Kernel(x) for i, x in enumerate(jnp.split(tree["qkv"][...], 4, axis=-1))}
    alone = directions("muon", nnx.State(heads))
    apart = np.concatenate([alone[name][...] for name in heads], axis=-1)
    np.testing.assert_allclose(ours["qkv"][...], apart, rtol=0, atol=2e-5)
    assert not np.allclose(ours["qkv"][...], plain["qkv"][...], atol=0.05)
    for name in ("up", "scale"):
        np.testing.assert_allclose(ours[name][...], plain[name][...], rtol=0, atol=1e-6)


def test_optimizer_that_treats_each_number_by_itself_is_not_changed():
    tree = make_tree(qkv=(3, 6, 16))
    ours, plain = directions(PerHead("adamw"), tree), directions("adamw", tree)
    np.testing.assert_array_equal(ours["qkv"][...], plain["qkv"][...])


def test_model_without_such_a_kernel_is_refused():
    with pytest.raises(UserError, match="PerHead needs a kernel that is named qkv"):
        directions(PerHead(), make_tree(up=(3, 6, 7)))
