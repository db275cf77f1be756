"""What is compiled is kept, where the user did not say otherwise."""

import os
import time
from pathlib import Path

import jax
import pytest

from jaxformer.device import keep_compiled

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def restored():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_by_kind_of_processor(tmp_path, restored, monkeypatch):
    jax.config.update(NAMES[0], None)
    keep_compiled(tmp_path)
    here = jax.config.jax_compilation_cache_dir
    assert here.startswith(str(tmp_path / "compiled"))
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0

    monkeypatch.setattr("platform.machine", lambda: "another")
    jax.config.update(NAMES[0], None)
    keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir != here


def test_a_folder_that_jax_was_told_of_stays(tmp_path, restored):
    jax.config.update(NAMES[0], str(tmp_path / "mine"))
    keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_programs_of_more_than_a_month_ago_are_removed(tmp_path, restored):
    jax.config.update(NAMES[0], None)
    keep_compiled(tmp_path)
    folder = Path(jax.config.jax_compilation_cache_dir)
    for name, days in (("old", 31), ("new", 29)):
        (folder / name).write_bytes(b"program")
        then = time.time() - days * 86_400
        os.utime(folder / name, (then, then))
    jax.config.update(NAMES[0], None)
    keep_compiled(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["new"]
