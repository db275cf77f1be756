"""The coordinate check: what it measures is the stream of the model, and its powers are those of a power law."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.config import replace
from jaxformer.experiment import load_experiment
from jaxformer.experiment.experiment import make_state
from jaxformer.plan.run_time import random_batch
from jaxformer.step import train_step

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import coordinate_check

        patch.setattr(coordinate_check, "VOCABULARY", 300)
        patch.setattr(coordinate_check, "ROW_LENGTH", 8)
        yield coordinate_check


def test_powers_are_those_of_a_power_law(check):
    measured = {size: {place: [0.5, 3.0 * size**0.7] for place in check._PLACES} for size in (16, 64, 128)}
    assert check.growth(measured) == pytest.approx(dict.fromkeys(check._PLACES, 0.7))


def test_stream_behind_the_last_block_is_that_of_the_model_without_measuring(check):
    experiment = check.sized(load_experiment("baseline"), width=64, depth=2)
    assert (experiment.model.heads, experiment.model.K, experiment.model.F) == (2, 32, 256)
    batch = random_batch(2, 8, 300)
    _, metrics = jax.jit(train_step)(make_state(experiment, seed=0, token_count=300), batch)
    plain = dataclasses.replace(experiment.model, residual=None)

    def stream(state):
        model = state.model
        model.final_norm = lambda x_ND: x_ND
        return model.features(batch.tokens_BT, batch.positions_BT, batch.document_starts_BT, batch.document_ends_BT)

    x_ND = jax.jit(stream)(make_state(replace(experiment, {"model": plain}), seed=0, token_count=300))
    found = metrics["reported"]["feed_forward/mean_abs"]
    assert found.shape == (2,)
    np.testing.assert_allclose(found[-1], np.mean(np.abs(x_ND)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["width", "depth"])
def test_features_grow_with_the_size_of_the_plain_model_and_not_with_complete_p(check, axis):
    powers = {}
    for name in ("baseline", "complete_p@baseline"):
        experiment, measured = load_experiment(name), {}
        for multiple in (1, 4):
            width, depth = (64 * multiple, 2) if axis == "width" else (64, 4 * multiple)
            measured[multiple] = check.features_by_step(check.sized(experiment, width, depth), 2)
        powers[name] = check.growth(measured)["all blocks"]
    assert powers["baseline"] > 0.5 and abs(powers["complete_p@baseline"]) < 0.2, powers
