"""Simulated ladders: where nothing scatters the forecast is close, and where much more does its interval misses."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def simulated():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import simulated_forecasts

        yield simulated_forecasts


def test_a_law_without_noise_is_met_and_more_noise_than_is_allowed_for_is_seen(simulated):
    law = simulated.LAWS["floor 1.0, exponents 0.35 and 0.37 (Besiroglu)"]
    still = simulated.MEASURED._replace(deviation=0.0, deviation_by_seed_S=(0.0,) * 5)
    found = simulated.simulate(law, still, 2)
    assert found.inside == 1.0 and found.error < 0.005 < found.width < 0.05
    wild = simulated.MEASURED._replace(deviation_by_seed_S=(*simulated.MEASURED.deviation_by_seed_S[:-1], 0.1))
    assert simulated.simulate(law, wild, 20).inside < 0.6


def test_a_bent_ladder_deviates_at_its_ends_and_further_beyond_them(simulated):
    def law(N, D):
        return 1 + 0 * N

    bent = simulated.MEASURED._replace(deviation=0.01, deviation_by_seed_S=(0.0,) * 5, is_bent=True)
    random = simulated.np.random.default_rng(0)
    runs = simulated.draw_ladder(law, bent, random)[-1]
    means = [float(one.mean()) - 1 for one in runs]
    assert means[0] == pytest.approx(means[3]) and abs(means[4]) > 2 * abs(means[0]) > 4 * abs(means[1])
