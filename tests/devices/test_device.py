"""The device is chosen before anything looks for one, and what is compiled for it is kept."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxformer.train
from jaxformer.devices.device import device_memory, has_bfloat16, keep_compiled, named_has_bfloat16
from jaxformer.model import ModelConfig
from jaxformer.step import init_state

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def restored(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_by_kind_of_processor(tmp_path, restored, monkeypatch):
    jax.config.update(NAMES[0], None)
    keep_compiled()
    here = jax.config.jax_compilation_cache_dir
    assert here.startswith(str(tmp_path / "compiled"))
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0

    monkeypatch.setattr("platform.machine", lambda: "another")
    jax.config.update(NAMES[0], None)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir != here


def test_a_folder_that_jax_was_reported_of_stays(tmp_path, restored):
    jax.config.update(NAMES[0], str(tmp_path / "mine"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_programs_of_more_than_a_month_ago_are_removed(tmp_path, restored):
    jax.config.update(NAMES[0], None)
    keep_compiled()
    folder = Path(jax.config.jax_compilation_cache_dir)
    for name, days in (("old", 31), ("new", 29)):
        (folder / name).write_bytes(b"program")
        then = time.time() - days * 86_400
        os.utime(folder / name, (then, then))
    jax.config.update(NAMES[0], None)
    keep_compiled()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_the_state_of_one_seed_compiles_that_of_all(tmp_path, restored):
    jax.config.update(NAMES[0], str(tmp_path))
    jax.config.update(NAMES[1], 0.0)
    compilation_cache.reset_cache()
    config, optimizer = ModelConfig(vocabulary_size=29, width=12, depth=2, heads=2), optax.sgd(0.1)
    for seed in (0, 1):
        init_state(config, optimizer, seed=seed)
        assert len([*tmp_path.glob("jit_init-*-cache")]) == 1
    compilation_cache.reset_cache()


def test_the_device_is_chosen_before_anything_looks_for_one(experiment_files, tmp_path, monkeypatch):
    """A backend takes its memory, and its platform, when it is first looked for."""
    done = []
    for name in ("choose_device", "check_earlier_runs", "train"):
        monkeypatch.setattr(jaxformer.train, name, lambda *_, name=name, **__: done.append(name))
    assert jaxformer.train.main([f"--experiment={experiment_files['best_fit']}"]) == 0
    assert done == ["choose_device", "check_earlier_runs", "train"]


def test_memory_is_asked_of_a_device_of_this_process(monkeypatch):
    def refuse():
        raise RuntimeError("GetAllocatorStats() is allowed only for addressable devices")

    theirs = mock.Mock(platform="gpu", memory_stats=refuse)
    ours = mock.Mock(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    monkeypatch.setattr(jax, "devices", lambda: [theirs, ours])
    monkeypatch.setattr(jax, "local_devices", lambda: [ours])
    assert device_memory() == 7


@pytest.mark.parametrize(
    ("platform", "attributes", "expected"),
    [
        ("gpu", {"device_kind": "Quadro RTX 6000", "compute_capability": "7.5"}, False),
        ("gpu", {"device_kind": "RTX 6000 Ada Generation", "compute_capability": "8.9"}, True),
        ("gpu", {"device_kind": "TITAN V", "compute_capability": "7.0"}, False),
        ("gpu", {"device_kind": "NVIDIA GB10", "compute_capability": "12.1"}, True),
        ("gpu", {"device_kind": "AMD Instinct MI300X", "compute_capability": "gfx942"}, True),
        ("gpu", {"device_kind": "a GPU that does not tell"}, True),
        ("cpu", {"device_kind": "cpu"}, False),
    ],
)
def test_a_device_at_hand_has_bfloat16_by_its_compute_capability(platform, attributes, expected):
    assert has_bfloat16(SimpleNamespace(platform=platform, **attributes)) is expected


def test_a_gpu_that_is_not_here_has_bfloat16_by_its_name():
    without = ["V100", "Tesla V100-SXM2-32GB", "T4"]
    assert [name for name in (*without, "L4", "H100", "A100 80GB") if not named_has_bfloat16(name)] == without
