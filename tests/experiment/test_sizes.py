"""A size of an experiment is it in all but its size, by rules that can be checked by hand."""

import dataclasses

import numpy as np
import pytest

from jaxformer.config import UserError, replace
from jaxformer.data.phases import Phase
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.experiment import Experiment, evaluated_steps, science, trained_tokens
from jaxformer.experiment.files import run_experiment_file
from jaxformer.experiment.resolution import load_experiment
from jaxformer.experiment.sizes import at_size, compute_of, fit_rate, is_another_size, published_rate, size_file
from jaxformer.flops import parameter_count
from jaxformer.parts.complete_p import CompletePScaling

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.fixture(scope="module")
def base():
    return load_experiment("baseline")


def test_at_its_own_depth_an_experiment_is_itself(base):
    assert science(replace(base, at_size(base, 4))) == science(base)
    assert not is_another_size(base, base)


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_a_size_has_the_shape_and_the_tokens_for_each_parameter(base, depth):
    one = replace(base, at_size(base, depth))
    assert (one.model.width, one.model.heads, one.model.K) == (32 * depth, depth, base.model.K)
    ratios = [trained_tokens(each) / parameter_count(each.model) for each in (one, base)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.01)
    tokens = trained_tokens(one) / trained_tokens(base)
    assert one.training.rows_per_step == round(4 * tokens**0.383)
    assert one.optimizer.warmup_steps / one.training.steps == pytest.approx(100 / 1600, rel=0.02)
    shares = [np.array(evaluated_steps(each)) / each.training.steps for each in (one, base)]
    np.testing.assert_allclose(*shares, atol=5e-3)
    assert is_another_size(one, base) and is_another_size(base, one)
    assert not is_another_size(replace(base, {RATE: 1e-3, "optimizer.warmup_steps": 10}), base)
    assert not is_another_size(dataclasses.replace(one, model=dataclasses.replace(one.model, qk_norm=True)), base)


def test_tokens_for_each_parameter_can_be_chosen(base):
    one = replace(base, at_size(base, 3, tokens_per_parameter=20))
    assert trained_tokens(one) / parameter_count(one.model) == pytest.approx(20, rel=0.01)


def test_groups_feed_forward_and_phases_scale_too(base):
    grouped = replace(
        base,
        {
            "model.key_value_heads": 2,
            "model.feed_forward_width": 344,
            "training.phases": (Phase(start=0.5, rows_per_step=8),),
        },
    )
    one = replace(grouped, at_size(grouped, 8))
    assert (one.model.heads, one.model.G, one.model.feed_forward_width) == (8, 4, 688)
    assert one.training.phases[0].rows_per_step == pytest.approx(2 * one.training.rows_per_step, abs=1)


def test_rates_go_through_what_was_tuned_or_fall_as_published(base):
    rate = fit_rate(base, {2: 8e-3, 4: 4e-3})
    assert rate.at(1) == 4e-3 and rate.at(compute_of(base, at_size(base, 2))) == 8e-3
    assert published_rate(base).at(1) == base.optimizer.learning_rate
    assert published_rate(base).at(256) == base.optimizer.learning_rate / 2
    longer = fit_rate(base, {2: 8e-3, 4: 4e-3}, tokens_per_parameter=20)
    assert longer.at(compute_of(base, at_size(base, 2, tokens_per_parameter=20))) == 8e-3
    scaled = replace(base, {"model.scaling": CompletePScaling(base_width=128, base_depth=4)})
    assert published_rate(scaled).at(256) == base.optimizer.learning_rate
    with pytest.raises(UserError, match="rates of one size"):
        fit_rate(base, {2: 8e-3})


def test_the_file_of_a_size_is_that_size(base, tmp_path):
    phased = replace(base, {"training.phases": (Phase(start=0.5, rows_per_step=8),)})
    for of, name in ((base, "baseline"), (phased, "baseline")):
        values = at_size(of, 3) | {RATE: 5e-3}
        path = tmp_path / "baseline_d3.py"
        path.write_text(size_file(name, values, "jaxformer ladder --experiment=baseline --sizes=3"))
        made = run_experiment_file(path, (Experiment,))
        assert science(made) == science(replace(of, values))
        assert path.read_text().startswith('"""baseline at depth 3.\n\n`jaxformer ladder')
