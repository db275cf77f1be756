"""The chunked loss and its hand-written gradient against full logits and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxformer.loss import cross_entropy, token_scores

FLOAT32 = 1e-5
BFLOAT16 = 2**-7
N, D, V = 37, 6, 53
SOFT_CAP, Z_LOSS = {"logit_soft_cap": 1.5}, {"z_loss_coefficient": 0.1}
TOKENS = {"token_count": 41}  # of V rows


def make_inputs():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, D)).astype(np.float32)
    unembedding = rng.standard_normal((V, D)).astype(np.float32)
    targets = rng.integers(0, TOKENS["token_count"], N, dtype=np.int32)
    weights = rng.choice([0.0, 0.3, 1.0, 2.0], N).astype(np.float32)
    return features, unembedding, targets, weights


def oracle(features, unembedding, targets, weights, logit_soft_cap=0.0, token_count=V, z_loss_coefficient=0.0):
    """(objective, nats, weight) with all logits at once."""
    logits = features.astype(jnp.float32) @ unembedding[:token_count].astype(jnp.float32).T
    if logit_soft_cap:
        logits = logit_soft_cap * jnp.tanh(logits / logit_soft_cap)
    log_partition = jax.nn.logsumexp(logits, axis=1)
    nats = jnp.sum(weights * (log_partition - logits[jnp.arange(N), targets]))
    return nats + z_loss_coefficient * jnp.sum(weights * log_partition**2), nats, jnp.sum(weights)


def assert_close(actual, expected, tolerance):
    """Relative to the largest element: elements that cancel have no relative accuracy of their own."""
    actual, expected = np.float64(actual), np.float64(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def mean_and_gradients(loss, *inputs):
    """Returns the sums of a loss, and the gradient of three times its mean by features and unembedding."""

    def objective(features, unembedding, targets, weights):
        sums = loss(features, unembedding, targets, weights)
        return 3 * sums[0] / sums[2], sums

    grads, sums = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(*inputs)
    return [*sums[:3], *grads]


# N is 37: 1 and 37 divide it, 4 and 10 do not, 100 exceeds it, and at 0 the library chooses.
@pytest.mark.parametrize(
    ("options", "chunk_tokens"),
    [
        *[({}, 1), ({}, 10), ({}, 37), (SOFT_CAP, 4), (Z_LOSS, 100), (SOFT_CAP | Z_LOSS, 10), (SOFT_CAP | Z_LOSS, 0)],
        *[(TOKENS, 10), (TOKENS | SOFT_CAP | Z_LOSS, 0)],
    ],
)
def test_sums_and_gradients_equal_those_of_full_logits(options, chunk_tokens):
    inputs = make_inputs()
    actual = mean_and_gradients(lambda *xs: cross_entropy(*xs, **options, chunk_tokens=chunk_tokens), *inputs)
    expected = mean_and_gradients(lambda *xs: oracle(*xs, **options), *inputs)
    for x, y in zip(actual, expected, strict=True):
        assert_close(x, y, FLOAT32)


@pytest.mark.parametrize("chunk_tokens", [10, 37])
def test_padding_contributes_exactly_nothing(chunk_tokens):
    features, unembedding, targets, weights = make_inputs()
    is_padding = weights == 0
    assert is_padding.any()

    @jax.jit
    def gradient(features, targets):
        return jax.value_and_grad(
            lambda f, u: (
                cross_entropy(
                    f, u, targets, weights, logit_soft_cap=2.0, z_loss_coefficient=0.1, chunk_tokens=chunk_tokens
                ).objective
            ),
            argnums=(0, 1),
        )(features, unembedding)

    before, (d_features, d_unembedding) = gradient(features, targets)
    np.testing.assert_array_equal(np.any(d_features != 0, axis=1), ~is_padding)
    other_features = np.where(is_padding[:, None], -3 * features, features)
    other_targets = np.where(is_padding, (targets + 1) % V, targets)
    after, (d_other_features, d_other_unembedding) = gradient(other_features, other_targets)
    assert before == after
    np.testing.assert_array_equal(d_features, d_other_features)
    np.testing.assert_array_equal(d_unembedding, d_other_unembedding)


@pytest.mark.parametrize(("cap", "chunk_tokens"), [(0.0, 37), (1.5, 10), (1.5, 1), (0.0, 0)])
def test_token_scores_are_each_tokens_own_and_sum_to_the_cross_entropy(cap, chunk_tokens):
    features, unembedding, targets, weights = make_inputs()
    scores = token_scores(features, unembedding, targets, logit_soft_cap=cap, chunk_tokens=chunk_tokens)
    nats_N = np.asarray(scores.nats_N)
    logits_NV = features.astype(np.float64) @ unembedding.T
    logits_NV = cap * np.tanh(logits_NV / cap) if cap else logits_NV
    assert_close(nats_N, np.log(np.exp(logits_NV).sum(axis=1)) - logits_NV[np.arange(N), targets], FLOAT32)
    sums = cross_entropy(features, unembedding, targets, weights, logit_soft_cap=cap, chunk_tokens=10)
    assert_close(np.sum(nats_N * weights), sums.nats, FLOAT32)
    np.testing.assert_array_equal(scores.is_likeliest_N, logits_NV.argmax(axis=1) == targets)
    likeliest = token_scores(features, unembedding, logits_NV.argmax(axis=1), chunk_tokens=chunk_tokens)
    assert likeliest.is_likeliest_N.all() and not scores.is_likeliest_N.all()


def test_rows_that_stand_for_no_token_are_as_if_they_were_not_there():
    features, unembedding, targets, _ = make_inputs()
    scores = token_scores(features, unembedding, targets, **TOKENS, **SOFT_CAP)
    same = token_scores(features, unembedding[: TOKENS["token_count"]], targets, **SOFT_CAP)
    np.testing.assert_array_equal(scores.is_likeliest_N, same.is_likeliest_N)
    assert_close(scores.nats_N, same.nats_N, FLOAT32)
    everything = token_scores(features, unembedding, targets, **SOFT_CAP)
    assert np.min(everything.nats_N - scores.nats_N) > 0, "a share of the probability goes to the other rows"


@pytest.mark.parametrize("chunk_tokens", [0, 1, 10, N])
def test_first_scores_are_the_same_however_many_are_wanted(chunk_tokens):
    features, unembedding, targets, _ = make_inputs()
    whole = token_scores(features, unembedding, targets, chunk_tokens=chunk_tokens)
    some = jax.jit(lambda count: token_scores(features, unembedding, targets, count=count, chunk_tokens=chunk_tokens))
    for count in (0, 1, 10, 11, N):
        for ours, expected in zip(some(count), whole, strict=True):
            np.testing.assert_allclose(ours[:count], expected[:count], rtol=FLOAT32)


def test_no_chunk_beyond_the_wanted_scores_is_computed():
    features, unembedding, targets, _ = make_inputs()
    features = np.where(np.arange(N)[:, None] >= 10, np.nan, features)
    scores = token_scores(features, unembedding, targets, count=5, chunk_tokens=5)
    assert not np.isnan(scores.nats_N).any()


def test_z_loss_is_minimised_but_not_reported():
    plain = cross_entropy(*make_inputs())
    penalised = cross_entropy(*make_inputs(), z_loss_coefficient=0.1)
    assert penalised.nats == plain.nats == plain.objective
    assert penalised.objective > plain.objective


def test_gradients_flow_from_the_objective_only():
    features, unembedding, targets, weights = make_inputs()
    gradient = jax.grad(lambda f: cross_entropy(f, unembedding, targets, weights).nats)(features)
    assert not np.any(gradient)


def test_gradient_of_bfloat16_features_stays_close_to_that_of_float32():
    features, unembedding, targets, weights = make_inputs()
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (features, unembedding)]
    wide = [x.astype(jnp.float32) for x in narrow]

    def loss(*inputs):
        return cross_entropy(*inputs, z_loss_coefficient=0.1, chunk_tokens=10)

    *sums, d_features, d_unembedding = mean_and_gradients(loss, *narrow, targets, weights)
    *wide_sums, wide_d_features, wide_d_unembedding = mean_and_gradients(loss, *wide, targets, weights)
    # The logits are float32 in both, so the sums differ by the order of additions only.
    for x, y in zip(sums, wide_sums, strict=True):
        assert_close(x, y, FLOAT32)
    assert d_features.dtype == d_unembedding.dtype == jnp.bfloat16
    assert_close(d_features, wide_d_features, BFLOAT16)
    assert_close(d_unembedding, wide_d_unembedding, BFLOAT16)


def largest_intermediate(jaxpr) -> int:
    """Returns the number of elements of the largest array that any equation, however deeply nested, makes."""
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    sizes += [largest_intermediate(sub) for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params)]
    return max(sizes, default=0)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_all_logits_never_exist_at_once(is_training):
    features, unembedding, targets, weights = make_inputs()

    def largest(chunk_tokens):
        if is_training:
            function = jax.value_and_grad(
                lambda f, u: cross_entropy(f, u, targets, weights, chunk_tokens=chunk_tokens).objective, argnums=(0, 1)
            )
        else:

            def function(f, u):
                return token_scores(f, u, targets, chunk_tokens=chunk_tokens)

        return largest_intermediate(jax.make_jaxpr(function)(features, unembedding).jaxpr)

    assert largest(N) == N * V
    assert largest(5) <= max(5 * V, V * D, N * D)
