"""A file is written whole or not at all."""

import os

import pytest

from jaxformer.host.files import write_whole

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_file_holds_what_was_written_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"first", b"second, longer", b""):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_file_stays_as_it_was_where_the_new_one_cannot_reach_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"first")

    def fail(descriptor):
        raise OSError("no such luck")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no such luck"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_one_file_write_under_different_names(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    sync = os.fsync

    def write_meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        write_whole(path, b"of another writer, longer")

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_whole(path, b"first")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
