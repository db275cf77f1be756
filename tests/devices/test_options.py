"""What the process sets for JAX changes no value of a seed, and what may change numbers is recorded."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.config import UserError
from jaxformer.devices.options import _UNFIT, RECORDED, fixed_options, recorded_options
from jaxformer.model import ModelConfig
from jaxformer.step import init_state

FIXED = {"jax_enable_x64", "jax_numpy_dtype_promotion", "jax_default_prng_impl", "jax_threefry_partitionable"}

# Beginnings of the names of options that decide no number: caches, logs, checks that fail or pass, devices to be found,
# connections of processes, limits of memory, and what is used for TPUs, sparse arrays or exported programs.
HARMLESS = (
    "check_vma",
    "jax2tf_",
    "jax_allow_f16_reductions",
    "jax_array_garbage_collection_guard",
    "jax_backend_target",
    "jax_bcoo_cusparse_lowering",
    "jax_captured_constants_",
    "jax_check_",
    "jax_compilation_cache_",
    "jax_compiler_detailed_logging_min_ops",
    "jax_cpu_enable_async_dispatch",
    "jax_cpu_get_",
    "jax_cross_host_",
    "jax_cuda_visible_devices",
    "jax_debug_",
    "jax_default_device",  # `choose_device` refuses one that is not the run's.
    "jax_disable_bwd_checks",
    "jax_disable_vmap_shmap_error",
    "jax_disallow_mesh_context_manager",
    "jax_distributed_",
    "jax_dump_",
    "jax_enable_checks",
    "jax_enable_compilation_cache",
    "jax_enable_preemption_service",
    "jax_enable_recoverability",
    "jax_experimental_unsafe_xla_runtime_errors",
    "jax_explain_cache_misses",
    "jax_explicit_x64_dtypes",  # No dtype of 64 bits is asked for on the device.
    "jax_export_",
    "jax_force_dcn_cross_host_transfers",
    "jax_hlo_source_file_canonicalization_regex",
    "jax_include_",
    "jax_legacy_prng_key",
    "jax_log",
    "jax_mock_gpu_topology",
    "jax_mosaic_allow_hlo",
    "jax_mosaic_unzip_debug_locations",
    "jax_mtls_",
    "jax_mutable_array_checks",
    "jax_num_cpu_devices",
    "jax_numpy_rank_promotion",
    "jax_oneapi_visible_devices",
    "jax_pallas_auto_assign_collective_ids",
    "jax_pallas_enable_debug_checks",
    "jax_pallas_poison_buffers",
    "jax_pallas_verbose_errors",
    "jax_persistent_cache_",
    "jax_pgle_",  # Of `jax_enable_pgle`.
    "jax_platform",
    "jax_pprint_use_color",
    "jax_ragged_dot_",
    "jax_raise_",
    "jax_refs_to_pins",
    "jax_remove_custom_partitioning_ptr_from_cache_key",
    "jax_rocm_visible_devices",
    "jax_send_traceback_to_runtime",
    "jax_serialization_version",
    "jax_share_binary_between_hosts",
    "jax_sort_devices_by_process_index",
    "jax_source_url_schema",
    "jax_thread_guard",
    "jax_traceback_",
    "jax_tracer_error_num_traceback_frames",
    "jax_transfer_guard",
    "jax_use_cpp_shard_args",
    "jax_use_magma",
    "jax_xla_backend",
    "mock_",
)
PRINT_OPTIONS = "import json, jax; print(json.dumps({n: repr(v) for n, v in jax.config.values.items()}))"


@pytest.fixture(scope="module")
def values():
    """The options of JAX in a process for which nothing is set, as text by name."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-c", PRINT_OPTIONS], env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def bare(monkeypatch):
    """Leaves nothing set for XLA."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return monkeypatch


def test_every_option_of_jax_is_fixed_recorded_refused_or_known_to_decide_no_number(values):
    assert set(values) >= FIXED
    known = FIXED | RECORDED.keys() | _UNFIT.keys()
    assert [name for name in values if name not in known and not name.startswith(HARMLESS)] == []
    assert [name for name in RECORDED if name.startswith(HARMLESS)] == []


def test_what_is_recorded_differs_from_jax_s_own_values(values):
    assert {n: values[n] for n in RECORDED if n in values} == {n: repr(v) for n, v in RECORDED.items() if n in values}


def test_state_of_a_seed_is_the_same_whatever_the_process_has_set():
    def begin():
        config = ModelConfig(vocabulary_size=37, width=12, depth=2, heads=2)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(init_state(config, optax.adamw(1e-3), seed=3))]

    usual = begin()
    with jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        with jax.numpy_dtype_promotion("strict"):
            unusual = begin()
        assert jnp.zeros(1).dtype == jnp.float64 and str(jax.random.key(0).dtype) == "key<rbg>"  # As it was set.
    assert [(x.dtype, x.tobytes()) for x in usual] == [(x.dtype, x.tobytes()) for x in unusual]


def test_options_of_jax_are_recorded_however_they_are_set(bare):
    assert recorded_options() == {}
    bare.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with jax.default_matmul_precision("highest"), jax.enable_x64(True):
        assert recorded_options() == {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("", None),
        ("--xla_force_host_platform_device_count=8 --xla_dump_to=/x", None),
        ("--xla_b=1 --xla_a='x y' --xla_b=2", "--xla_a=x y --xla_b=2"),
    ],
)
def test_flags_of_xla_that_may_decide_numbers_are_recorded_in_one_order(bare, tmp_path, text, recorded):
    bare.setenv("XLA_FLAGS", text)
    assert recorded_options().get("XLA_FLAGS") == recorded
    path = tmp_path / "flags"
    path.write_text(text)
    bare.setenv("XLA_FLAGS", str(path))
    assert recorded_options().get("XLA_FLAGS") == recorded


def test_flags_of_xla_that_cannot_be_read_are_refused(bare):
    for text in ("nowhere/flags", "--xla_a='"):
        bare.setenv("XLA_FLAGS", text)
        with pytest.raises(UserError, match="XLA_FLAGS="):
            recorded_options()


def test_options_with_which_jax_cannot_train_are_refused():
    message = "JAX_TRANSFER_GUARD_HOST_TO_DEVICE=disallow: JAX cannot train with it"
    with jax.transfer_guard_host_to_device("disallow"), pytest.raises(UserError, match=message), fixed_options():
        pass
