"""Options of JAX and its compiler that affect numbers: fixed here, or recorded with a run.

Options come from the environment (`JAX_ENABLE_X64=1`), or from the code that calls this library. Options that change
what is computed are fixed, so that a seed means the same values everywhere. Options that change how it is computed are
the user's, and runs that differ in one are not compared. All others (caches, logs, checks, memory, platforms) do not
affect numbers.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import jax
from flax.configurations import config as flax_config

from jaxformer.config import UserError, require

# Options of JAX that change how something is computed or, the offset, what a seed is; with JAX's own values.
RECORDED = {
    "eager_constant_folding": False,
    "jax_accurate_erf_inv": False,
    "jax_auto_pcast": True,
    "jax_compiler_enable_remat_pass": True,
    "jax_cpu_collectives_implementation": "gloo",
    "jax_custom_jvp3": False,
    "jax_custom_vjp3": False,
    "jax_default_matmul_precision": None,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_embedded_constants_max_bytes": 32,
    "jax_enable_custom_prng": False,
    "jax_enable_pgle": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_optimization_level": "UNKNOWN",
    "jax_pallas_use_mosaic_gpu": True,
    "jax_pjrt_client_create_options": None,
    "jax_random_seed_offset": 0,
    "jax_remat3": False,
    "jax_remat_barrier_no_cotangents": False,
    "jax_remove_size_one_mesh_axis_from_type": False,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_use_direct_linearize": True,
    "jax_use_emit_pipeline_primitive": False,
    "jax_use_hlo_logistic_lowering": None,
    "jax_use_rgv3": True,
    "jax_use_shardy_partitioner": True,
    "jax_use_simplified_jaxpr_constants": False,
    "jax_xla_profile_version": 0,
}

# Variables that XLA and the libraries below it read directly.
VARIABLES = (
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATION_STRATEGY",
    "CUBLAS_WORKSPACE_CONFIG",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
)

# Options of JAX and Flax, and values of theirs, with which they fail at the first transfer, compilation or parameter.
_UNFIT = {
    "flax_hijax_variable": (True,),
    "jax_error_checking_behavior_divide": ("raise",),
    "jax_error_checking_behavior_nan": ("raise",),
    "jax_error_checking_behavior_oob": ("raise",),
    "jax_no_execution": (True,),
    "jax_no_tracing": (True,),
    "jax_scan3": (True,),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_host": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_host_to_device": ("disallow", "disallow_explicit"),
}

# Prefixes of XLA flags that do not affect numbers.
_HARMLESS_FLAGS = ("--xla_dump_", "--xla_force_host_platform_device_count", "--xla_gpu_cuda_data_dir")


@contextlib.contextmanager
def fixed_options() -> Iterator[None]:
    """Within a block or function, computes in 32 bits, with JAX's default type promotion and random generator.

    The calling process keeps its settings.

    Raises:
        UserError: an option is set with which JAX cannot train.
    """
    set_here = jax.config.values | {"flax_hijax_variable": flax_config.flax_hijax_variable}
    for name, unfit in _UNFIT.items():
        value = set_here.get(name)
        require(value not in unfit, f"{name.upper()}={value}: JAX cannot train with it; unset it")
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),  # Optax multiplies floats by counts.
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
    ):
        yield


def recorded_options() -> dict[str, str]:
    """Returns non-default options by environment variable; of `XLA_FLAGS` only flags that may affect numbers.

    Raises:
        UserError: `XLA_FLAGS` names a file that cannot be read.
    """
    values = {name: jax.config.values.get(name, default) for name, default in RECORDED.items()}
    options = {name.upper(): str(value) for name, value in values.items() if value != RECORDED[name]}
    options |= {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if flags := _xla_flags():
        options["XLA_FLAGS"] = flags
    return options


def _xla_flags() -> str:
    """Returns the flags of `XLA_FLAGS` that may affect numbers, in order of their names; the last of repeated ones.

    Like XLA, it reads them from a file unless they begin with a dash.
    """
    text = os.environ.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"XLA_FLAGS={text}: neither flags nor a file of flags that can be read") from error
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"XLA_FLAGS={text}: {error}") from error
    flags = {word.partition("=")[0]: word for word in words if not word.startswith(_HARMLESS_FLAGS)}
    return " ".join(flags[name] for name in sorted(flags))
