"""Trained weights that a run starts from: of a jaxformer run, or of a Hugging Face folder.

Only the parameters are taken: optimizer state, step count, schedule and data order start fresh. A run is identified by
the digest of its first parameters, not by their path. A run that has saved steps resumes from those, whether the
initial weights still exist or not.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.checkpoint.train_state import open_checkpoints, params_digest, restore_params, saved_params_digest
from jaxformer.config import UserError, replace, require
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer, tokenizer_file
from jaxformer.data.tokenizer_files import TOKENIZER_FILES
from jaxformer.devices.mesh import state_sharding
from jaxformer.experiment.experiment import Experiment, trained_tokens
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import print_notice
from jaxformer.host.files import require_json
from jaxformer.host.paths import on_this_machine, typed
from jaxformer.host.waiting import waiting
from jaxformer.huggingface.reading import read_model, read_pretrained
from jaxformer.huggingface.tensors import as_state, by_path, with_vocabulary
from jaxformer.model import FIT_ANY_WEIGHTS, VOCABULARY_TABLES, ModelConfig, abstract_model
from jaxformer.record import flatten
from jaxformer.run.folder import load_run, run_tokenizer
from jaxformer.run.identity import CONFIG, read_config

# In place of a model type of transformers, in the record of weights of a jaxformer run.
_OWN = "jaxformer"


class InitialWeights(NamedTuple):
    """Trained weights that a run starts from."""

    record: dict[str, Any]
    """What the run's lineage records: `path` as given, `model_type`, `params` (their digest) and, of a jaxformer run,
    its experiment, seed, step and tokens, and the weights that it started from itself.
    """
    model: ModelConfig | None
    """Their model, with the ids of its tokenizer as its vocabulary; None if they no longer exist."""
    folder: Path
    """Folder of their tokenizer."""
    load: Callable[[nnx.State], nnx.State]
    """Returns the parameters, placed like abstract ones; raises `UserError` if they are damaged or gone."""

    @property
    def digest(self) -> str:
        """The digest of the parameters, without table rows that stand for no token; see `saved_params_digest`."""
        return self.record["params"]

    def __str__(self) -> str:
        known = {name: self.record[name] for name in ("experiment", "seed", "step") if name in self.record}
        what = ", ".join([self.record["model_type"], *(f"{name} {value}" for name, value in known.items())])
        return f"{self.record['path']} ({what}), parameters {self.digest[:12]}"


def open_weights(path: str) -> InitialWeights:
    """Returns the trained weights at a path; their parameters are read only for their digest.

    Args:
        path: RUN, the folder of a finished run; RUN/checkpoints/STEP; or a Hugging Face folder.

    Raises:
        UserError: there are none, or they are damaged or of an unknown architecture.
    """
    with _path_in_errors(path):
        folder = on_this_machine(path)
        is_step = folder.name.isdecimal() and folder.parent.name == "checkpoints"
        if is_step and not (folder / CONFIG).exists():  # Other libraries keep whole models there.
            return _of_run(path, folder.parent.parent, int(folder.name))
        require(folder.is_dir(), "no such folder")
        advice = "no config.json; give RUN, the folder of a run, RUN/checkpoints/STEP or a Hugging Face folder"
        config = require_json(folder / CONFIG, advice)
        if "identity" in config:
            return _of_run(path, folder, None)
        return _of_huggingface(path, folder, str(config.get("model_type")))


@contextlib.contextmanager
def _path_in_errors(path: str) -> Iterator[None]:
    """Raises errors about weights as `UserError` that begins with their path, as given."""
    try:
        yield
    except OSError as error:
        raise UserError(f"init_from {path}: {error.strerror}") from error
    except UserError as error:
        text, folder = str(error), on_this_machine(path)
        for same in (folder, folder.absolute()):  # Already named.
            text = text.removeprefix(f"{same}: ").removeprefix(f"{same}/")
        raise UserError(f"init_from {path}: {text}") from error


def _of_run(path: str, workdir: Path, step: int | None) -> InitialWeights:
    """Returns the weights of a step of a jaxformer run, or of its last."""
    experiment, config = load_run(workdir)
    ids = run_tokenizer(workdir, config).vocabulary_size  # Refused here if it is another.
    saved = nnx.state(abstract_model(experiment.model))
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
        digest = saved_params_digest(checkpoints, saved, step, ids)
    record = {
        "path": path,
        "model_type": _OWN,
        "experiment": experiment.name,
        "seed": config["seed"],
        "step": step,
        "tokens": trained_tokens(experiment, step),
        "params": digest,
        "init_from": config.get("lineage", {}).get("init_from"),
    }

    def load(params: nnx.State) -> nnx.State:
        like, shapes = by_path(params), by_path(saved)
        as_saved = {
            name: _unsplit(leaf, shapes[name].shape) if name in VOCABULARY_TABLES else leaf
            for name, leaf in like.items()
        }
        with _path_in_errors(path), open_checkpoints(workdir / "checkpoints") as checkpoints:
            arrays = by_path(restore_params(checkpoints, as_state(as_saved, params), step))
        tables = {name: np.asarray(arrays[name]) for name in arrays if name in VOCABULARY_TABLES}
        tables = _with_rows_of(like, tables, ids)
        return as_state(arrays | {name: _placed(table, like[name]) for name, table in tables.items()}, params)

    model = dataclasses.replace(experiment.model, vocabulary_size=ids)
    return InitialWeights(record, model, workdir, load)


def _unsplit(like: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Returns an abstract array of a shape, whole on each device that `like` has a part on."""
    place = like.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=place)


