"""The training step: what does not depend on how it is computed, and that it learns."""

import dataclasses
import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxformer.step
from jaxformer.attention.dispatch import Implementation
from jaxformer.attention.flash import Tiles
from jaxformer.attention.flash_kernels import Tile
from jaxformer.config import UserError
from jaxformer.data.packing import Batch
from jaxformer.loss import LossSums
from jaxformer.model import SAVED, ModelConfig, Transformer
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import (
    TrainingConfig,
    cast_kernels,
    compile_step,
    compute_dtype,
    eval_step,
    gradients,
    init_state,
    train_step,
)

FLOAT32 = 1e-6
B, T, V = 8, 11, 37
MODEL = ModelConfig(vocabulary_size=V, width=12, depth=2, heads=2, feed_forward_width=20, z_loss=1e-3)
# With an epsilon above the gradient the first update is nearly proportional to it; with a small one it would be its
# sign, which hides a wrong scale.
LINEAR = make_optimizer(OptimizerConfig(learning_rate=1.0, warmup_steps=0, epsilon=1.0, clip_norm=1e9), steps=100)
FAST = make_optimizer(OptimizerConfig(learning_rate=0.02, warmup_steps=5), steps=100)
MUON = make_optimizer(OptimizerConfig(learning_rate=0.05, warmup_steps=2, name="muon"), steps=100)


def make_batch(rows=B):
    """Returns rows of 1 to 3 random documents each, most of them padded."""
    rng = np.random.default_rng(0)
    lengths = [rng.multinomial(T - 2, rng.dirichlet([1, 1, 1, 1])) for _ in range(rows)]
    segment_ids = np.stack([np.repeat([1, 2, 3, 0], [n[0] + 2, *n[1:]]) for n in lengths]).astype(np.int32)
    starts = np.stack([[np.flatnonzero(row == i)[0] for i in row] for row in segment_ids]).astype(np.int32)
    ends = np.stack([[np.flatnonzero(row == i)[-1] + 1 for i in row] for row in segment_ids]).astype(np.int32)
    return Batch(
        tokens_BT=rng.integers(0, V, (rows, T), dtype=np.int32),
        targets_BT=rng.integers(0, V, (rows, T), dtype=np.int32),
        loss_weights_BT=(segment_ids > 0).astype(np.float32),
        segment_ids_BT=segment_ids,
        positions_BT=np.arange(T, dtype=np.int32) - starts,
        document_starts_BT=starts,
        document_ends_BT=ends,
    )


@functools.cache
def initial_state():
    """Returns a state with parameters large enough that each of them shows in the gradient of every other."""
    state, rng = init_state(MODEL, LINEAR, seed=0), np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype(np.float32), state.params)
    return state.replace(params=noisy)


@pytest.fixture(scope="module")
def donated():
    """A state that was donated to one jitted step, what the step returned, and what it warned of."""
    state = jax.tree.map(jnp.copy, initial_state())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = jax.jit(train_step, donate_argnums=0)(state, make_batch())
    return state, result, [str(warning.message) for warning in caught]


