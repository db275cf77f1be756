"""Experiments: found, overridden, checked as a whole, and distinguished by their science."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxformer.attention.dispatch import AttentionConfig
from jaxformer.config import UserError
from jaxformer.experiment.experiment import Experiment, make_state, recorded_experiment, science
from jaxformer.experiment.files import list_experiments
from jaxformer.experiment.resolution import load_experiment
from jaxformer.record import to_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

BASELINE = Path(__file__).parents[2] / "experiments" / "baseline.py"


def configs() -> dict[str, type]:
    return {f.name: f.type for f in dataclasses.fields(Experiment) if dataclasses.is_dataclass(f.type)}


def test_baseline_spells_out_every_field_of_every_configuration():
    written = {
        call.func.id: {keyword.arg for keyword in call.keywords}
        for call in ast.walk(ast.parse(BASELINE.read_text()))
        if isinstance(call, ast.Call)
    }
    assert len(configs()) == 11
    for config in configs().values():
        assert written[config.__name__] == {f.name for f in dataclasses.fields(config)}


def test_an_experiment_is_found_by_name_and_by_path():
    by_name, by_path = load_experiment("baseline"), load_experiment(str(BASELINE))
    assert by_name == by_path and by_name.name == "baseline"
    assert "baseline" in list_experiments()


def test_overrides_of_science_mark_the_name_and_those_of_execution_do_not():
    wide, deep = (load_experiment("baseline", {f"model.{key}": "8"}) for key in ("heads", "depth"))
    assert wide.name.startswith("baseline~") and deep.name.startswith("baseline~") and wide.name != deep.name
    assert load_experiment("baseline", {"model.heads": "8"}).name == wide.name
    assert load_experiment("baseline", {"training.log_every_steps": "7"}).name == "baseline"
    assert load_experiment("baseline", {"model.heads": "4"}).name == "baseline", "4 is what it was"
    # How attention is computed is execution; what it sees, and which documents share a row, is science.
    assert load_experiment("baseline", {"attention.implementation": "xla"}) == (
        dataclasses.replace(load_experiment("baseline"), attention=AttentionConfig(implementation="xla"))
    )
    for key in ("model.sliding_window", "packing.documents_per_row"):
        assert load_experiment("baseline", {key: "8"}).name.startswith("baseline~"), key


def test_science_leaves_out_what_only_changes_the_execution():
    leaves = science(load_experiment("baseline"))
    assert {"model.width", "optimizer.learning_rate", "packing.method", "corpus.validation_share"} <= set(leaves)
    assert {"model.sliding_window", "packing.documents_per_row"} <= set(leaves)
    assert not {"name", "question", "training.micro_batches", "model.scan_unroll", "corpus.licence"} & set(leaves)
    assert not [key for key in leaves if key.startswith("attention.")]


def test_record_of_an_earlier_version_is_read_without_the_field_that_is_gone():
    experiment = load_experiment("baseline")
    record = to_dict(experiment)
    record["attention"]["autotune"] = True
    assert recorded_experiment(record) == experiment
    record["attention"]["other"] = True
    with pytest.raises(UserError, match="AttentionConfig has no field other"):
        recorded_experiment(record)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokenizer.vocabulary_size": "8192"}, r"tokenizer.vocabulary_size \(8192\) must not exceed .* \(4096\)"),
        ({"optimizer.warmup_steps": "1600"}, r"warmup_steps \(1600\) must be less than training.steps \(1600\)"),
        ({"model.learned_positions": "255"}, r"learned_positions \(255\) must be at least packing.row_length \(256\)"),
    ],
)
def test_configurations_that_do_not_fit_each_other_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_experiment("baseline", overrides)


def test_the_state_follows_the_experiment():
    overrides = {"model.width": "16", "model.depth": "2", "training.compute_dtype": "bfloat16"}
    experiment = load_experiment("baseline", overrides | {"training.micro_batches": "2"})
    state = make_state(experiment, seed=0, token_count=4000)
    assert state.params["embedding"].shape == (4096, 16) and state.model.token_count == 4000
    assert (state.compute_dtype, state.micro_batches, int(state.step)) == (jnp.bfloat16, 2, 0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
