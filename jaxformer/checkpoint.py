"""Saving, restoring and keeping training states with Orbax.

One step is one folder that appears by an atomic rename: params, optimizer state, the position in the data, and the
record of the run that wrote it. Saving is asynchronous: the loop waits only while arrays are copied to the host.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from jaxformer.config import UserError, check_types, execution, require
from jaxformer.step import TrainState


@dataclass(frozen=True)
class CheckpointConfig:
    """When states are saved and how many are kept.

    every_steps: steps between saves; the last step is always saved.
    keep: newest checkpoints that are kept.
    """

    every_steps: int = execution(1000)
    keep: int = execution(3)

    def __post_init__(self):
        check_types(self)
        require(self.every_steps >= 1, f"checkpoint.every_steps ({self.every_steps}) must be at least 1")
        require(self.keep >= 1, f"checkpoint.keep ({self.keep}) must be at least 1")


def open_checkpoints(folder: Path, config: CheckpointConfig) -> ocp.CheckpointManager:
    """Returns the manager of a run's checkpoints; close it to wait for the last save.

    Raises:
        UserError: the path is not a folder, or cannot be written.
    """
    require(not folder.exists() or folder.is_dir(), f"checkpoints {folder}: not a folder; move it away")
    try:
        return ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                cleanup_tmp_directories=True,
                # Created in the background, a folder that cannot be written blocks for 300 s before it fails.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )
    except OSError as error:
        raise UserError(f"checkpoints {folder}: {error.strerror}") from error


def save(checkpoints: ocp.CheckpointManager, state: TrainState, data_state: dict, record: dict) -> None:
    """Saves a state in the background, unless its step is saved already.

    Args:
        data_state: `get_state()` of the batch iterator, taken after the batch of the state's last step.
        record: what identifies the run; JSON.
    """
    step = int(state.step)
    if step == checkpoints.latest_step():
        return
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(_named(state.params)),
        opt_state=ocp.args.StandardSave(_named(state.opt_state)),
        data=ocp.args.JsonSave(data_state),
        record=ocp.args.JsonSave(record),
    )
    checkpoints.save(step, args=items)


def restore(checkpoints: ocp.CheckpointManager, state: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
    """Returns `(state, data_state)` of a step, or of the newest.

    Args:
        state: one of the same configuration, for structure, dtypes and placement; its values are not used.

    Raises:
        FileNotFoundError: there is no such step.
    """
    step = _existing_step(checkpoints, step)
    restored = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            params=_restore_args(state.params),
            opt_state=_restore_args(state.opt_state),
            data=ocp.args.JsonRestore(),
        ),
    )
    state = state.replace(
        step=jnp.asarray(step, jnp.int32),
        params=_unnamed(restored.params, state.params),
        opt_state=_unnamed(restored.opt_state, state.opt_state),
    )
    return state, restored.data


def restore_record(checkpoints: ocp.CheckpointManager, step: int | None = None) -> dict:
    """Returns the record saved with a step, or with the newest: what to compare before arrays are restored."""
    step = _existing_step(checkpoints, step)
    return checkpoints.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record


def restore_params(checkpoints: ocp.CheckpointManager, params: nnx.State, step: int | None = None) -> nnx.State:
    """Returns the parameters alone of a step, or of the newest; arguments and errors as for `restore`."""
    step = _existing_step(checkpoints, step)
    restored = checkpoints.restore(step, args=ocp.args.Composite(params=_restore_args(params)))
    return _unnamed(restored.params, params)


def _existing_step(checkpoints: ocp.CheckpointManager, step: int | None) -> int:
    steps = sorted(checkpoints.all_steps())
    wanted = steps[-1] if step is None and steps else step
    if wanted not in steps:
        raise FileNotFoundError(
            f"no checkpoint of step {wanted} in {checkpoints.directory}; there are {steps or 'none'}"
        )
    return wanted


def _named(tree: Any) -> dict[str, jax.Array]:
    """Returns every array of a tree under a name that tells what it is, in the order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unnamed(arrays: dict[str, jax.Array], like: Any) -> Any:
    """Returns the tree whose arrays are these; the inverse of `_named`."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])


def _restore_args(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like)))