def test_compiled_step_copies_no_state_and_has_the_bits_of_the_plain_one(donated):
    state = jax.tree.map(jnp.copy, initial_state())
    plain = jax.jit(train_step, donate_argnums=0).lower(state, make_batch()).compile()
    compiled = compile_step(state).lower(state, make_batch()).compile()
    parameters = len(jax.tree.leaves(state.params))
    copies = [text.split("\nENTRY")[1].count(" copy(") for text in (plain.as_text(), compiled.as_text())]
    assert copies[0] - copies[1] >= parameters, "XLA copies no state by itself: leave the option of `compile_step` out"
    for ours, theirs in zip(jax.tree.leaves(compiled(state, make_batch())), jax.tree.leaves(donated[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def updated(donated):
    """The state after one step, and its metrics: what other ways to compute it are compared with."""
    return donated[1]


@pytest.fixture(scope="module")
def fast_step():
    """A function from a state and steps to the parameters and the loss after training on one batch of two rows."""
    batch, step = make_batch(2), jax.jit(train_step)
    # Every document begins with a token of its own: nothing else could tell which targets are to come.
    is_first = batch.positions_BT == 0
    batch.tokens_BT[is_first] = np.arange(is_first.sum())

    def run(state, steps):
        state = state.replace(optimizer=FAST)
        for _ in range(steps):
            state, metrics = step(state, batch)
        return state.params, float(metrics["loss"])

    return run


def assert_same_update(actual, expected, tolerance):
    """Parameters and optimizer state after the update, and its metrics."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_micro_batches_of_unequal_weight_equal_one_batch(updated):
    weights = make_batch().loss_weights_BT.reshape(4, -1).sum(axis=1)
    assert len(set(weights)) > 1
    state, metrics = jax.jit(train_step)(initial_state().replace(micro_batches=4), make_batch())
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), updated[0].params, initial_state().params)
    assert min(jax.tree.leaves(moved)) > 1000 * FLOAT32
    assert_same_update((state.params, metrics), (updated[0].params, updated[1]), FLOAT32)


@pytest.mark.device_free
def test_a_step_and_its_validation_are_the_same_with_rows_that_stand_for_no_token():
    more, batch = dataclasses.replace(MODEL, vocabulary_size=V + 5), make_batch()

    def without(params):
        return jax.tree.map(lambda x: x[:V] if x.shape[0] == V + 5 else x, params)

    def others(params):
        return [np.asarray(x[V:]) for x in jax.tree.leaves(params) if x.shape[0] == V + 5]

    padded = init_state(more, LINEAR, seed=0, token_count=V)
    state = initial_state().replace(params=without(padded.params))
    evaluate, step = jax.jit(eval_step), jax.jit(train_step)
    nats = evaluate(padded, batch)
    np.testing.assert_allclose(nats, evaluate(state, batch), atol=FLOAT32)
    (updated, metrics), (expected, expected_metrics) = step(padded, batch), step(state, batch)
    assert_same_update((without(updated.params), metrics), (expected.params, expected_metrics), FLOAT32)
    assert not any(rows.any() for rows in others(updated.params)), "without a gradient, zeros stay zeros"
    all_rows = padded.replace(graphdef=nnx.split(nnx.eval_shape(lambda: Transformer(more, rngs=nnx.Rngs(params=0))))[0])
    assert np.max(evaluate(all_rows, batch) - nats) > 0.05, "they would take a share"


@pytest.mark.device_free
@pytest.mark.parametrize("optimizer", [LINEAR, MUON], ids=["adamw", "muon"])
def test_rows_that_stand_for_no_token_influence_nothing_whatever_they_hold(optimizer):
    """To the last bit: neither losses nor gradient norms nor, after three steps, any other parameter or moment."""
    config = dataclasses.replace(MODEL, vocabulary_size=V + 5, tied_embeddings=False, logit_soft_cap=3.0)
    zeros = init_state(config, optimizer, seed=0, token_count=V)
    filled = zeros.replace(params=jax.tree.map(lambda x: x.at[V:].set(7.0) if len(x) == V + 5 else x, zeros.params))
    step = jax.jit(train_step)
    for _ in range(3):
        (zeros, expected), (filled, metrics) = step(zeros, make_batch()), step(filled, make_batch())
        assert metrics.pop("reported") and expected.pop("reported")  # Norms of all rows, decay among them.
        jax.tree.map(np.testing.assert_array_equal, metrics, expected)
    for one, other in zip(jax.tree.leaves(filled), jax.tree.leaves(zeros), strict=True):
        is_table = one.ndim == 2 and len(one) == V + 5
        np.testing.assert_array_equal(*(np.asarray(x)[:V] if is_table else x for x in (one, other)))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_step_that_is_not_finite_changes_nothing_but_the_guard_and_the_step(micro_batches):
    state = initial_state().replace(micro_batches=micro_batches)
    step = jax.jit(train_step)
    state, _ = step(state, make_batch())
    after, metrics = step(
        state, make_batch()._replace(loss_weights_BT=make_batch().loss_weights_BT * np.float32(np.nan))
    )
    assert not np.isfinite(metrics["loss"]) and not metrics["counts"]
    assert (int(metrics["skipped"]), int(metrics["non_finite_in_a_row"])) == (1, 1)
    for x, y in zip(
        jax.tree.leaves((after.params, after.opt_state)), jax.tree.leaves((state.params, state.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    assert int(after.step) == int(state.step) + 1
    # As if it had not been.
    good, _ = step(after, make_batch())
    expected, _ = step(state, make_batch())
    for x, y in zip(jax.tree.leaves(good.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.device_free
def test_gradient_that_is_not_finite_skips_the_step_though_the_loss_is(monkeypatch):
    state = initial_state()
    kernel = state.params["blocks"]["feed_forward"]["up"]
    grads = jax.tree.map(jnp.zeros_like, state.params)
    grads["blocks"]["feed_forward"]["up"][...] = jnp.full_like(kernel[...], jnp.inf)
    sums = LossSums(jnp.float32(2.0), jnp.float32(2.0), jnp.float32(1.0), {})
    monkeypatch.setattr(jaxformer.step, "gradients", lambda state, batch: (grads, sums))
    after, metrics = train_step(state, make_batch())
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"]) and not metrics["counts"]
    for x, y in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.smoke
def test_jitted_step_equals_the_step_as_written(updated):
    assert_same_update(train_step(initial_state(), make_batch()), updated, FLOAT32)


def test_gradient_is_that_of_the_mean_over_targets(updated):
    state, batch = initial_state(), make_batch()

    @jax.jit
    @jax.grad
    def gradient(params):
        model = nnx.merge(state.graphdef, params)
        logits = model(batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
        log_partition = jax.nn.logsumexp(logits, axis=2)
        nats = log_partition - jnp.take_along_axis(logits, batch.targets_BT[..., None], axis=2)[..., 0]
        return jnp.average(nats + MODEL.z_loss * log_partition**2, weights=batch.loss_weights_BT)

    expected = gradient(state.params)
    new_state, metrics = updated
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.tree.norm(expected)), rel=1e-5)
    # After one step the first moment is a tenth of the gradient.
    first_moment = optax.tree_utils.tree_get(new_state.opt_state, "mu")
    for x, y in zip(jax.tree.leaves(first_moment), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, 0.1 * y, rtol=0, atol=FLOAT32)


def test_step_counts_itself_and_its_targets(updated):
    state, metrics = updated
    assert int(state.step) == 1
    assert float(metrics["targets"]) == make_batch().loss_weights_BT.sum()


def test_micro_batches_must_divide_the_rows():
    with pytest.raises(UserError, match=r"micro_batches \(3\) must divide the rows of a batch \(8\)"):
        train_step(initial_state().replace(micro_batches=3), make_batch())


def test_loss_of_a_step_is_the_weighted_mean_of_eval_step(updated):
    nats_BT = np.asarray(jax.jit(eval_step)(initial_state(), make_batch()))
    is_padding = make_batch().loss_weights_BT == 0
    assert is_padding.any()
    assert np.all((nats_BT == 0) == is_padding)
    assert nats_BT.sum() / (~is_padding).sum() == pytest.approx(float(updated[1]["loss"]), rel=FLOAT32)


def test_one_batch_is_learned_by_heart(fast_step):
    assert fast_step(initial_state(), steps=100)[1] < 0.05


def test_muon_learns_in_donated_steps_of_micro_batches_and_forgets_one_that_is_not_finite():
    step, batch = jax.jit(train_step, donate_argnums=0), make_batch()
    state, losses = init_state(MODEL, MUON, seed=0, micro_batches=2), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    state, metrics = step(state, batch._replace(loss_weights_BT=batch.loss_weights_BT * np.float32(np.nan)))
    assert not metrics["counts"]
    after = (state.params, state.opt_state)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(x, y)


def test_same_seed_gives_the_same_parameters_bit_by_bit_and_another_seed_others(fast_step):
    states = [init_state(MODEL, LINEAR, seed=seed) for seed in (0, 0, 1)]
    finals = [jax.tree.leaves(fast_step(state, steps=3)[0]) for state in states]
    for first, again, other in zip(*finals, strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)


def test_bfloat16_matmuls_keep_a_float32_state_and_nearly_the_loss(updated):
    state, metrics = jax.jit(train_step)(initial_state().replace(compute_dtype=jnp.bfloat16), make_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state))} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),  # the optimizer's counts
    }
    assert metrics["loss"].dtype == jnp.float32
    loss = float(updated[1]["loss"])
    assert float(metrics["loss"]) != loss, "the matmuls were not bfloat16"
    assert float(metrics["loss"]) == pytest.approx(loss, rel=0.02)


def test_only_kernels_are_cast():
    cast = cast_kernels(initial_state().params, jnp.bfloat16)
    wide = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, leaf in jax.tree_util.tree_leaves_with_path(cast)
        if leaf.dtype == jnp.float32
    }
    assert wide == {"blocks.attention_norm.scale", "blocks.feed_forward_norm.scale", "final_norm.scale", "embedding"}


def test_donated_state_is_used_up(donated):
    state, _, caught = donated
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not [message for message in caught if "donated" in message]


@pytest.mark.parametrize(("name", "expected"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("auto", None)])
def test_compute_dtype_is_the_named_one_or_the_devices(name, expected):
    expected = expected or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    assert jnp.dtype(compute_dtype(TrainingConfig(steps=1, rows_per_step=1, compute_dtype=name))) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"training.steps \(0\) must be at least 1"),
        ({"rows_per_step": -8}, r"training.rows_per_step \(-8\) must be at least 1"),
        ({"micro_batches": 3}, r"micro_batches \(3\) must divide training.rows_per_step \(8\)"),
        ({"micro_batches": -1}, r"training.micro_batches \(-1\) must be at least 0"),
        ({"log_every_steps": 0}, r"training.log_every_steps \(0\) must be at least 1"),
        ({"compute_dtype": "bfloat"}, r"'bfloat' is unknown; did you mean bfloat16\?"),
        ({"peak_tflops": -1.0}, r"training.peak_tflops \(-1.0\) must be at least 0"),
        ({"peak_tflops": math.nan}, r"training.peak_tflops \(nan\) must be finite"),
    ],
)
def test_training_that_cannot_be_is_refused_with_the_rule_and_the_values(changes, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**({"steps": 10, "rows_per_step": 8} | changes))


def test_bfloat16_matmuls_keep_the_gradient_of_a_frequent_token():
    """A token that is most of the batch sums over all its uses: in bfloat16 that sum stands still early."""
    rows, length = 8, 256
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((rows, length)) < 0.8, 5, rng.integers(0, V, (rows, length))).astype(np.int32)
    zeros = np.zeros_like(tokens)
    batch = Batch(
        tokens_BT=tokens,
        targets_BT=np.roll(tokens, -1, axis=1),
        loss_weights_BT=np.ones(tokens.shape, np.float32),
        segment_ids_BT=zeros + 1,
        positions_BT=zeros + np.arange(length, dtype=np.int32),
        document_starts_BT=zeros,
        document_ends_BT=zeros + length,
    )
    state = initial_state()

    def updates(dtype):
        new = jax.jit(train_step)(state.replace(compute_dtype=dtype), batch)[0]
        return jax.tree.map(lambda after, before: np.asarray(after - before), new.params, state.params)

    exact, rough = updates(jnp.float32), updates(jnp.bfloat16)
    for (path, right), left in zip(jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(rough), strict=True):
        error = np.linalg.norm(left - right) / np.linalg.norm(right)
        assert error < 0.05, f"{jax.tree_util.keystr(path)} is off by {error:.1%}"


# Rows in micro-batches, layers in a scan, grouped queries and a window: all that the kernels meet in a step.
def test_step_with_interpreted_flash_attention_equals_that_with_xla():
    model = ModelConfig(
        vocabulary_size=V,
        width=12,
        depth=2,
        heads=4,
        key_value_heads=2,
        head_width=16,
        feed_forward_width=20,
        sliding_window=3,
        scan_unroll=1,
    )
    tiles = Tiles(*[Tile(16, 16, 4, 2)] * 3)
    updates = {}
    for implementation in (Implementation("xla"), Implementation("pallas", tiles, interpret=True)):
        state, rng = (
            init_state(model, LINEAR, seed=0, attention=implementation, micro_batches=2),
            np.random.default_rng(0),
        )
        noisy = jax.tree.map(
            lambda x, rng=rng: x + 0.25 * rng.standard_normal(x.shape).astype(np.float32), state.params
        )
        state = state.replace(params=noisy)
        updates[implementation.name] = jax.jit(train_step)(state, make_batch())
    assert_same_update(updates["pallas"], updates["xla"], 1e-5)


@pytest.mark.parametrize(
    ("implementation", "remats"),
    [
        (Implementation("xla"), tuple(SAVED)),
        pytest.param(
            Implementation("pallas", Tiles(*[Tile(16, 16, 4, 2)] * 3), interpret=True),
            ("elementwise",),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["xla", "pallas"],
)
def test_gradients_are_the_same_whatever_is_recomputed(implementation, remats):
    found = {}
    config = ModelConfig(vocabulary_size=V, width=12, depth=2, heads=2, head_width=16, remat="none", scan_unroll=1)
    state = init_state(config, LINEAR, seed=0, attention=implementation)
    for remat in ("none", *remats):
        chosen = dataclasses.replace(config, remat=remat)
        model = nnx.eval_shape(lambda chosen=chosen: Transformer(chosen, rngs=nnx.Rngs(0), attention=implementation))
        found[remat] = jax.jit(gradients)(state.replace(graphdef=nnx.graphdef(model)), make_batch(rows=2))
    for remat in remats:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=FLOAT32), found[remat], found["none"])
