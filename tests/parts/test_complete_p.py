"""CompleteP's optimizer against AdamW with the numbers of its table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.layers import Kernel, Scale, Table
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.parts.complete_p import CompleteP


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
