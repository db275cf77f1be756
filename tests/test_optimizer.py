"""The schedule worked by hand, and the optimizer against AdamW written out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxformer.config import UserError
from jaxformer.model import Kernel, ModelConfig, Scale, Transformer
from jaxformer.optimizer import OptimizerConfig, make_optimizer, make_schedule

FLOAT32 = 1e-6
CONFIG = OptimizerConfig(learning_rate=0.2, warmup_steps=4, final_learning_rate_share=0.1)


# Of the peak: step 0 has 1 / (warmup + 1), the last step the final share, halfway between them their mean.
@pytest.mark.parametrize(
    ("warmup_steps", "steps", "shares"),
    [
        (4, 11, {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1.0, 7: 0.55, 10: 0.1}),
        (4, 11, {5: 0.1 + 0.45 * (1 + math.cos(math.pi / 6))}),
        (0, 11, {0: 1.0, 5: 0.55, 10: 0.1}),
        (1, 3, {0: 0.5, 1: 1.0, 2: 0.1}),
        (4, 5, {0: 0.2, 3: 0.8, 4: 1.0}),
        (0, 1, {0: 1.0}),
    ],
)
def test_schedule_equals_the_values_worked_by_hand(warmup_steps, steps, shares):
    schedule = make_schedule(dataclasses.replace(CONFIG, warmup_steps=warmup_steps), steps)
    for step, share in shares.items():
        assert float(schedule(step)) == pytest.approx(0.2 * share, rel=FLOAT32), step


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_steps \(4\) must be less than training.steps \(4\)"):
        make_schedule(CONFIG, 4)


def test_decay_shrinks_matrices_by_learning_rate_times_decay_and_nothing_else():
    model = ModelConfig(
        vocabulary_size=7, width=12, depth=3, heads=2, qk_norm=True, tied_embeddings=False, learned_positions=5
    )
    shapes = jax.eval_shape(lambda: nnx.state(Transformer(model, rngs=nnx.Rngs(params=0))))
    params = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).uniform(1, 2, leaf.shape)), shapes)
    optimizer = make_optimizer(dataclasses.replace(CONFIG, weight_decay=0.5), steps=11)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    decayed = set()
    for (path, update), leaf in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True):
        if np.any(update != 0):
            decayed.add(jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"))
            # At step 0 the rate is a fifth of the peak.
            np.testing.assert_allclose(update, -0.2 / 5 * 0.5 * leaf, rtol=FLOAT32)
    assert decayed == {
        "embedding",
        "position_embedding",
        "unembedding",
        "blocks.qkv",
        "blocks.attention_out",
        "blocks.up",
        "blocks.down",
    }


def make_params():
    rng = np.random.default_rng(0)
    kernel, scale = rng.standard_normal((3, 5)), rng.standard_normal(5)
    return nnx.State({"kernel": Kernel(jnp.float32(kernel)), "scale": Scale(jnp.float32(scale))})


def test_gradient_is_clipped_to_the_global_norm():
    params = make_params()
    optimizer = make_optimizer(dataclasses.replace(CONFIG, clip_norm=0.5, b1=0.75), steps=11)
    direction = jax.tree.map(lambda x: x / optax.tree.norm(params), params)
    for norm, clipped in [(40.0, 0.5), (0.3, 0.3)]:
        grads = jax.tree.map(lambda x, norm=norm: x * norm, direction)
        _, opt_state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        # The first moment is a quarter of the gradient that AdamW has seen.
        first_moment = optax.tree_utils.tree_get(opt_state, "mu")
        for moment, gradient in zip(jax.tree.leaves(first_moment), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(moment, 0.25 * clipped / norm * gradient, rtol=1e-5)


def test_optimizer_equals_adamw_written_out():
    config = dataclasses.replace(CONFIG, b1=0.7, b2=0.9, epsilon=0.01, weight_decay=0.3, clip_norm=2.0)
    params, steps = make_params(), 11
    optimizer, schedule = make_optimizer(config, steps), make_schedule(config, steps)
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = {name: np.float64(x[...]) for name, x in params.items()}
    first, second = ({name: np.zeros_like(x) for name, x in expected.items()} for _ in range(2))
    rng = np.random.default_rng(1)
    for step in range(steps):
        grads = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in expected.items()}
        updates, opt_state = update(
            jax.tree.unflatten(jax.tree.structure(params), list(grads.values())), opt_state, params
        )
        params = optax.apply_updates(params, updates)
        norm = math.sqrt(sum(np.sum(g**2) for g in grads.values()))
        for name, decay in (("kernel", 0.3), ("scale", 0.0)):
            g = grads[name] * min(1, 2.0 / norm)
            first[name] = 0.7 * first[name] + 0.3 * g
            second[name] = 0.9 * second[name] + 0.1 * g**2
            unbiased = first[name] / (1 - 0.7 ** (step + 1)), second[name] / (1 - 0.9 ** (step + 1))
            change = unbiased[0] / (np.sqrt(unbiased[1]) + 0.01) + decay * expected[name]
            expected[name] = expected[name] - float(schedule(step)) * change
            np.testing.assert_allclose(params[name][...], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.1}, r"learning_rate \(-0.1\) must be positive and finite"),
        ({"learning_rate": 0.0}, r"learning_rate \(0.0\) must be positive and finite"),
        ({"learning_rate": math.nan}, r"learning_rate \(nan\) must be positive and finite"),
        ({"learning_rate": math.inf}, r"learning_rate \(inf\) must be positive and finite"),
        ({"epsilon": 0.0}, r"epsilon \(0.0\) must be positive and finite"),
        ({"clip_norm": 0.0}, r"clip_norm \(0.0\) must be positive and finite"),
        ({"b1": 1.0}, r"b1 \(1.0\) must lie in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 \(-0.1\) must lie in \[0, 1\)"),
        ({"warmup_steps": -1}, r"warmup_steps \(-1\) must not be negative"),
        ({"final_learning_rate_share": 1.1}, r"final_learning_rate_share \(1.1\) must lie in \[0, 1\]"),
        ({"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be finite and not negative"),
        ({"weight_decay": math.inf}, r"weight_decay \(inf\) must be finite and not negative"),
        ({"warmup_steps": 1.5}, "OptimizerConfig.warmup_steps must be of type int, not 1.5"),
        ({"learning_rate": "0.1"}, "OptimizerConfig.learning_rate must be of type float, not '0.1'"),
    ],
)
def test_optimizer_that_cannot_be_is_refused_with_the_rule_and_the_value(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
