"""A step that failed, as a file from which it can be replayed."""

import io
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer.config import UserError
from jaxformer.data.packing import Batch
from jaxformer.host.files import write_whole
from jaxformer.step import TrainState, gradients


class Fault(NamedTuple):
    """A batch, and the loss and gradients that a state computed from it."""

    step: int
    """Number of the step, from 1."""
    checkpoint: int
    """Step of the checkpoint that holds the state."""
    batch: Batch
    loss: np.ndarray
    """Nats per target, float32."""
    gradient_norm: np.ndarray
    """Gradient norm before clipping, float32."""
    gradient_norms: dict[str, np.ndarray]
    """float32 norm of each parameter's gradient by its name; of stacked ones by layer, (L,)."""


def diagnose(state: TrainState, batch: Batch, *, step: int, checkpoint: int) -> Fault:
    """Returns the loss and gradients of a batch; nothing is updated."""
    loss, norm, norms = jax.device_get(_norms(state, batch))
    return Fault(step, checkpoint, batch, loss, norm, norms)


def write_fault(path: Path, fault: Fault) -> None:
    """Writes a fault as a NumPy archive that is whole or absent; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(
        content,
        allow_pickle=False,
        **{name: getattr(fault, name) for name in _SCALARS},
        **{f"batch/{name}": array for name, array in fault.batch._asdict().items()},
        **{f"gradient_norms/{name}": array for name, array in fault.gradient_norms.items()},
    )
    write_whole(path, content.getvalue())


def read_fault(path: Path) -> Fault:
    """Returns the fault that a file holds.

    Raises:
        UserError: there is no such file, or `write_fault` did not write it.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        return Fault(
            step=int(arrays["step"]),
            checkpoint=int(arrays["checkpoint"]),
            batch=Batch(**{name: arrays[f"batch/{name}"] for name in Batch._fields}),
            loss=arrays["loss"],
            gradient_norm=arrays["gradient_norm"],
            gradient_norms={
                name.removeprefix("gradient_norms/"): array
                for name, array in arrays.items()
                if name.startswith("gradient_norms/")
            },
        )
    except Exception as error:  # NumPy and zipfile raise many kinds for a bad file.
        raise UserError(f"fault file {path}: cannot be read ({type(error).__name__}: {error})") from error


_SCALARS = ("step", "checkpoint", "loss", "gradient_norm")


@jax.jit
def _norms(state: TrainState, batch: Batch):
    grads, sums = gradients(state, batch)
    norms = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        # The first axis of the blocks' parameters is the layer.
        axes = range(1, leaf.ndim) if name.startswith("blocks.") else range(leaf.ndim)
        norms[name] = jnp.sqrt(jnp.sum(jnp.square(leaf), axis=tuple(axes)))
    return sums.nats / sums.weight, optax.tree.norm(grads), norms
