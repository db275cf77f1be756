"""The compiled step of a run, before any of its arrays exist, and the memory that it takes."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.attention.dispatch import Implementation, choose_implementation
from jaxformer.config import replace
from jaxformer.data.packing import Batch
from jaxformer.devices.mesh import batch_sharding, state_sharding, whole_rows
from jaxformer.experiment.experiment import Experiment, attention_shapes, make_state, shapes_of
from jaxformer.step import TrainState, compile_step, eval_step


def abstract_arguments(
    experiment: Experiment, mesh: Mesh | None, token_count: int, attention: Implementation | None = None
) -> tuple[TrainState, Batch]:
    """Returns the state and the batch of a step, with shapes, dtypes and placements in place of the arrays.

    Args:
        mesh: as in `make_state`, and so are `token_count` and `attention`.
    """
    state = jax.eval_shape(lambda: make_state(experiment, 0, attention, mesh, token_count=token_count))
    shape = experiment.training.rows_per_step, experiment.packing.row_length
    integers_BT: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    floats_BT: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = Batch(*[integers_BT] * len(Batch._fields))._replace(loss_weights_BT=floats_BT)
    if state.mesh is None:
        return state, batch
    places = state_sharding(state.mesh, state), jax.tree.map(lambda _: batch_sharding(state.mesh), batch)
    return jax.tree.map(lambda x, place: x.update(sharding=place), (state, batch), places)


def lower_steps(
    experiment: Experiment, mesh: Mesh, token_count: int, attention: Implementation | None = None
) -> Iterator[jax.stages.Lowered]:
    """Yields the lowered steps of a run of the experiment, one for each of `shapes_of`.

    Once compiled, a run that begins finds them in JAX's cache of compiled programs, if there is one.

    Args:
        attention: of the run; None for the default without timing.
    """
    if attention is None:
        shape, *others = attention_shapes(experiment, mesh.size)
        attention = choose_implementation(experiment.attention, shape, others=others).implementation
    for one in shapes_of(experiment):
        state, batch = abstract_arguments(one, mesh, token_count, attention)
        yield compile_step(state).lower(state, batch)


def lower_validation(experiment: Experiment, mesh: Mesh, token_count: int) -> jax.stages.Lowered:
    """Returns the lowered step of a run's validation."""
    rows = {"training.rows_per_step": whole_rows(mesh, experiment.evaluation.rows_per_batch)}
    shape, *_ = attention_shapes(experiment, mesh.size)
    attention = choose_implementation(experiment.attention, shape).implementation
    state, batch = abstract_arguments(replace(experiment, rows), mesh, token_count, attention)
    return jax.jit(eval_step).lower(state, batch)


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes on each device at the peak of a compiled step; 0 if the compiler does not report it."""
    m = compiled.memory_analysis()
    if m is None:
        return 0
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
