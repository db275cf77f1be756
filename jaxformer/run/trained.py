"""A trained model, from its run folder alone."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.dispatch import AttentionConfig, choose_implementation, implementation_from
from jaxformer.checkpoint.train_state import abstract, open_checkpoints, restore_params
from jaxformer.config import UserError
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.device import choose_device
from jaxformer.experiment.experiment import Experiment, attention_shape, make_state
from jaxformer.run.folder import load_run, run_tokenizer
from jaxformer.skip_steps import init_guard
from jaxformer.step import TrainState

# So often a step is looked for anew where the run has saved others while it was read.
_ATTEMPTS = 10


class Trained(NamedTuple):
    """A model at a step of its run."""

    workdir: Path
    experiment: Experiment
    record: dict
    """The run's `config.json`."""
    step: int
    state: TrainState
    """State with the parameters of the step, and no optimizer state."""
    tokenizer: Tokenizer


def load_trained(workdir: Path, step: int | None = None) -> Trained:
    """Returns the model of a run folder at a step, or at the newest that is saved.

    Memory for the parameters is all that it takes; neither the corpus nor its shards are read.

    Raises:
        UserError: there is no such run or step, or the checkpoint is damaged.
    """
    experiment, record = load_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    device = choose_device("auto")  # It need not be evaluated where it was trained.
    if device.device_kind == record["device"]:
        attention = implementation_from(record["attention"])
    else:
        attention = choose_implementation(AttentionConfig(), attention_shape(experiment)).implementation
    token_count = tokenizer.vocabulary_size
    state = jax.eval_shape(lambda: make_state(experiment, record["seed"], attention, token_count=token_count))
    step, params = _restore(workdir / "checkpoints", abstract(state.params), step)
    state = state.replace(step=jnp.asarray(step, jnp.int32), params=params, opt_state=None, guard=init_guard())
    return Trained(workdir, experiment, record, step, state, tokenizer)


def _restore(folder: Path, params: nnx.State, step: int | None) -> tuple[int, nnx.State]:
    """Returns a step, or the newest, and its parameters; a run that goes on may delete what is being read."""
    attempts = 0
    while True:
        attempts += 1
        with open_checkpoints(folder) as checkpoints:
            steps = checkpoints.steps()
            chosen = max(steps, default=None) if step is None else step
            if chosen is None or chosen not in steps:
                wanted = "" if step is None else f" of step {step}"
                raise UserError(f"no checkpoint{wanted} in {folder}; there are {steps or 'none'}")
            try:
                return chosen, restore_params(checkpoints, params, chosen)
            except UserError:
                with open_checkpoints(folder) as now:
                    if now.steps() == steps or attempts == _ATTEMPTS:
                        raise
