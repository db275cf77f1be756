"""A failed step is written whole, read back, and made again bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import UserError
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.run.failed_step import diagnose, read_fault, write_fault
from jaxformer.step import gradients, init_state

pytestmark = pytest.mark.device_free

V, T = 37, 12
MODEL = ModelConfig(vocabulary_size=V, width=12, depth=2, heads=2)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), steps=9)


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch([[12], [3, 4, 2]], T, V)


@pytest.fixture(scope="module")
def state():
    """A state whose second layer makes a gradient that is not finite."""
    state = init_state(MODEL, OPTIMIZER, seed=0, micro_batches=2)
    state.params["blocks"]["feed_forward"]["down"][...] = (
        state.params["blocks"]["feed_forward"]["down"][...].at[1, 0, 0].set(jnp.inf)
    )
    return state


def test_norms_are_those_of_the_gradient_layer_by_layer(batch):
    state = init_state(MODEL, OPTIMIZER, seed=0)
    fault = diagnose(state, batch, step=7, checkpoint=9)
    grads, sums = jax.jit(gradients)(state, batch)
    down_LFD = np.asarray(grads["blocks"]["feed_forward"]["down"][...])
    np.testing.assert_allclose(
        fault.gradient_norms["blocks.feed_forward.down.value"],
        np.linalg.norm(down_LFD.reshape(MODEL.depth, -1), axis=1),
        rtol=1e-5,
    )
    assert fault.gradient_norms["embedding.value"].shape == ()
    total = sum(np.sum(np.square(norm, dtype=np.float64)) for norm in fault.gradient_norms.values())
    assert fault.gradient_norm == pytest.approx(np.sqrt(total), rel=1e-5)
    assert fault.loss == pytest.approx(float(sums.nats / sums.weight), rel=1e-5)


def test_written_fault_is_read_back_and_made_again(state, batch, tmp_path):
    fault = diagnose(state, batch, step=7, checkpoint=9)
    assert not np.isfinite(fault.loss)
    path = tmp_path / "faults" / "step_7.npz"
    write_fault(path, fault)
    assert [each.name for each in path.parent.iterdir()] == ["step_7.npz"]
    read = read_fault(path)
    assert (read.step, read.checkpoint) == (7, 9)
    again = diagnose(state, read.batch, step=read.step, checkpoint=read.checkpoint)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fault, name))
        np.testing.assert_array_equal(getattr(read, name), getattr(fault, name))
    assert again.gradient_norms.keys() == read.gradient_norms.keys() == fault.gradient_norms.keys()
    for name, norm in fault.gradient_norms.items():
        np.testing.assert_array_equal(again.gradient_norms[name], norm)
        np.testing.assert_array_equal(read.gradient_norms[name], norm)
    for ours, theirs in zip(read.batch, batch, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", "pickle"])
def test_file_that_is_no_fault_is_refused_and_nothing_in_it_is_run(content, tmp_path):
    path = tmp_path / "step_1.npz"
    if content == "pickle":
        np.savez(path, step=np.array([{"a": 1}], dtype=object))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"fault file .*step_1.npz: cannot be read"):
        read_fault(path)
