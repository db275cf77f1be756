"""The mixture of experts against each token's own experts in numpy, and its balance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.config import UserError
from jaxformer.flops import active_parameters, describe_parameters, forward_operations, parameter_count
from jaxformer.layers import Context, Rows, SelfUpdated, Sums, by_place
from jaxformer.model import ModelConfig, abstract_model
from jaxformer.parts.mixture_of_experts import MixtureOfExperts, grouped_matmul
from jaxformer.parts.multi_token_prediction import MultiTokenPrediction

B, T, D, E = 2, 9, 10, 5
MODEL = ModelConfig(vocabulary_size=32, width=D, depth=2, heads=1, feed_forward_width=24, activation="swiglu")
STARTS = np.array([[0] * 4 + [4] * 5, [0] * 9], np.int32)
WEIGHTS = np.array([[1, 1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0, 0]], np.float32)
ROWS = Rows(*np.zeros((2, B, T), np.int32), STARTS, STARTS, WEIGHTS)
PARTS = {
    "softmax": MixtureOfExperts(experts=E, top_k=3),
    "sigmoid": MixtureOfExperts(experts=E, top_k=1, shared=2, width=7, scores="sigmoid", bias_rate=0.1),
}


def make_layer(part):
    """Returns a layer whose every parameter shows in its output."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: part.make(MODEL, rngs=nnx.Rngs(params=0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), params)
    return nnx.merge(graphdef, params)


def numpy_mixture(layer, part, x_ND):
    """Returns the output, the experts and the shares of the router, each token on its own in float64."""
    p = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(layer)))

    def swiglu(x_D, up_DX, down_FD):
        gate_F, value_F = np.split(x_D @ up_DX, 2)
        return (gate_F / (1 + np.exp(-gate_F)) * value_F) @ down_FD

    y_ND, experts_Nk, shares_NE = [], [], []
    for x_D in np.float64(x_ND):
        logits_E = x_D @ p["router"]
        scores_E = 1 / (1 + np.exp(-logits_E)) if part.scores == "sigmoid" else np.exp(logits_E)
        shares_NE.append(scores_E / scores_E.sum())
        scores_E = scores_E if part.scores == "sigmoid" else shares_NE[-1]
        chosen = np.argsort(-(scores_E + p.get("bias", 0)))[: part.top_k]
        total = scores_E[chosen].sum() if part.top_k > 1 else 1
        y_D = sum(scores_E[e] / total * swiglu(x_D, p["up"][e], p["down"][e]) for e in chosen)
        y_ND.append(y_D + (swiglu(x_D, p["shared"]["up"], p["shared"]["down"]) if part.shared else 0))
        experts_Nk.append(chosen)
    return np.array(y_ND), np.array(experts_Nk), np.array(shares_NE)


