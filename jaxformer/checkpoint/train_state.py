"""Saving, verifying and restoring training states.

A step holds the parameters, the rest of the state, and a record: the position in the data, the identity of the run, and
a fingerprint of every array. All of it is compared when the step is restored, since Orbax notices a truncated file but
not a flipped bit. A step that fails is set aside, and the next older one is taken. The first step that a process saves
is read back at once, in case a library writes elsewhere, or nothing, without an error.
"""

import errno
import gc
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jaxformer.checkpoint.fingerprint import digest_of, fingerprints, of_first_rows, sealed
from jaxformer.checkpoint.retention import CheckpointConfig
from jaxformer.checkpoint.store import Checkpoints, chain, first_line, hush, open_checkpoints
from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.devices.multihost import all_min
from jaxformer.model import VOCABULARY_TABLES
from jaxformer.record import check_same
from jaxformer.step import TrainState

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "Restored",
    "copy_newest",
    "open_checkpoints",
    "params_digest",
    "restore",
    "restore_params",
    "save",
    "save_and_wait",
    "saved_params_digest",
]


class Restored(NamedTuple):
    """The contents of a checkpoint, and a line on each newer one that is damaged."""

    state: TrainState
    data_state: dict
    record: dict
    damaged: list[str]


def save(checkpoints: Checkpoints, state: TrainState, data_state: dict, record: dict) -> str | None:
    """Saves a state in the background, unless its step is saved; returns None, or a line on a failed save.

    The first save of a process is waited for, and counts once it is read back.

    Args:
        data_state: `get_state()` of the batch iterator, taken after the batch of the state's last step.
        record: flat records, by name, that identify the run, and other values; JSON.

    Raises:
        TrainingFailure: the second save in a row failed, or the saved step cannot be read back.
    """
    step = int(state.step)
    params, rest = _named(state.params), _named(state.replace(params=None))
    record = sealed({"step": step, "data": data_state, "record": record, "fingerprints": fingerprints(params | rest)})
    items = {
        "params": ocp.args.StandardSave(params),
        "rest": ocp.args.StandardSave(rest),
        "record": ocp.args.JsonSave(record),
    }
    line = checkpoints.save(step, items)
    if line or checkpoints.is_proven:
        return line
    line = checkpoints.check(wait=True)
    if line is None:
        _read_back(checkpoints, step, {"params": params, "rest": rest}, record)
        checkpoints.prove()
    return line


def _read_back(checkpoints: Checkpoints, step: int, saved: dict[str, dict[str, jax.Array]], record: dict) -> None:
    """Raises `TrainingFailure` unless a step is restored as it was saved, in all processes; then sets it aside."""
    problem = ""
    undo = hush()
    try:
        _, found = _read(checkpoints, step, _on_host(saved), {})
        # Not all of the record, which is the first process's.
        if found["fingerprints"] != record["fingerprints"]:
            problem = "its arrays differ"
    except Exception as error:  # Whatever it is, the other processes wait for an answer.
        problem = first_line(error)
    finally:
        undo()
    if all_min(not problem):
        return
    text = f"step {step} was saved and cannot be read back ({problem or 'in another process'})"
    try:
        text += f"; it is set aside as {checkpoints.set_aside(step).name}"
    except OSError as error:
        text += f", nor set aside ({error.strerror})"
    raise TrainingFailure(f"checkpoints {checkpoints.folder}: {text}; choose another --workdir")


def _on_host(tree: Any) -> Any:
    """Returns the abstract arrays of a tree, placed so that a second state takes no memory of the device.

    If JAX has no platform for the host (`JAX_PLATFORMS=cuda`), they keep their places.
    """
    try:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return abstract(tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), tree)


def save_and_wait(checkpoints: Checkpoints, state: TrainState, data_state: dict, record: dict) -> list[str]:
    """Saves a state and waits until it is on the disk, trying again once; returns a line on each save that failed.

    Raises:
        TrainingFailure: the second save in a row failed.
    """
    lines = []
    while True:
        lines += [save(checkpoints, state, data_state, record), checkpoints.check(wait=True)]
        if int(state.step) in checkpoints.steps():
            break
    return [line for line in lines if line]


