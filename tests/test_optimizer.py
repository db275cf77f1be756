"""The schedules worked by hand, and the optimizers against AdamW and Muon written out."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError, override, replace
from jaxformer.experiment import load_experiment
from jaxformer.layers import Kernel, Scale, Table
from jaxformer.model import ModelConfig, Transformer
from jaxformer.optimizer import (
    GROUPS,
    Decay,
    Optimizer,
    OptimizerConfig,
    check_schedule,
    groups_of,
    is_matrix,
    make_optimizer,
    make_schedule,
)

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


# Of the peak: 1 - 0.9 sqrt(t) at the share t of the decay, whose last step is the run's.
@pytest.mark.parametrize(
    ("warmup_steps", "steps", "decay_share", "shares"),
    [
        (4, 20, 0.2, {0: 0.2, 3: 0.8, 4: 1.0, 15: 1.0, 16: 0.55, 17: 1 - 0.9 * 0.5**0.5, 19: 0.1}),
        (0, 10, 0.1, {0: 1.0, 8: 1.0, 9: 0.1}),
        (0, 4, 1.0, {0: 0.55, 3: 0.1}),
        (4, 8, 0.5, {3: 0.8, 4: 0.55, 7: 0.1}),
        (1, 9, 0.01, {0: 0.5, 1: 1.0, 7: 1.0, 8: 0.1}),
    ],
)
def test_wsd_schedule_equals_the_values_worked_by_hand(warmup_steps, steps, decay_share, shares):
    config = dataclasses.replace(CONFIG, schedule="wsd", warmup_steps=warmup_steps, decay_share=decay_share)
    schedule = make_schedule(config, steps)
    for step, share in shares.items():
        assert float(schedule(step)) == pytest.approx(0.2 * share, rel=FLOAT32), step


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.1, 1.0]))
def test_wsd_schedule_warms_up_as_cosine_stays_at_the_peak_and_falls_to_the_final_share(warmup, stable, decay, share):
    steps = warmup + stable + decay
    config = OptimizerConfig(
        learning_rate=0.25, warmup_steps=warmup, final_learning_rate_share=share, decay_share=decay / steps
    )
    numbers = np.arange(120)  # Of one length, so that nothing is compiled anew.
    wsd = dataclasses.replace(config, schedule="wsd")
    cosine, rates = (np.asarray(make_schedule(each, steps)(numbers))[:steps] for each in (config, wsd))
    np.testing.assert_array_equal(rates[: warmup + 1], cosine[: warmup + 1])
    assert set(rates[warmup : warmup + stable].tolist()) == {0.25}
    assert rates[-1] == np.float32(0.25 * share)
    # No step of the decay falls by more than its first, from the peak.
    falls = -np.diff(rates[warmup + stable - 1 :])
    assert np.all(falls >= 0) and np.all(falls <= 0.25 * (1 - share) * (1 / decay) ** 0.5 + 1e-7)


def test_warmup_and_decay_longer_than_the_run_are_refused():
    config = dataclasses.replace(CONFIG, schedule="wsd", decay_share=0.5)
    check_schedule(config, 8)
    with pytest.raises(
        UserError, match=r"warmup_steps \(4\) and the 4 steps of optimizer.decay_share \(0.5\) must not"
    ):
        make_schedule(config, 7)
    make_schedule(dataclasses.replace(config, schedule="cosine"), 7)


def test_decay_shrinks_matrices_by_learning_rate_times_decay_and_nothing_else():
    params = make_grouped_params()
    optimizer = make_optimizer(dataclasses.replace(CONFIG, weight_decay=0.5), steps=11)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for name, update in updates.items():
        # At step 0 the rate is a fifth of the peak.
        decay = 0.0 if name == "scale" else 0.5
        np.testing.assert_allclose(update[...], -0.2 / 5 * decay * params[name][...], rtol=FLOAT32)


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


MUON = dataclasses.replace(CONFIG, name="muon", muon_momentum=0.9, weight_decay=0.3, clip_norm=1e9)


def make_stacked_params():
    """Returns kernels of 3 layers, one wide and one tall, a table and gains."""
    rng = np.random.default_rng(0)
    kinds = {
        "wide": (Kernel, (3, 5, 8)),
        "tall": (Kernel, (3, 8, 5)),
        "table": (Table, (7, 5)),
        "scale": (Scale, (3, 5)),
    }
    return nnx.State({name: kind(jnp.float32(rng.standard_normal(shape))) for name, (kind, shape) in kinds.items()})


def random_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(rng.standard_normal(x.shape)), params)


def orthogonalised(matrix):
    """Five iterations of Newton and Schulz with the coefficients of Jordan et al. 2024."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_kernels_get_muon_written_out_layer_by_layer():
    params, momentum = make_stacked_params(), 0.9
    optimizer, schedule = make_optimizer(MUON, steps=11), make_schedule(MUON, 11)
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    moments = {name: np.zeros(params[name].shape) for name in ("wide", "tall")}
    for step in range(3):
        grads = random_like(params, seed=step)
        updates, opt_state = update(grads, opt_state, params)
        for name in moments:
            g = np.float64(grads[name][...])
            moments[name] = momentum * moments[name] + (1 - momentum) * g
            # Nesterov: the moment one step ahead; each of the two is unbiased, as Optax does it.
            ahead = momentum * moments[name] / (1 - momentum ** (step + 2))
            ahead += (1 - momentum) * g / (1 - momentum ** (step + 1))
            # 0.2 is the root mean square of an orthogonal 8 x 5 matrix times 0.2 sqrt(8).
            steps = np.stack([0.2 * math.sqrt(8) * orthogonalised(layer) for layer in ahead])
            expected = -float(schedule(step)) * (steps + 0.3 * np.float64(params[name][...]))
            np.testing.assert_allclose(updates[name][...], expected, rtol=0, atol=1e-5)
            assert np.sqrt(np.mean(steps**2)) == pytest.approx(0.2, rel=0.2)


