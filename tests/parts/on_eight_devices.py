"""Steps of each case on eight simulated devices, in micro-batches, in a process of its own; writes what came out."""

import pickle
import sys

import jax
import numpy as np
import optax
from parts.cases import ON_EIGHT_DEVICES, config_of, initial, make_batch, shown

from jaxformer.devices.mesh import MeshConfig, make_mesh, put_rows, state_sharding
from jaxformer.step import compile_step, init_state


def run(name: str) -> dict:
    """Returns the parameters after one step, its metrics, and whether the second step goes on from what was stored."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    params = shown(initial(name))
    params = jax.device_put(params, state_sharding(mesh, params))
    options = {"seed": 0, "micro_batches": 2, "mesh": mesh, "params": params}
    state = init_state(config_of(name), optax.sgd(1.0, momentum=0.9), **options)
    batches = [put_rows(mesh, make_batch(seed)) for seed in (0, 1)]
    step = compile_step(state).lower(state, batches[0]).compile()
    shardings = jax.tree.map(lambda x: x.sharding, state)
    state, metrics = step(state, batches[0])
    stored = jax.device_get(state)
    after, _ = step(state, batches[1])
    resumed, _ = step(jax.device_put(stored, shardings), batches[1])
    pairs = zip(*(jax.tree.leaves(jax.device_get(one)) for one in (after, resumed)), strict=True)
    return {
        "params": jax.tree.leaves(stored.params),
        "loss": np.asarray(metrics["loss"]),
        "reported": jax.device_get(metrics["reported"]),
        "resumed": all(np.array_equal(one, other) for one, other in pairs),
    }


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    with open(sys.argv[1], "wb") as file:
        pickle.dump({name: run(name) for name in ON_EIGHT_DEVICES}, file)