def restore(
    checkpoints: Checkpoints, state: TrainState, step: int | None = None, *, belongs_to: Mapping[str, dict] = {}
) -> Restored:
    """Returns the contents of a step, or of the newest undamaged one.

    Damaged newer ones are set aside as `STEP.damaged`, unless the checkpoints were opened to read.

    Args:
        state: one of the same configuration, for structure, dtypes and placement; its values are not used, and
            `abstract` frees their memory.
        belongs_to: flat records by name, which must equal those saved with the step.

    Raises:
        FileNotFoundError: there is no such step, or none at all.
        UserError: the checkpoints are another run's, or no step can be used; then nothing changes.
    """
    state = abstract(state)
    like = {"params": _named(state.params), "rest": _named(state.replace(params=None))}
    found, damaged = _newest(checkpoints, step, like, belongs_to)
    lines = [_set_aside(checkpoints, bad, reason) for bad, reason in damaged.items()]
    arrays, record = found
    state = _unnamed(arrays["rest"], state.replace(params=None)).replace(
        params=_unnamed(arrays["params"], state.params)
    )
    return Restored(state, record["data"], record["record"], lines)


def copy_newest(source: Checkpoints, folder: Path, up_to: int, belongs_to: Mapping[str, dict]) -> tuple[int, list[str]]:
    """Copies the newest undamaged step to an empty folder; returns it, and a line on each damaged one.

    Args:
        source: opened to read; a process may be saving and deleting steps there.
        folder: of the checkpoints of another run.
        up_to: the last step to consider.
        belongs_to: flat records by name, which replace those of the step.

    Raises:
        FileNotFoundError: there is no such step.
        UserError: no step can be used.
        TrainingFailure: it could not be saved.
    """
    (arrays, record), damaged = _newest(source, None, {"params": None, "rest": None}, {}, up_to)
    items: dict[str, Any] = {item: ocp.args.StandardSave(arrays[item]) for item in ("params", "rest")}
    items["record"] = ocp.args.JsonSave(sealed(record | {"record": record["record"] | belongs_to}))
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        while record["step"] not in checkpoints.steps():
            checkpoints.save(record["step"], items)
            checkpoints.check(wait=True)
    there = source.steps()  # Steps deleted meanwhile are not damaged.
    return record["step"], [_set_aside(source, bad, reason) for bad, reason in damaged.items() if bad in there]


def restore_params(checkpoints: Checkpoints, params: nnx.State, step: int | None = None) -> nnx.State:
    """Returns only the parameters of a step, or of the newest undamaged one; nothing is set aside."""
    (arrays, _), _ = _newest(checkpoints, step, {"params": _named(abstract(params))}, {})
    return _unnamed(arrays["params"], params)


def params_digest(params: Mapping[str, np.ndarray]) -> str:
    """Returns a hexadecimal digest of the names and values of parameters by dotted path."""
    return digest_of(fingerprints(params))


def saved_params_digest(checkpoints: Checkpoints, params: nnx.State, step: int, token_count: int) -> str:
    """Returns the `params_digest` of a step without reading its parameters, with tables cut to the tokens' rows.

    The other rows have no influence: they have no gradient, so they affect neither its norm nor moments nor updates of
    other parameters. Only weight decay changes them, and it keeps the zeros that a run begins with.

    Args:
        params: of the same model; only their names and shapes are used, and they may be abstract.
        token_count: ids that the run's tokenizer has.

    Raises:
        UserError: the step has no whole record of these parameters.
    """
    (_, record), _ = _newest(checkpoints, step, {}, {})
    saved, named = record["fingerprints"], _named(params)
    lacking = [name for name in named if name not in saved]
    require(not lacking, f"checkpoint {step} in {checkpoints.folder}: another version made it, without {lacking[:1]}")
    found = {name.removesuffix(".value"): (saved[name], array.shape) for name, array in named.items()}
    return digest_of(
        {
            name: of_first_rows(value, shape, token_count) if name in VOCABULARY_TABLES else value
            for name, (value, shape) in found.items()
        }
    )


