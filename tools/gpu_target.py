"""Compiles the training step for a GPU that is not here: by JAX's CUDA plugin, which need not find a driver.

`pip install jax-cuda13-plugin jax-cuda13-pjrt`, of JAX's version, is all that it takes beside JAX.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from jaxformer.attention.dispatch import Implementation
from jaxformer.experiment.experiment import Experiment
from jaxformer.plan.compiled_step import abstract_arguments
from jaxformer.step import compile_step

KINDS = {"H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200", "A100": "NVIDIA A100-SXM4-80GB"}

# Those, and one that kernels are compiled for, but no step is planned for: its memory is not in `MEMORY_GB`.
OF_KERNELS = KINDS | {"B200": "NVIDIA B200"}

# What XLA asks of a device: of an H100 SXM with cuDNN 9.20, and what is another on others. That of a B200 stands in
# XLA's xla/backends/gpu/target_config/specs/b200.txtpb.
_DEVICE = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
runtime_version {{ major: 13 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 20 }}
device_description_str: "{kind}"
"""
_H100 = {
    **{"shared": 233472, "optin": 232448, "cores": 132, "units": 128, "clock": 1.98, "major": 9},
    **{"bandwidth": 3352320000000, "cache": 52428800, "memory": 84929347584},
}
_VALUES = {
    "H100": _H100,
    "H200": _H100 | {"bandwidth": 4814000000000, "memory": 150754820096},
    "B200": {
        **{"shared": 233472, "optin": 232448, "cores": 148, "units": 128, "clock": 1.965, "major": 10},
        **{"bandwidth": 7672320000000, "cache": 132644864, "memory": 191514411008},
    },
    "A100": {
        **{"shared": 167936, "optin": 166912, "cores": 108, "units": 64, "clock": 1.41, "major": 8},
        **{"bandwidth": 2039000000000, "cache": 41943040, "memory": 85094825984},
    },
}

CAPABILITIES = {gpu: float(values["major"]) for gpu, values in _VALUES.items()}


def find_devices(gpu: str) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Returns eight GPUs of a kind, to compile for; none where JAX's plugin is not installed.

    Call it before JAX computes anything: it sets JAX's platforms, and XLA's flags.

    Args:
        gpu: one of `OF_KERNELS`.
    """
    try:
        import jax_plugins.xla_cuda13 as plugin
        from jax._src import xla_bridge
    except ImportError:
        return ()
    if jax.config.values["jax_platforms"] is None:
        jax.config.update("jax_platforms", "cpu,cuda")
    # Trying out tiles would need the device.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    plugin._check_cuda_versions = lambda **_: None  # It would ask the driver.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
    xla_bridge.discover_pjrt_plugins()
    config = _DEVICE.format(kind=OF_KERNELS[gpu], **_VALUES[gpu])
    named = {"topology_name": gpu.lower(), "target_config": config, "topology": "1x1x8"}
    return topologies.get_topology_desc(platform="cuda", **named).devices


def compile_for(experiment: Experiment, mesh: Mesh, attention: Implementation) -> jax.stages.Compiled:
    """Returns the step of an experiment, compiled for the devices of a mesh.

    Args:
        experiment: whose dtype, attention and chunks of the loss are chosen already.
    """
    device = mesh.devices.flat[0]
    state, batch = abstract_arguments(experiment, mesh, experiment.model.vocabulary_size, attention)
    if state.mesh is None:
        alone = jax.sharding.SingleDeviceSharding(device)
        state, batch = jax.tree.map(lambda x: x.update(sharding=alone), (state, batch))
    is_gpu = device.platform in ("gpu", "cuda")
    # What asks for the device while it is traced is given the one that is compiled for.
    there = AbstractMesh((1,), ("device",), abstract_device=AbstractDevice(device.device_kind, None, "cuda"))
    reported = jax.sharding.use_abstract_mesh(there) if is_gpu and state.mesh is None else contextlib.nullcontext()
    with reported, mock.patch("jax.default_backend", return_value="gpu" if is_gpu else device.platform):
        return compile_step(state).lower(state, batch).compile()
