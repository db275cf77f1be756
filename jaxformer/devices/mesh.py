"""Where arrays live when a run has more than one device: rows over all of them, parameters over some.

The devices form a mesh of two axes. The rows of a batch are split over both, so every device computes its own rows with
the same code as a single one: attention, loss and micro-batches need no other device. Along `fsdp` each matrix and its
optimizer state are split as well (fully sharded data parallelism, Zhao et al. 2023, arXiv 2304.11277): the matrices of
a layer are gathered inside the scan over layers, forward and again backward, and the transpose of a gather sums their
gradient into the parts. Along `data` parameters are copies; their gradients are summed once per step.

This is written out under `jax.shard_map`, not left to the compiler, which does not partition a custom call such as a
kernel; and the code shows what is gathered where. The optimizer is left to the compiler: its operations are by element,
except for sums and Muon's products.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.config import Bounds, check_fields, execution, require

DATA, FSDP = "data", "fsdp"

# Rows are split over both axes.
ROWS = PartitionSpec((DATA, FSDP))
COPIED = PartitionSpec()


@dataclass(frozen=True)
class MeshConfig:
    """The devices that a run is spread over; it learns the same up to rounding."""

    data: Annotated[int, Bounds(at_least=0, below=1 << 16)] = execution(1)
    """Devices, or groups of them, that each hold all parameters; 0 for all available."""
    fsdp: Annotated[int, Bounds(at_least=0, below=1 << 16)] = execution(1)
    """Devices that share the parameters and the optimizer state, a part each; 0 for all available."""
    processes: Annotated[int, Bounds(at_least=1, below=1 << 16)] = execution(1)
    """Processes of the run, each with its own devices. Several find each other by Slurm or Open MPI, or by the
    environment variables JAX_COORDINATOR_ADDRESS (host:port of process 0) and JAX_PROCESS_ID (from 0).
    """

    def __post_init__(self):
        check_fields(self, "mesh")
        require(bool(self.data or self.fsdp), "mesh.data and mesh.fsdp must not both be 0: set one of them to 1")

    @property
    def devices(self) -> int:
        """The number of devices, counting one for an axis that takes the rest."""
        return max(1, self.data) * max(1, self.fsdp)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Returns the mesh of the first devices, process by process; one process may leave devices unused.

    Raises:
        UserError: there are too few, or several processes would leave some unused.
    """
    there = f"the {len(devices)} device{'s' * (len(devices) > 1)} of this run"
    known = max(config.data, 1) * max(config.fsdp, 1)
    if not config.data or not config.fsdp:
        require(
            len(devices) % known == 0,
            f"mesh.{'fsdp' if config.fsdp else 'data'} ({known}) must divide {there}",
        )
    data, fsdp = config.data or len(devices) // known, config.fsdp or len(devices) // known
    processes = len({device.process_index for device in devices})
    require(
        processes == config.processes, f"mesh.processes ({config.processes}) is not the {processes} that JAX sees here"
    )
    require(
        data * fsdp == len(devices) if processes > 1 else data * fsdp <= len(devices),
        f"mesh.data x mesh.fsdp ({data} x {fsdp}) must be {'' if processes > 1 else 'at most '}{there}; mesh.data = 0 "
        "takes the rest",
    )
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered[: data * fsdp]).reshape(data, fsdp), (DATA, FSDP))


def check_rows(data: int, fsdp: int, rows_per_step: int, micro_batches: int) -> None:
    """Raises `UserError` unless the micro-batches of all devices of a mesh have one size."""
    parts = micro_batches * data * fsdp
    require(
        rows_per_step % parts == 0,
        f"training.rows_per_step ({rows_per_step}) must be a multiple of training.micro_batches x mesh.data x "
        f"mesh.fsdp ({micro_batches} x {data} x {fsdp} = {parts})",
    )


def whole_rows(mesh: Mesh | None, rows: int) -> int:
    """Returns `rows` rounded up to a multiple of the devices of a mesh; unchanged for None."""
    return rows if mesh is None else -(-rows // mesh.size) * mesh.size


def partition(mesh: Mesh, tree: Any) -> Any:
    """Returns a `PartitionSpec` for each array of a tree of parameters, or of a state that has them.

    A matrix is split along the first of its axes that `fsdp` divides; the axis of the layers stays whole, so that the
    scan takes one layer after another. Vectors and numbers are copied.
    """

    def spec(path, leaf):
        is_stacked = _is_stacked(path)
        sizes = leaf.shape[is_stacked:]
        divisible = [axis for axis, size in enumerate(sizes) if size % mesh.shape[FSDP] == 0]
        if len(sizes) < 2 or not divisible or mesh.shape[FSDP] == 1:
            return COPIED
        return PartitionSpec(*[None] * (is_stacked + divisible[0]), FSDP)

    return jax.tree_util.tree_map_with_path(spec, tree)


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Returns the placement of each array of a state, for `jax.jit`; moments are placed like their parameters."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), partition(mesh, state))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of the rows of a batch: equally many on each device, in order."""
    return NamedSharding(mesh, ROWS)


def rows_here(mesh: Mesh, rows: int) -> slice:
    """Returns the rows of a batch that this process's devices compute."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    places = [index[0].indices(rows) for index in indices if index]
    return slice(min(start for start, _, _ in places), max(stop for _, stop, _ in places))


def put_rows(mesh: Mesh | None, batch: Any) -> Any:
    """Returns a batch with its rows on their devices, given this process's rows; unchanged for None."""
    if mesh is None:
        return batch
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh)), batch)