def _with_rows_of(like: Mapping[str, jax.Array], params: Mapping[str, np.ndarray], ids: int) -> dict[str, np.ndarray]:
    """Returns parameters whose tables have rows for a tokenizer's ids, padded with zeros to the rows of `like`."""
    return with_vocabulary(with_vocabulary(params, ids), len(like["embedding"]))


def _of_huggingface(path: str, folder: Path, model_type: str) -> InitialWeights:
    """Returns the weights of a folder that Hugging Face transformers loads; for their digest they are read once."""
    model, ids = read_model(folder), load_tokenizer(tokenizer_in(folder)).vocabulary_size
    require(
        ids <= model.vocabulary_size,
        f"its tokenizer has {ids} ids and its embedding {model.vocabulary_size} rows, so that the last ids have no "
        "learned meaning; copy the model's own tokenizer there",
    )

    def load(params: nnx.State) -> nnx.State:
        like = by_path(params)
        with _path_in_errors(path):
            arrays = _with_rows_of(like, read_pretrained(folder), ids)
        # Each array is freed once it is placed.
        return as_state({name: _placed(arrays.pop(name), leaf) for name, leaf in like.items()}, params)

    with waiting(f"the parameters of {path}"):
        files = sorted((file.name, file.stat()) for file in folder.glob("*.safetensors*"))
        state = tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)
        model = dataclasses.replace(model, vocabulary_size=ids)
        digest = _digest_of_files(folder.absolute(), state, model)
    return InitialWeights({"path": path, "model_type": model_type, "params": digest}, model, folder, load)


# Cached, since a command needs it for each seed and gigabytes are read; changed files have another state.
@functools.lru_cache(maxsize=8)
def _digest_of_files(folder: Path, state: tuple, model: ModelConfig) -> str:
    """Returns the digest of the parameters in a folder, whose files have a state: names, sizes, times of change."""
    return params_digest(with_vocabulary(read_pretrained(folder), model.vocabulary_size))


def _placed(array: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])


def find_weights(path: str, workdir: Path) -> InitialWeights | None:
    """Returns the weights that a run in a folder starts from, or started from; None for no path.

    If they are gone, the record of a run that started from the same path identifies them.

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

    return InitialWeights(record, None, workdir, load)


def tokenizer_in(folder: Path) -> Path:
    """Returns the file of the tokenizer of a run or of a Hugging Face folder, as `tokenizer.path` takes it.

    Raises:
        UserError: there is none.
    """
    if (file := tokenizer_file(folder)) is None:
        files = " and no ".join(TOKENIZER_FILES)
        raise UserError(f"no {files}, so that the meaning of its ids is unknown; copy the model's there")
    return file


def with_tokenizer(experiment: Experiment, folder: Path) -> Experiment:
    """Returns an experiment that uses the tokenizer of a folder instead of training one."""
    if experiment.tokenizer.path:
        return experiment
    return replace(experiment, {"tokenizer.path": typed(tokenizer_in(folder))})


def check_fits(experiment: Experiment, initial: InitialWeights) -> None:
    """Raises `UserError` unless weights fit an experiment's model and tokenizer; prints allowed differences."""
    if initial.model is not None:
        _check_model(experiment.model, initial.model, initial.record)
    if not experiment.tokenizer.path:
        return
    ours = prepare_tokenizer((), experiment.tokenizer, cache_folder())  # It exists, so nothing is trained.
    theirs = load_tokenizer(tokenizer_in(initial.folder))
    require(
        ours.digest == theirs.digest or _have_same_ids(ours, theirs),
        f"init_from {initial.record['path']}: its tokenizer is not the one of tokenizer.path "
        f"({experiment.tokenizer.path}), so that ids would mean other text; leave that out, and the run uses the "
        "tokenizer of its weights",
    )


def _check_model(here: ModelConfig, there: ModelConfig, record: Mapping[str, Any]) -> None:
    """Raises `UserError` if weights with a record are of another model; prints differences that are allowed."""
    ours, theirs = (flatten(model.effective(), science_only=True) for model in (here, there))
    unused = here.unused_in_forward_pass
    if here.vocabulary_size > there.vocabulary_size:
        unused = unused | {"vocabulary_size"}  # Rows for the tokenizer's ids are all that is taken.
    differing = {
        name: f"model.{name} {ours.get(name)} here, {theirs.get(name)} there"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name) and name not in unused
    }
    refused = [name for name in differing if name not in FIT_ANY_WEIGHTS]
    require(
        not refused,
        f"init_from {record['path']}: another model ({'; '.join(differing[name] for name in refused)}); give "
        f"{' '.join(f'--model.{name}={theirs.get(name)}' for name in refused)}",
    )
    for text in differing.values():
        print_notice(f"init_from {record['path']}: {text}; the run differs in this from the training of its weights")


def _have_same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Returns whether each id stands for the same bytes in two tokenizers, even of different file formats."""
    return (one.bos_id, one.eos_id, one.pieces()) == (other.bos_id, other.eos_id, other.pieces())


def load_params(initial: InitialWeights, model: ModelConfig, mesh: Mesh | None) -> nnx.State:
    """Returns the parameters that a run starts from, placed as its state will be.

    Raises:
        UserError: they are damaged or no longer exist.
    """
    params = nnx.state(abstract_model(model))
    if mesh is None or mesh.size == 1:  # Needed here too: a run on other devices has saved their placement there.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: here, params)
    else:
        places = state_sharding(mesh, params)
    params = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), params, places)
    with waiting(f"the parameters of {initial.record['path']}"):
        return initial.load(params)
