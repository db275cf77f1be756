"""Saving and restoring: bit by bit, the right step, and errors that say what there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.checkpoint import CheckpointConfig, open_checkpoints, restore, restore_params, restore_record, save
from jaxformer.config import UserError
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import init_state

MODEL = ModelConfig(vocabulary_size=7, width=12, depth=3, heads=2, qk_norm=True)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), steps=9)
DATA_STATE = {"next_index": 40, "nested": {"a": [1, 2], "b": None}}
RECORD = {"seconds": 1.25, "name": "tiny~12ab34"}


@functools.cache
def initial_state():
    return init_state(MODEL, OPTIMIZER, seed=0)


def make_state(step):
    """Returns a state in which every number of the parameters and the optimizer is random."""
    state = initial_state()
    rng = np.random.default_rng(step)

    def noise(x):
        values = rng.standard_normal(x.shape) if x.dtype == jnp.float32 else rng.integers(1, 99, x.shape)
        return jnp.asarray(values, x.dtype)

    params, opt_state = jax.tree.map(noise, (state.params, state.opt_state))
    return state.replace(step=jnp.int32(step), params=params, opt_state=opt_state)


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which steps 1, 3, 4 and 12 were saved and two are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = open_checkpoints(folder, CheckpointConfig(keep=2))
    for step in (1, 3, 4, 12):
        save(checkpoints, make_state(step), DATA_STATE | {"step": step}, RECORD)
    save(checkpoints, make_state(12), DATA_STATE, RECORD)  # saved already: left as it is
    checkpoints.close()
    return folder


@pytest.fixture
def checkpoints(folder):
    checkpoints = open_checkpoints(folder, CheckpointConfig())
    yield checkpoints
    checkpoints.close()


def test_restored_state_is_the_saved_one_bit_by_bit(checkpoints):
    record = restore_record(checkpoints, 4)
    state, data_state = restore(checkpoints, initial_state(), 4)
    assert_equal(state, make_state(4))
    assert data_state == DATA_STATE | {"step": 4}
    assert record == RECORD


def test_newest_step_is_restored_unless_another_is_named(checkpoints):
    state, data_state = restore(checkpoints, initial_state())
    assert_equal(state, make_state(12))
    assert data_state == DATA_STATE | {"step": 12}


@pytest.mark.parametrize(("step", "expected"), [(None, 12), (4, 4)])
def test_parameters_are_restored_alone(checkpoints, step, expected):
    params = restore_params(checkpoints, initial_state().params, step)
    assert_equal(params, make_state(expected).params)


def test_only_the_newest_are_kept(checkpoints, folder):
    assert sorted(checkpoints.all_steps()) == [4, 12]
    assert sorted(path.name for path in folder.iterdir()) == ["12", "4"]


def test_missing_step_is_an_error_that_names_those_that_exist(checkpoints):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4, 12\]"):
        restore(checkpoints, initial_state(), 3)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4, 12\]"):
        restore_params(checkpoints, initial_state().params, 3)


def test_folder_without_checkpoints_says_so(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "empty", CheckpointConfig())
    with pytest.raises(FileNotFoundError, match="there are none"):
        restore(checkpoints, initial_state())
    checkpoints.close()


def test_file_in_place_of_the_folder_is_the_users_to_move(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: not a folder; move it away"):
        open_checkpoints(tmp_path / "checkpoints", CheckpointConfig())


@pytest.mark.parametrize("name", ["every_steps", "keep"])
def test_less_than_one_is_refused(name):
    with pytest.raises(UserError, match=rf"checkpoint.{name} \(0\) must be at least 1"):
        dataclasses.replace(CheckpointConfig(), **{name: 0})