def test_layer_is_updated_by_muon_as_if_it_were_alone():
    params, optimizer = make_stacked_params(), make_optimizer(MUON, steps=11)
    update = jax.jit(optimizer.update)
    grads = random_like(params, seed=1)
    other = jax.tree.map(lambda x: x.at[1].multiply(-3), grads)
    ours, theirs = (update(each, optimizer.init(params), params)[0] for each in (grads, other))
    for name in ("wide", "tall"):
        is_same = np.all(np.asarray(ours[name][...] == theirs[name][...]), axis=(1, 2))
        assert is_same.tolist() == [True, False, True]


def test_tables_and_gains_get_the_update_of_adamw_whatever_the_kernels_get():
    params, updates = make_stacked_params(), {}
    for name in ("adamw", "muon"):
        optimizer = make_optimizer(dataclasses.replace(MUON, name=name, clip_norm=2.0), steps=11)
        opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
        for step in range(3):
            updates[name], opt_state = update(random_like(params, seed=step), opt_state, params)
    for name, is_ours in {"table": True, "scale": True, "wide": False, "tall": False}.items():
        ours, theirs = updates["muon"][name][...], updates["adamw"][name][...]
        assert np.allclose(ours, theirs, rtol=FLOAT32, atol=0) == is_ours


@dataclass(frozen=True)
class Lion(Optimizer):
    """What an experiment file writes for an optimizer of its own."""

    beta: float = 0.95

    def transform(self, config, model):
        return optax.scale_by_lion(config.b1, self.beta)


@dataclass(frozen=True)
class HalfDecay(Decay):
    def decayed(self, group, parameter, direction):
        return 0.5 * parameter


def make_grouped_params():
    """Returns a parameter of each group."""
    kinds = {
        "embedding": (Table, (7, 5)),
        "unembedding": (Table, (7, 5)),
        "kernel": (Kernel, (3, 5, 8)),
        "scale": (Scale, (3, 5)),
    }
    shapes = nnx.State({name: kind(jax.ShapeDtypeStruct(shape, jnp.float32)) for name, (kind, shape) in kinds.items()})
    return random_like(shapes, seed=7)


