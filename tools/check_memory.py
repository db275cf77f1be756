"""Compares the formula for the memory of a step with what the compiler says, for the real sizes.

    python tools/check_memory.py [--sizes=27m,100m,500m] [--json=tools/results/memory_h100.json]

Where the CUDA plugin of JAX is installed, an H100 is compiled for, without one being here; nothing is run. It takes
about ten seconds a step on two cores.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu,cuda")
# Trying out tiles would need the device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding
from versions import versions

from jaxformer.attention import Implementation
from jaxformer.config import replace
from jaxformer.experiment import Experiment, make_state
from jaxformer.loss import default_chunk_tokens
from jaxformer.memory import step_memory
from jaxformer.plan import random_batch
from jaxformer.step import train_step
from jaxformer.variant import load_experiment

# What XLA asks of the device, as it is of an NVIDIA H100 SXM with cuDNN 9.20.
DEVICE = "NVIDIA H100 80GB HBM3"
H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
runtime_version {{ major: 13 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 20 }}
device_description_str: "{DEVICE}"
"""

# Rows of 2,048 tokens in a step, its micro-batches, and what it recomputes; by size.
STEPS = {
    "27m": [(16, 1, "none"), (16, 1, "elementwise"), (16, 1, "block"), (64, 4, "none")],
    "100m": [
        (16, 1, "none"),
        (16, 1, "elementwise"),
        (16, 4, "elementwise"),
        (16, 1, "feed_forward"),
        (16, 1, "block"),
    ],
    "500m": [(32, 4, "none"), (32, 1, "elementwise"), (32, 4, "feed_forward"), (32, 1, "block"), (1, 1, "none")],
}


def main() -> int:
    """Compiles, prints and writes the JSON file; returns 1 where the formula is off by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(STEPS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    device = find_device()
    print(f"{device.device_kind}: rows, micro-batches, remat; GB compiled, GB by formula")
    results = []
    for size in options.sizes.split(","):
        for rows, micro_batches, remat in STEPS[size]:
            values = {"training.rows_per_step": rows, "training.micro_batches": micro_batches, "model.remat": remat}
            compiled, formula = compare(replace(load_experiment(f"baseline_{size}"), values), device)
            print(
                f"{size:5} {rows:3} {micro_batches:2} {remat:13} {compiled / 1e9:7.2f} {formula / 1e9:7.2f} "
                f"{formula / compiled - 1:+.1%}",
                flush=True,
            )
            results.append({"size": size, **values, "compiled_bytes": compiled, "formula_bytes": formula})
    if options.json:
        record = {"device": device.device_kind, "versions": versions("jax", "jaxlib"), "steps": results}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(abs(each["formula_bytes"] / each["compiled_bytes"] - 1) > 0.1 for each in results))


def find_device() -> jax.Device:
    """Returns an H100 to compile for where JAX's plugin is installed, else the device at hand."""
    try:
        import jax_plugins.xla_cuda13 as plugin
        from jax._src import xla_bridge

        plugin._check_cuda_versions = lambda **_: None  # It would ask the driver.
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
        xla_bridge.discover_pjrt_plugins()
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
        )
        return topology.devices[0]
    except ImportError:
        return jax.devices()[0]


def compare(experiment: Experiment, device: jax.Device) -> tuple[int, int]:
    """Returns the bytes of a step at its peak, as compiled and by formula."""
    training, T, V = experiment.training, experiment.packing.row_length, experiment.model.vocabulary_size
    is_gpu = device.platform in ("gpu", "cuda")
    attention, dtype = ("pallas", "bfloat16") if is_gpu else ("xla", "float32")
    values = {
        "training.compute_dtype": dtype,
        "model.scan_unroll": 1,
        "model.loss_chunk_tokens": default_chunk_tokens(V, "gpu" if is_gpu else "cpu"),
    }
    experiment = replace(experiment, values)
    state = jax.eval_shape(lambda: make_state(experiment, seed=0, attention=Implementation(attention)))
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)),
        (state, random_batch(training.rows_per_step, T, V)),
    )
    mesh = AbstractMesh((1,), ("device",), abstract_device=AbstractDevice(DEVICE, None, "cuda")) if is_gpu else None
    with jax.sharding.use_abstract_mesh(mesh) if mesh else jax.default_device(device):
        m = jax.jit(train_step, donate_argnums=0).lower(*there).compile().memory_analysis()
    compiled = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    memory = step_memory(
        experiment,
        attention=attention,
        dtype=jnp.dtype(dtype),
        remat=experiment.model.remat,
        micro_batches=training.micro_batches,
        platform="gpu" if is_gpu else "cpu",
    )
    return compiled, memory.peak


if __name__ == "__main__":
    sys.exit(main())