def abstract(tree: Any) -> Any:
    """Returns a tree with shapes, dtypes and placements in place of its arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


class _Damaged(Exception):
    """A step cannot be used; its text is the reason."""


# The arrays to read of a step, by item, abstract; None for an item's arrays as they were saved.
_Like = Mapping[str, dict[str, Any] | None]


def _newest(
    checkpoints: Checkpoints, step: int | None, like: _Like, belongs_to: Mapping[str, dict], up_to: float = math.inf
):
    """Returns `((arrays, record), damaged)`: of the newest usable step up to one, or of the given one."""
    steps = [each for each in checkpoints.steps() if each <= up_to]
    if not steps or step not in (None, *steps):
        wanted = "" if step is None else f" of step {step}"
        raise FileNotFoundError(f"no checkpoint{wanted} in {checkpoints.folder}; there are {steps or 'none'}")
    damaged = {}
    undo = hush()
    try:
        while rest := [each for each in checkpoints.steps() if each <= up_to and each not in damaged]:
            candidate = rest[-1] if step is None else step
            try:
                return _read(checkpoints, candidate, like, belongs_to), damaged
            except _Damaged as error:
                damaged[candidate] = str(error)
            gc.collect()  # Abandoned reads complain when collected: here, where it is silent.
            if step is not None:
                break
            checkpoints.reload()  # It may be gone because a run saved another.
    finally:
        undo()
    reasons = "; ".join(f"{bad}: {reason}" for bad, reason in list(damaged.items())[:3])
    anew = "" if checkpoints.is_read_only else ", or choose another --workdir to start again"
    raise UserError(f"checkpoints {checkpoints.folder}: no step can be used ({reasons}); restore a copy of them{anew}")


def _read(checkpoints: Checkpoints, step: int, like: _Like, belongs_to: Mapping[str, dict]):
    """Returns `(arrays, record)` of a step; raises `_Damaged`, or `UserError` if it is another run's."""
    record = _items(checkpoints, step, {"record": ocp.args.JsonRestore()})["record"]
    if not isinstance(record, dict) or record != sealed(record):
        raise _Damaged("its record differs from what was saved")
    if not {"step", "data", "record", "fingerprints"} <= record.keys():
        raise _Damaged("its record is of another version of jaxformer")
    if record["step"] != step:
        raise _Damaged(f"it holds step {record['step']}")
    for name, ours in belongs_to.items():
        check_same(f"checkpoints in {checkpoints.folder} belong", ours, record["record"].get(name, {}))
    if not like:  # Orbax takes no items for all.
        return {}, record
    arrays = _items(checkpoints, step, {item: ocp.args.StandardRestore(named) for item, named in like.items()})
    for item in like:
        for name, value in fingerprints(arrays[item]).items():
            if record["fingerprints"].get(name) != value:
                raise _Damaged(f"{name} differs from what was saved")
    return arrays, record


def _items(checkpoints: Checkpoints, step: int, items: dict) -> Any:
    try:
        return checkpoints.restore(step, items)
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        if any(_is_of_the_machine(each) for each in chain(error)):
            raise UserError(
                f"checkpoint {step} in {checkpoints.folder} cannot be read ({first_line(error)}); it is left as it is, "
                "and the same command tries again"
            ) from error
        raise _Damaged(first_line(error)) from error


def _is_of_the_machine(error: BaseException) -> bool:
    """Returns whether reading failed for lack of resources or permission, and not because of the files' contents."""
    if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
        return True
    is_short = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError) or is_short or "PERMISSION_DENIED" in str(error)


_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)


def _set_aside(checkpoints: Checkpoints, step: int, reason: str) -> str:
    text = f"checkpoint {step} in {checkpoints.folder} is damaged ({reason})"
    if checkpoints.is_read_only:
        return text
    try:
        return f"{text}; it is set aside as {checkpoints.set_aside(step).name}"
    except OSError as error:
        raise UserError(f"{text} and cannot be set aside ({error.strerror}); move it elsewhere") from error


def _named(tree: Any) -> dict[str, jax.Array]:
    """Returns every array of a tree under a descriptive name, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unnamed(arrays: dict[str, jax.Array], like: Any) -> Any:
    """Returns the tree of these arrays; the inverse of `_named`."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])
