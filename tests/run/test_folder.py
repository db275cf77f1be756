"""The run folder: its files are whole or absent."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from jaxformer.config import UserError
from jaxformer.host import paths
from jaxformer.host.files import read_json, write_json
from jaxformer.run.folder import CONFIG, hold_folder, peak_memory

pytestmark = pytest.mark.device_free


def test_json_is_written_whole_and_damage_is_named(tmp_path):
    path = tmp_path / "summary.json"
    assert read_json(path) is None
    write_json(path, {"status": "finished"})
    assert read_json(path) == {"status": "finished"} and [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    path.write_text('{"status": ')
    with pytest.raises(UserError, match=r"summary.json: unreadable"):
        read_json(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --workdir"), hold_folder(tmp_path / "file" / "run"):
        pass


def test_what_ends_before_a_run_began_leaves_no_folder_behind_and_what_was_there_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    for workdir in (tmp_path / "runs" / "a" / "seed_0", tmp_path / "mine"):
        with pytest.raises(KeyboardInterrupt), hold_folder(workdir):
            assert workdir.is_dir()
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_what_ends_after_a_run_began_leaves_its_folder(tmp_path):
    with pytest.raises(UserError), hold_folder(tmp_path / "run"):
        write_json(tmp_path / "run" / CONFIG, {})
        raise UserError("later")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {CONFIG}
    with pytest.raises(KeyboardInterrupt), hold_folder(tmp_path / "run"):
        raise KeyboardInterrupt
    assert {path.name for path in (tmp_path / "run").iterdir()} == {CONFIG, ".lock"}


def test_a_disk_that_takes_no_file_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = pytest.raises(UserError, match=r"runs/a: No space left on device; choose another --workdir")
    with refused, hold_folder(tmp_path / "runs" / "a"):
        pytest.fail("the folder is held")
    assert list(tmp_path.iterdir()) == []


def test_what_ended_a_run_is_raised_though_its_folder_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold_folder(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        raise KeyboardInterrupt


def test_peak_memory_is_that_of_a_python_process_with_jax():
    assert 50e6 < peak_memory() < 100e9


def test_path_that_libraries_would_take_for_another_is_refused_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_OPENED", tmp_path / "none")
    with pytest.raises(UserError, match="libraries read a pattern"), hold_folder(tmp_path / "x*" / "run"):
        pytest.fail("the folder is held")
    assert list(tmp_path.iterdir()) == []


def test_relative_folder_is_refused_where_the_working_directory_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused = pytest.raises(UserError, match="run folder run: No such file or directory; choose another --workdir")
    with refused, hold_folder(Path("run")):
        pytest.fail("the folder is held")
