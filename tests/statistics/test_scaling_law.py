"""A law through a few sizes forecasts the next one, with an interval that is neither too narrow nor of no use."""

import numpy as np
import pytest
from scipy import stats

from jaxformer.statistics import scaling_law
from jaxformer.statistics.scaling_law import NoLaw, predict_loss

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

# Five sizes, each of four times the compute of the one before.
PARAMETERS_S = 4e5 * 2.0 ** np.arange(5)
TOKENS_S = 1.25 * PARAMETERS_S
SEEDS = (5, 5, 3, 2)


def with_floor(parameters, tokens):
    return 0.8 + 0.5 * (parameters / 1e6) ** -0.34 + 0.6 * (tokens / 1e6) ** -0.28


def without(parameters, tokens):
    return (parameters / 1e6) ** -0.1 + (tokens / 1e6) ** -0.12


def runs_of(law, random, *, deviation, seed):
    """Returns the losses of the first sizes and the loss of one run of the last."""
    law_S = law(PARAMETERS_S, TOKENS_S) * (1 + deviation * random.standard_normal(len(PARAMETERS_S)))
    losses = [law_S[s] * (1 + seed * random.standard_normal(n)) for s, n in enumerate(SEEDS)]
    return losses, law_S[-1] * (1 + seed * random.standard_normal())


def predict(losses, parameters=PARAMETERS_S[-1], tokens=TOKENS_S[-1]):
    sizes = len(losses)
    return predict_loss(PARAMETERS_S[:sizes], TOKENS_S[:sizes], losses, parameters, tokens)


@pytest.mark.parametrize("law", [with_floor, without])
def test_intervals_hold_about_as_often_as_they_say(law):
    random, inside, widths = np.random.default_rng(0), [], []
    for _ in range(25):
        losses, truth = runs_of(law, random, deviation=0.003, seed=0.004)
        low, high = predict(losses).interval(0.9)
        inside.append(low <= truth <= high)
        widths.append((high - low) / truth)
    # tools/simulated_forecasts.py counts over thousands: here, what a broken interval would not reach.
    assert np.mean(inside) >= 0.72
    assert np.median(widths) < 0.08


@pytest.mark.parametrize("law", [with_floor, without])
def test_a_law_without_noise_is_continued(law):
    losses = [[loss] * 3 for loss in law(PARAMETERS_S, TOKENS_S)[:4]]
    found, truth = predict(losses), law(PARAMETERS_S, TOKENS_S)[-1]
    assert found.median == pytest.approx(truth, rel=0.01)
    assert found.interval(0.9)[0] < truth < found.interval(0.9)[1]


def test_each_form_is_believed_where_it_forecast_better():
    steep = [[loss] * 4 for loss in 1.5 + 0.5 * (PARAMETERS_S[:4] / 1e6) ** -0.9]
    straight = [[loss] * 4 for loss in 2 * (PARAMETERS_S[:4] / 1e6) ** -0.1]
    assert predict(steep).forms["with a floor"] > predict(straight).forms["with a floor"]
    assert sum(predict(steep).forms.values()) == pytest.approx(1)


def test_what_the_sizes_do_not_tell_widens_the_interval():
    losses = [[loss * (1 - 0.004), loss, loss * (1 + 0.004)] for loss in with_floor(PARAMETERS_S, TOKENS_S)[:4]]

    def width(parameters, tokens):
        low, high = predict(losses, parameters, tokens).interval()
        return high - low

    near = width(PARAMETERS_S[-1], TOKENS_S[-1])
    # Farther beyond the sizes, or with another number of tokens for each parameter than all of them.
    assert width(2 * PARAMETERS_S[-1], 2 * TOKENS_S[-1]) > 1.2 * near
    assert width(PARAMETERS_S[-2] / 4, 8 * TOKENS_S[-1]) > 1.2 * near
    noisy = [[loss * (1 - 0.03), loss, loss * (1 + 0.03)] for loss in with_floor(PARAMETERS_S, TOKENS_S)[:4]]
    assert np.diff(predict(noisy).interval()) > 1.5 * near


def test_a_cell_of_the_grid_is_the_conjugate_normal():
    form = scaling_law._FORMS[0]
    sizes_S2 = np.stack([PARAMETERS_S, TOKENS_S], 1)[:4] / 1e6
    basis_GSK, mean_S, variance_S = form.basis(sizes_S2), np.array([2.4, 2.2, 2.05]), np.array([1e-4, 2e-4, 3e-4])
    found = scaling_law._Fit(form, basis_GSK, mean_S, variance_S).posterior(3)
    g, t, scale = 17, 4, mean_S[:2].mean()
    prior_K, errors_K = np.array(form.shares_K) * scale, np.array(form.errors_K) * scale
    noise_SS = np.diag(variance_S + (scaling_law._DEVIATIONS_T[t] * scale) ** 2)
    basis_SK = basis_GSK[g, :3]
    of_data_SS = basis_SK @ np.diag(errors_K**2) @ basis_SK.T + noise_SS
    gain_KS = np.diag(errors_K**2) @ basis_SK.T @ np.linalg.inv(of_data_SS)
    np.testing.assert_allclose(found.mean_GTK[g, t], prior_K + gain_KS @ (mean_S - basis_SK @ prior_K), rtol=1e-8)
    covariance_KK = (np.eye(3) - gain_KS @ basis_SK) @ np.diag(errors_K**2)
    np.testing.assert_allclose(found.covariance_GTKK[g, t], covariance_KK, rtol=1e-6, atol=1e-10)

    def evidence(t):
        noise_SS = np.diag(variance_S + (scaling_law._DEVIATIONS_T[t] * scale) ** 2)
        of_data_SS = basis_SK @ np.diag(errors_K**2) @ basis_SK.T + noise_SS
        return stats.multivariate_normal(basis_SK @ prior_K, of_data_SS).logpdf(mean_S)

    # Of two deviations at the same exponents: the evidence, and the half-Cauchy prior from one midpoint to the next.
    middles = np.exp((np.log(scaling_law._DEVIATIONS_T)[1:] + np.log(scaling_law._DEVIATIONS_T)[:-1]) / 2)
    mass = np.diff(stats.halfcauchy(scale=scaling_law._DEVIATION).cdf(middles))
    expected = evidence(6) - evidence(1) + np.log(mass[5] / mass[0])
    assert found.log_weight_GT[g, 6] - found.log_weight_GT[g, 1] == pytest.approx(expected, abs=0.05)
    assert np.exp(found.log_weight_GT).sum() == pytest.approx(1)


def test_losses_that_rise_with_size_make_no_law():
    with pytest.raises(NoLaw, match="do not fall with size"):
        predict([[2.0], [2.1], [2.2], [2.3]])


@pytest.mark.parametrize(
    ("parameters", "tokens", "losses"),
    [
        ([1e6, 2e6], [1e6, 2e6], [[2.0], [1.9]]),
        ([1e6, 2e6, 4e6], [1e6, 2e6, 4e6], [[2.0], [1.9], []]),
        ([1e6, 2e6, 4e6], [1e6, 2e6, 4e6], [[2.0], [1.9], [float("nan")]]),
        ([1e6, 2e6, 0], [1e6, 2e6, 4e6], [[2.0], [1.9], [1.8]]),
    ],
)
def test_what_makes_no_law_is_refused(parameters, tokens, losses):
    with pytest.raises(ValueError, match="a law takes"):
        predict_loss(parameters, tokens, losses, 8e6, 8e6)
