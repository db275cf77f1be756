"""Trained weights that a run starts from: those of a run of ours, or of a Hugging Face folder.

They are the parameters and nothing else: optimizer state, step count, schedule and data order begin anew. What
identifies a run is the digest of its first parameters, not where they lay; and a run that has saved steps goes on from
those, whether what it started from is still there or not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxformer.attention.dispatch import Implementation
from jaxformer.checkpoint.train_state import open_checkpoints, restore_params, saved_params_digest
from jaxformer.config import UserError, flatten, replace, require
from jaxformer.data.tokenizer import load_tokenizer
from jaxformer.devices.mesh import state_sharding
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.host.console import print_notice
from jaxformer.host.files import require_json
from jaxformer.host.paths import URL, expanded, typed
from jaxformer.host.waiting import waiting
from jaxformer.model import ModelConfig, Transformer
from jaxformer.run.folder import TOKENIZER, load_run, run_tokenizer
from jaxformer.run.identity import CONFIG, read_config

# Fields of the model that a run may continue with otherwise: parameters keep their meaning, as when rows grow longer.
_MAY_CHANGE = ("rope_base", "sliding_window", "logit_soft_cap")

# No part of what the model computes.
_OBJECTIVE = ("z_loss",)


class InitialWeights(NamedTuple):
    """Trained weights that a run starts from."""

    record: dict[str, Any]
    """What the run's lineage keeps of them: `path` as it was given, `form`, `params` (their digest) and, of a run of
    ours, its experiment, seed, step and tokens, and the weights that it started from itself.
    """
    model: ModelConfig | None
    """The model that they are of; None where they are not there any more."""
    tokenizer: Path
    """File of the tokenizer that their ids are of."""
    load: Callable[[nnx.State], nnx.State]
    """Returns the parameters, in the places of abstract ones; raises `UserError` where they are damaged or gone."""

    @property
    def digest(self) -> str:
        """The digest of the parameters."""
        return self.record["params"]

    def __str__(self) -> str:
        known = {name: self.record[name] for name in ("experiment", "seed", "step") if name in self.record}
        what = ", ".join([self.record["form"], *(f"{name} {value}" for name, value in known.items())])
        return f"{self.record['path']} ({what}), parameters {self.digest[:12]}"


def open_weights(path: str) -> InitialWeights:
    """Returns the trained weights at a path, whose parameters are not read yet.

    Args:
        path: RUN, the folder of a finished run; RUN/checkpoints/STEP; or a Hugging Face folder.

    Raises:
        UserError: there are none, or they are damaged or of a form that is not known.
    """
    folder = expanded(path)
    try:
        require(not URL.match(path), "a URL; give a folder of this machine")
        require(folder.is_dir(), "no such folder")
        if folder.name.isdigit() and folder.parent.name == "checkpoints":
            return _of_run(path, folder.parent.parent, int(folder.name))
        advice = "no config.json; give RUN, the folder of a run, RUN/checkpoints/STEP or a Hugging Face folder"
        if "identity" in require_json(folder / CONFIG, advice):
            return _of_run(path, folder, None)
        raise UserError("not a run's folder")
    except OSError as error:
        raise UserError(f"init_from {path}: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"init_from {path}: {error}") from error


def _of_run(path: str, workdir: Path, step: int | None) -> InitialWeights:
    """Returns the weights of a step of a run of ours, or of its last."""
    experiment, config = load_run(workdir)
    run_tokenizer(workdir, config)  # Refused here if it is another.
    params = nnx.eval_shape(lambda: nnx.state(Transformer(experiment.model, rngs=nnx.Rngs(params=0))))
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        if step is None:
            step = experiment.training.steps
            require(
                step in steps,
                f"the run has not reached its last step, {step}; name one that is saved, {workdir}/checkpoints/STEP "
                f"with STEP of {steps or 'none yet'}",
            )
        require(step in steps, f"no checkpoint of step {step}; there are {steps or 'none'}")
        digest = saved_params_digest(checkpoints, params, step)
    record = {
        "path": path,
        "form": "jaxformer",
        "experiment": experiment.name,
        "seed": config["seed"],
        "step": step,
        "tokens": step * experiment.training.rows_per_step * experiment.packing.row_length,
        "params": digest,
        "init_from": config.get("lineage", {}).get("init_from"),
    }

    def load(params: nnx.State) -> nnx.State:
        with open_checkpoints(workdir / "checkpoints") as checkpoints:
            return restore_params(checkpoints, params, step)

    return InitialWeights(record, experiment.model, workdir / TOKENIZER, load)


def find_weights(path: str, workdir: Path) -> InitialWeights | None:
    """Returns the weights that a run in a folder starts from, or started from; None for no path.

    Those that are gone are known by what a run that started from the same path has recorded of them.

    Raises:
        UserError: as of `open_weights`.
    """
    if not path:
        return None
    try:
        return open_weights(path)
    except UserError as error:
        gone = error
    record = (read_config(workdir) or {}).get("lineage", {}).get("init_from")
    if not (isinstance(record, dict) and record.get("path") == path and isinstance(record.get("params"), str)):
        raise gone

    def load(params: nnx.State) -> NoReturn:
        raise gone

    return InitialWeights(record, None, workdir / TOKENIZER, load)


def with_tokenizer(experiment: Experiment, file: Path) -> Experiment:
    """Returns an experiment that reads a tokenizer where it would train one."""
    return experiment if experiment.tokenizer.path else replace(experiment, {"tokenizer.path": typed(file)})


def check_fits(experiment: Experiment, initial: InitialWeights) -> None:
    """Raises `UserError` unless weights are of an experiment's model and tokenizer; reports what may differ."""
    path = initial.record["path"]
    if initial.model is not None:
        ours, theirs = (flatten(model.effective(), science_only=True) for model in (experiment.model, initial.model))
        differing = {
            name: f"model.{name} {value} here, {theirs[name]} there"
            for name, value in ours.items()
            if value != theirs[name] and name not in _OBJECTIVE
        }
        refused = [text for name, text in differing.items() if name not in _MAY_CHANGE]
        require(
            not refused,
            f"init_from {path}: another model ({'; '.join(refused)}); set the fields to what they are there",
        )
        for text in differing.values():
            print_notice(f"init_from {path}: {text}; the run goes on otherwise than its weights were trained")
    given = experiment.tokenizer.path
    if given and load_tokenizer(given).digest != load_tokenizer(initial.tokenizer).digest:
        raise UserError(
            f"init_from {path}: its tokenizer is not the one of tokenizer.path ({given}), so that ids would mean other "
            "text; leave tokenizer.path out, and the run takes that of its weights"
        )


def load_params(
    initial: InitialWeights, experiment: Experiment, attention: Implementation, mesh: Mesh | None
) -> nnx.State:
    """Returns the parameters that a run starts from, where its state is to lie.

    Raises:
        UserError: they are damaged, or not there any more.
    """
    state = jax.eval_shape(lambda: make_state(experiment, 0, attention, mesh))
    params = state.params
    if state.mesh is not None:
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            params,
            state_sharding(state.mesh, params),
        )
    with waiting(f"the parameters of {initial.record['path']}"):
        return initial.load(params)
