"""CompleteP against the numbers of its table, at its base against the plain model, and over sizes against it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.layers import Kernel, Scale, Table
from jaxformer.model import ModelConfig, Transformer, abstract_model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.parts.complete_p import CompleteP, CompletePResidual, CompletePScaling

pytestmark = pytest.mark.device_free

BASE = ModelConfig(vocabulary_size=24, width=16, depth=2, heads=2, scan_unroll=1)


def sized(width, depth, is_scaled):
    """Returns the model of a size, with heads as wide as the base's."""
    model = dataclasses.replace(BASE, width=width, depth=depth, heads=width // BASE.K)
    if not is_scaled:
        return model
    return dataclasses.replace(model, scaling=CompletePScaling(16, 2), residual=CompletePResidual(2))


def random(seed):
    rng = np.random.default_rng(seed)
    kinds = {
        "embedding": (Table, (7, 5)),
        "blocks": {"kernel": (Kernel, (3, 5, 8)), "scale": (Scale, (3, 5))},
        "final_scale": (Scale, (5,)),
    }
    drawn = jax.tree.map(
        lambda kind: kind[0](jnp.float32(rng.standard_normal(kind[1]))), kinds, is_leaf=lambda x: isinstance(x, tuple)
    )
    return nnx.State(drawn)


def by_name(tree):
    """Returns the arrays of a tree by their own name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")[-1]: np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("width", "depth", "table"),
    [
        (8, 2, {"embedding": (1, 1, 1), "kernel": (1, 1, 1), "scale": (1, 1, 1), "final_scale": (1, 1, 1)}),
        (
            24,
            10,
            {
                "embedding": (1, 1, 1 / 3),
                "kernel": (1 / 3, 3, 1 / 15),
                "scale": (1, 1, 1 / 15),
                "final_scale": (1, 1, 1 / 3),
            },
        ),
    ],
    ids=["base", "3 x 5"],
)
def test_first_update_is_adamws_with_the_multiples_of_the_table(width, depth, table):
    """The table has learning rate, decay and epsilon as multiples of those of the base."""
    config = OptimizerConfig(
        learning_rate=0.2,
        warmup_steps=0,
        weight_decay=0.5,
        epsilon=0.3,
        clip_norm=1e9,
        name=CompleteP(base_width=8, base_depth=2),
    )
    model = ModelConfig(vocabulary_size=9, width=width, depth=depth, heads=2)
    params, gradient, optimizer = random(0), random(1), make_optimizer(config, 11, model)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    updates, params, gradient = map(by_name, (updates, params, gradient))
    assert updates.keys() == table.keys()
    for name, (rate, decay, epsilon) in table.items():
        g, decays = gradient[name], "scale" not in name
        change = g / (np.abs(g) + 0.3 * epsilon) + 0.5 * decay * decays * params[name]
        np.testing.assert_allclose(updates[name], -0.2 * rate * change, rtol=1e-5, atol=1e-7)


@functools.cache
def drawn(width, depth, is_scaled):
    """Returns the module of a size, and logits of it."""
    model = sized(width, depth, is_scaled)
    params = jax.jit(lambda: nnx.state(Transformer(model, rngs=nnx.Rngs(params=0))))()
    return abstract_model(model), params


def logits(module, params):
    tokens, ids, positions = np.random.default_rng(0).integers(1, 24, (1, 9)), np.ones((1, 9)), np.arange(9)[None]
    return jax.jit(lambda params: nnx.merge(nnx.graphdef(module), params)(tokens, ids, positions))(params)


def test_base_is_the_plain_model_and_optimizer_bit_by_bit():
    plain, scaled = drawn(16, 2, False), drawn(16, 2, True)
    jax.tree.map(np.testing.assert_array_equal, plain[1], scaled[1])
    np.testing.assert_array_equal(logits(*plain), logits(*scaled))
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=0)
    updates = []
    for rule in (config, dataclasses.replace(config, name=CompleteP(16, 2))):
        optimizer = make_optimizer(rule, 9, BASE)
        updates.append(optimizer.update(random(1), optimizer.init(random(0)), random(0))[0])
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_model_is_the_plain_one_with_the_multiples_of_the_table():
    """Three times the base's width and five times its depth."""
    (plain, of_plain), (scaled, of_scaled) = drawn(48, 10, False), drawn(48, 10, True)
    kernel, writing = 3**-0.5, 5**0.5  # The plain model draws what writes to the stream smaller by the depth's root.
    multiples = {"qkv": kernel, "up": kernel, "out": kernel * writing, "down": kernel * writing}

    def by_table(path, x, writing=1.0):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")[-1]
        return x * multiples.get(name, 1.0) * (writing if name in ("out", "down") else 1.0)

    expected = jax.tree_util.tree_map_with_path(by_table, of_plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), of_scaled, expected)
    # What is added to the stream is linear in the matrices that write to it, and logits are in the features.
    fifth = jax.tree_util.tree_map_with_path(lambda path, x: by_table(path, x, 1 / 5), of_plain)
    np.testing.assert_allclose(logits(scaled, of_scaled), logits(plain, fifth) / 3, rtol=1e-4, atol=1e-6)