def copied(mesh: Mesh | None, tree: Any) -> Any:
    """Returns a tree with every array whole on every device; unchanged for None."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, COPIED))


def on_parts(mesh: Mesh, function: Callable, params: Any, rows: Any, *, split_rows: bool = True) -> Any:
    """Returns `function(params, rows)`, computed on each device with its parts of both; the results are copies.

    Args:
        function: its parameters are parts, which it makes whole by `whole`; its results are the same on every device.
        split_rows: whether each device has its own rows, or all.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(partition(mesh, params), ROWS if split_rows else COPIED),
        out_specs=COPIED,
        check_vma=False,
    )(params, rows)


def gradient_on_parts(mesh: Mesh, function: Callable, params: Any, rows: Any) -> tuple[Any, Any]:
    """Returns `function(params, rows)`, gradients and sums of each device's own rows, summed over all devices.

    The gradients are split as the parameters are. All sums are float32.
    """
    specs = partition(mesh, params)

    def summed(params, rows):
        gradients, sums = function(params, rows)
        gradients = jax.tree.map(
            # Gradients of gathered parameters are already summed along `fsdp`.
            lambda gradient, spec: jax.lax.psum(gradient.astype(jnp.float32), DATA if FSDP in spec else (DATA, FSDP)),
            gradients,
            specs,
        )
        return gradients, jax.lax.psum(sums, (DATA, FSDP))

    return jax.shard_map(summed, mesh=mesh, in_specs=(specs, ROWS), out_specs=(specs, COPIED), check_vma=False)(
        params, rows
    )


def gathered_rows(tree: Any) -> Any:
    """Returns the results by row from all devices, within `on_parts`."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, (DATA, FSDP), tiled=True), tree)


def whole(parts: Any, specs: Any) -> Any:
    """Returns whole arrays from the parts of the devices along `fsdp`, within a function on parts.

    The gradient of an array is summed over those devices in float32, and each keeps its part of it.
    """
    leaves, structure = jax.tree.flatten(parts)
    split = zip(leaves, jax.tree.leaves(specs), strict=True)
    return structure.unflatten([_gather(x, spec.index(FSDP)) if FSDP in spec else x for x, spec in split])


def specs_by_use(specs: Any) -> tuple[Any, tuple[PartitionSpec, ...]]:
    """Returns the specs of parameters as `whole` takes them: all but the layers, and the leaves of one layer."""
    others = jax.tree_util.tree_map_with_path(lambda path, spec: COPIED if _is_stacked(path) else spec, specs)
    leaves = jax.tree_util.tree_leaves_with_path(specs)
    return others, tuple(PartitionSpec(*spec[1:]) for path, spec in leaves if _is_stacked(path))


def _is_stacked(path) -> bool:
    names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return "blocks" in names and "auxiliary_loss" not in names


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(part, axis: int):
    return jax.lax.all_gather(part, FSDP, axis=axis, tiled=True)


def _gather_forward(part, axis: int):
    return _gather(part, axis), None


def _gather_backward(axis: int, _, gradient):
    summed = jax.lax.psum_scatter(gradient.astype(jnp.float32), FSDP, scatter_dimension=axis, tiled=True)
    return (summed.astype(gradient.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def with_whole(
    specs: tuple[PartitionSpec, ...],
    kept: tuple[str, ...],
    function: Callable,
    graphdef: nnx.GraphDef,
    parts: nnx.State,
    *inputs: Any,
) -> Any:
    """Returns `function(module, *inputs)` for a module split over devices, within a function on parts.

    Its parameters are gathered, and again for the gradient: if kept for the backward pass, all layers would be whole at
    once. Only the inputs and values with the names in `kept` are kept; all else is recomputed.

    Args:
        specs: of the parts, as `whole` takes them.
        kept: names of `checkpoint_name`.
    """

    def gathered(parts, *inputs):
        return function(nnx.merge(graphdef, whole(parts, specs)), *inputs)

    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    return jax.checkpoint(gathered, policy=policy, prevent_cse=False)(parts, *inputs)