def train(config, steps=3):
    """Returns the updates of each step, and the last state."""
    params = make_grouped_params()
    optimizer = make_optimizer(config, 11)
    opt_state, update, all_updates = optimizer.init(params), jax.jit(optimizer.update), []
    for step in range(steps):
        updates, opt_state = update(random_like(params, seed=step), opt_state, params)
        all_updates.append(updates)
    return all_updates, opt_state


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): x for path, x in leaves}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", lambda schedule: optax.adamw(schedule, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=is_matrix)),
        (Lion(), lambda schedule: optax.lion(schedule, 0.9, 0.95, weight_decay=0.1, mask=is_matrix)),
    ],
    ids=["adamw", "own"],
)
def test_optimizer_is_the_clipped_chain_of_optax_in_bits_and_in_the_structure_of_its_state(name, theirs):
    params = make_grouped_params()
    reference = optax.chain(optax.clip_by_global_norm(1.0), theirs(make_schedule(CONFIG, 11)))
    expected, update = reference.init(params), jax.jit(reference.update)
    updates, opt_state = train(dataclasses.replace(CONFIG, name=name))
    for step, ours in enumerate(updates):
        theirs_now, expected = update(random_like(params, seed=step), expected, params)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs_now)
    assert jax.tree.structure(opt_state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, opt_state, expected)


def test_state_of_muon_lies_where_earlier_checkpoints_have_it():
    opt_state = jax.eval_shape(make_optimizer(MUON, 11).init, make_grouped_params())
    muon, adamw = "1.inner_states.muon.inner_state", "1.inner_states.adamw.inner_state"
    moments = {
        f"{adamw}.0.{moment}.{name}" for moment in ("mu", "nu") for name in ("embedding", "unembedding", "scale")
    }
    assert set(by_name(opt_state)) == moments | {
        f"{muon}.0.count",
        f"{muon}.0.mu.kernel",
        f"{muon}.0.ns_coeffs",
        f"{muon}.3.count",
        f"{adamw}.0.count",
        f"{adamw}.2.count",
    }


def test_every_parameter_of_a_model_has_its_group():
    model = ModelConfig(
        vocabulary_size=7, width=12, depth=3, heads=2, qk_norm=True, tied_embeddings=False, learned_positions=5
    )
    groups = by_name(groups_of(jax.eval_shape(lambda: nnx.state(Transformer(model, rngs=nnx.Rngs(params=0))))))
    names = {group: {path for path, of in groups.items() if of == group} for group in GROUPS}
    assert names["embedding"] == {"embedding", "position_embedding"}
    assert names["unembedding"] == {"unembedding"}
    assert len(names["matrix"]) == 4 and all(path.startswith("blocks.") for path in names["matrix"])
    assert len(names["gain"]) == 5 and all(path.endswith("scale") for path in names["gain"])


RATES = {"embedding": 0.5, "unembedding": 2.0, "matrix": 4.0, "gain": 0.25}


@pytest.mark.parametrize("name", ["muon", Lion()], ids=["muon", "own"])
def test_rate_of_a_group_scales_its_updates_and_no_other(name):
    config = dataclasses.replace(CONFIG, name=name)
    rates = {f"{group}_rate": factor for group, factor in RATES.items()}
    (plain, plain_state), (scaled, scaled_state) = train(config), train(dataclasses.replace(config, **rates))
    for ours, theirs in zip(map(by_name, scaled), map(by_name, plain), strict=True):
        for path, update in ours.items():
            # The factors are powers of two, and so exact.
            np.testing.assert_array_equal(
                update, RATES[{"kernel": "matrix", "scale": "gain"}.get(path, path)] * theirs[path]
            )
    for ours, theirs in zip(jax.tree.leaves(scaled_state), jax.tree.leaves(plain_state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rate_of_an_unembedding_is_refused_where_the_embedding_unembeds():
    untied = {"model.tied_embeddings": False, "optimizer.unembedding_rate": 2.0}
    replace(load_experiment("baseline"), untied)
    with pytest.raises(UserError, match=r"optimizer.unembedding_rate \(2.0\) needs model.tied_embeddings = False"):
        replace(load_experiment("baseline"), untied | {"model.tied_embeddings": True})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_own_decay_takes_the_place_of_that_of_all_matrices(name):
    params = make_grouped_params()
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name=name, weight_decay=0.5, decay=HalfDecay()), 11)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    # Of gains too. At step 0 the rate is a fifth of the peak.
    jax.tree.map(lambda update, x: np.testing.assert_allclose(update, -0.2 / 5 * 0.25 * x, rtol=1e-6), updates, params)


