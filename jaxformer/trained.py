"""A trained model, from its run folder alone."""

from pathlib import Path
from typing import NamedTuple

import jax

from jaxformer.attention import implementation_from
from jaxformer.checkpoint import abstract, open_checkpoints, restore_params
from jaxformer.config import require
from jaxformer.device import choose_device
from jaxformer.experiment import Experiment, make_state
from jaxformer.run_folder import load_run, run_tokenizer
from jaxformer.step import TrainState
from jaxformer.tokenizer import Tokenizer


class Trained(NamedTuple):
    """A model at a step of its run.

    record: the run's `config.json`.
    state: with the parameters of the step, and no optimizer state.
    """

    workdir: Path
    experiment: Experiment
    record: dict
    step: int
    state: TrainState
    tokenizer: Tokenizer


def load_trained(workdir: Path, step: int | None = None) -> Trained:
    """Returns the model of a run folder at a step, or at the newest that is saved.

    Memory for the parameters is all that it takes; neither the corpus nor its shards are read.

    Raises:
        UserError: there is no such run or step, or the checkpoint is damaged.
    """
    experiment, record = load_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    device = choose_device(experiment.training.device)
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        step = max(steps, default=None) if step is None else step
        require(step in steps, f"no checkpoint of step {step} in {checkpoints.folder}; there are {steps or 'none'}")
        is_same_device = device.device_kind == record["device"]
        attention = implementation_from(record["attention"]) if is_same_device else None
        state = jax.eval_shape(lambda: make_state(experiment, record["seed"], attention))
        params = restore_params(checkpoints, abstract(state.params), step)
    return Trained(workdir, experiment, record, step, state.replace(params=params, opt_state=None), tokenizer)