@pytest.mark.parametrize("name", PARTS)
def test_output_and_sums_equal_each_token_on_its_own(name):
    part, layer = PARTS[name], make_layer(PARTS[name])
    x_ND = jnp.asarray(np.random.default_rng(1).standard_normal((B * T, D)), jnp.float32)
    graphdef, biases, others = nnx.split(layer, SelfUpdated, ...)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def balance_gradient(biases, others):
        y_ND, sums = nnx.merge(graphdef, biases, others)(x_ND, Context(ROWS, None, None))
        return sums.losses["balance"], (y_ND, sums)

    gradient, (y_ND, sums) = balance_gradient(biases, others)
    expected_ND, experts_Nk, shares_NE = numpy_mixture(layer, part, x_ND)
    np.testing.assert_allclose(y_ND, expected_ND, rtol=0, atol=1e-5)

    balance, load_E = 0.0, np.zeros(E)
    for first, last in ((0, 4), (4, 9), (9, 18)):
        weights = WEIGHTS.reshape(-1)[first:last]
        of_document_E = weights @ np.eye(E)[experts_Nk[first:last]].sum(axis=1)
        balance += 0.01 * E / part.top_k * of_document_E @ (weights @ shares_NE[first:last]) / weights.sum()
        load_E += of_document_E
    np.testing.assert_allclose(sums.losses["balance"], balance, rtol=1e-5)
    np.testing.assert_array_equal(sums.metrics["load"], load_E)
    entropy = -WEIGHTS.reshape(-1) @ (shares_NE * np.log(shares_NE)).sum(axis=1)
    np.testing.assert_allclose(sums.metrics["router_entropy"], entropy, rtol=1e-5)
    if part.bias_rate:
        np.testing.assert_array_equal(gradient["bias"][...], load_E)
        moved_E = layer.bias.rule(layer.bias[...], load_E) - layer.bias[...]
        np.testing.assert_allclose(moved_E, 0.1 * np.sign(load_E.mean() - load_E), atol=1e-6)
        assert len(set(np.sign(moved_E))) > 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_grouped_matmul_and_its_gradients_equal_a_loop_over_the_experts(dtype):
    rng = np.random.default_rng(0)
    tolerance = {"rtol": 2e-5 if dtype == jnp.float32 else 0.01, "atol": 2e-5 if dtype == jnp.float32 else 0.03}

    @jax.jit
    def ours(x_AD, kernels_EDX, sizes_E, weights_AX):
        y_AX, pull = jax.vjp(lambda x, kernels: grouped_matmul(x, kernels, sizes_E), x_AD, kernels_EDX)
        return y_AX, *pull(weights_AX)

    for sizes in ([0, 11, 0, 1, 60, 0], [12] * 6, [0, 0, 0, 0, 0, 72]):
        arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((72, 8), (6, 8, 5), (72, 5))]
        x_AD, kernels_EDX, weights_AX = (np.asarray(x, np.float64) for x in arrays)
        expert_A = np.repeat(np.arange(6), sizes)
        expected_EDX = np.zeros_like(kernels_EDX)
        np.add.at(expected_EDX, expert_A, x_AD[:, :, None] * weights_AX[:, None, :])
        expected = [
            np.einsum("AD,ADX->AX", x_AD, kernels_EDX[expert_A]),
            np.einsum("AX,ADX->AD", weights_AX, kernels_EDX[expert_A]),
            expected_EDX,
        ]
        computed = ours(*arrays[:2], jnp.array(sizes), arrays[2])
        assert [x.dtype for x in computed] == [dtype] * 3
        for one, other in zip(computed, expected, strict=True):
            np.testing.assert_allclose(np.asarray(one, np.float64), other, **tolerance)


def test_active_parameters_are_those_of_the_plain_feed_forward_and_of_the_router():
    config = dataclasses.replace(MODEL, feed_forward=PARTS["softmax"])
    router = 2 * D * E
    assert active_parameters(config, T) == parameter_count(MODEL) + router
    assert describe_parameters(config, T).endswith(f"; a token uses {parameter_count(MODEL) + router:,}")
    assert "uses" not in describe_parameters(MODEL, T)
    assert parameter_count(config) == parameter_count(MODEL) + router + 2 * (E - 3) * (3 * D * 8)
    plain, ours = forward_operations(MODEL, T), forward_operations(config, T)
    assert ours.matmuls == plain.matmuls + 2 * router and ours.hidden == plain.hidden


def test_parts_that_cannot_be_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"top_k \(9\) must be at most experts \(8\)"):
        MixtureOfExperts(top_k=9)
    with pytest.raises(UserError, match=r"top_k \+ shared \(7\), must divide the feed-forward's width \(24\)"):
        make_layer(MixtureOfExperts(experts=8, top_k=5, shared=2))


def test_active_parameters_are_those_of_the_experts_beside_what_else_multiplies():
    experts = dataclasses.replace(MODEL, feed_forward=PARTS["softmax"])
    both = dataclasses.replace(experts, auxiliary_loss=MultiTokenPrediction(further=2))
    added = parameter_count(both) - parameter_count(experts)
    assert active_parameters(both, T) == active_parameters(experts, T) + added
    assert active_parameters(both, T) < parameter_count(both)


def test_experts_of_two_kinds_take_turns_and_report_apart():
    config = dataclasses.replace(MODEL, depth=4, feed_forward=(PARTS["softmax"], MixtureOfExperts(experts=2, top_k=1)))
    graphdef, params = nnx.split(abstract_model(config))
    rows = jax.tree.map(jnp.asarray, ROWS)
    sums = jax.eval_shape(lambda params: nnx.merge(graphdef, params).features_and_sums(rows)[1], params)
    assert {name: x.shape for name, x in {**sums.losses, **sums.metrics}.items()} == {
        "feed_forward/balance": (4,),
        "feed_forward/load_5": (2, 5),
        "feed_forward/load_2": (2, 2),
        "feed_forward/router_entropy": (4,),
    }


def test_a_loss_and_a_metric_of_one_name_are_refused():
    with pytest.raises(UserError, match="call a loss and a metric x"):
        by_place(feed_forward=Sums({"x": jnp.float32(1)}, {"x": jnp.float32(2)}))