def test_optimizer_takes_notice_of_no_field_that_its_effective_form_resets():
    changed = dataclasses.replace(CONFIG, muon_momentum=0.5, decay=HalfDecay())
    assert changed.effective() == dataclasses.replace(CONFIG, decay=HalfDecay())
    assert dataclasses.replace(changed, weight_decay=0.0).effective() == dataclasses.replace(CONFIG, weight_decay=0.0)
    own = dataclasses.replace(changed, name=Lion())
    assert own.effective() == own


def test_own_optimizer_is_replaced_as_a_value_and_from_the_command_line():
    own = replace(load_experiment("baseline"), {"optimizer.name": Lion(beta=0.5)})
    assert own.optimizer.name == Lion(0.5)
    assert replace(own, {"optimizer.name": "muon"}).optimizer.name == "muon"
    assert override(own, {"optimizer.name": "muon"}).optimizer.name == "muon"
    assert override(own, {"optimizer.name.beta": "0.25"}).optimizer.name == Lion(0.25)
    with pytest.raises(UserError, match=r"optimizer.name = 'lion' is unknown; choose from adamw, muon"):
        override(own, {"optimizer.name": "lion"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "moon"}, r"optimizer.name = 'moon' is unknown; did you mean muon\?"),
        ({"schedule": "cosin"}, r"optimizer.schedule = 'cosin' is unknown; did you mean cosine\?"),
        ({"muon_momentum": 1.0}, r"muon_momentum \(1.0\) must be at least 0 and below 1"),
        ({"decay_share": 0.0}, r"decay_share \(0.0\) must be above 0 and at most 1"),
        ({"decay_share": math.nan}, r"decay_share \(nan\) must be finite"),
        ({"learning_rate": -0.1}, r"learning_rate \(-0.1\) must be above 0"),
        ({"learning_rate": 0.0}, r"learning_rate \(0.0\) must be above 0"),
        ({"learning_rate": math.nan}, r"learning_rate \(nan\) must be finite"),
        ({"learning_rate": math.inf}, r"learning_rate \(inf\) must be finite"),
        ({"epsilon": 0.0}, r"epsilon \(0.0\) must be above 0"),
        ({"clip_norm": 0.0}, r"clip_norm \(0.0\) must be above 0"),
        ({"b1": 1.0}, r"b1 \(1.0\) must be at least 0 and below 1"),
        ({"b2": -0.1}, r"b2 \(-0.1\) must be at least 0 and below 1"),
        ({"warmup_steps": -1}, r"warmup_steps \(-1\) must be at least 0"),
        ({"final_learning_rate_share": 1.1}, r"final_learning_rate_share \(1.1\) must be at least 0 and at most 1"),
        ({"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be at least 0"),
        ({"weight_decay": math.inf}, r"weight_decay \(inf\) must be finite"),
        ({"warmup_steps": 1.5}, "optimizer.warmup_steps must be of type int, not 1.5"),
        ({"learning_rate": "0.1"}, "optimizer.learning_rate must be of type float, not '0.1'"),
        ({"name": Lion}, r"optimizer.name must be .* or Optimizer, not the class Lion; give Lion\(...\)"),
        ({"name": HalfDecay()}, r"optimizer.name must be .* or Optimizer, not HalfDecay\(\)"),
        ({"decay": "all"}, "optimizer.decay = 'all' is unknown; choose from matrices"),
        ({"gain_rate": 0.0}, r"optimizer.gain_rate \(0.0\) must be above 0"),
    ],
)
def test_optimizer_that_cannot_be_is_refused_with_the_rule_and_the_value(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
