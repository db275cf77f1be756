import argparse
import os
import shlex
from pathlib import Path

import pytest

from jaxformer.host import paths
from jaxformer.host.paths import expanded, is_literal, literal_path, local_path, shell_word, typed

pytestmark = pytest.mark.device_free

# What each of them means elsewhere is in `is_literal`.
NOT_LITERAL = ["x[1]", "x*", "x?", "a\\b", "gs:", "\udcff"]


@pytest.mark.parametrize(
    "name", ["plain", "x]", "'", '"', "$", "%20", "#", "~", " ", "é", "\n", "{0}", "x:y", "s3", "gs"]
)
def test_names_that_libraries_take_as_they_are_keep_their_path(name, tmp_path):
    folder = tmp_path / name / "run"
    assert is_literal(folder)
    with literal_path(folder) as place:  # Which need not exist.
        assert place == folder


@pytest.mark.parametrize("name", NOT_LITERAL)
def test_other_names_are_opened_and_leave_no_trace(name, tmp_path):
    folder = tmp_path / name / "run"
    folder.mkdir(parents=True)
    assert not is_literal(folder)
    before = len(os.listdir("/proc/self/fd"))
    with literal_path(folder) as place:
        assert is_literal(place)
        (place / "file").write_bytes(b"here")
    assert (folder / "file").read_bytes() == b"here"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", ["/s3/run", "/gs/run", "/hf/run", "/az/run", "//host/run", "/mnt/gs:/run"])
def test_folders_of_the_root_that_are_taken_for_stores_are_not_literal(path):
    assert not is_literal(Path(path))


def test_path_by_way_of_a_link_is_what_the_system_finds(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    with literal_path(tmp_path / "link" / ".." / "run") as place:
        assert place == (tmp_path / "elsewhere" / "run").resolve()


def test_relative_path_is_of_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "x[1]"
    (folder / "run").mkdir(parents=True)
    monkeypatch.chdir(folder)
    with literal_path(Path("run")) as place:
        assert place.samefile(folder / "run") and is_literal(place)


def test_system_without_paths_of_descriptors_refuses_what_is_not_literal(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_OPENED", tmp_path / "none")
    with pytest.raises(ValueError, match="libraries read a pattern or a store in its path"), literal_path(Path("x*")):
        pass


@pytest.mark.parametrize("text", ["~/run", "./~/run", "~nobody-of-this-name/x", "a b", "it's", "-x", "$HOME"])
def test_path_that_is_shown_is_the_same_when_it_is_typed(text, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    path = expanded(text)
    assert expanded(typed(path)) == path
    (word,) = shlex.split(shell_word(path))
    assert expanded(word) == path


def test_tilde_is_expanded_and_a_folder_of_that_name_is_reached_by_a_dot(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert local_path("~/run") == Path("/home/somebody/run")
    assert local_path("./~/run") == Path("~/run")


@pytest.mark.parametrize("url", ["gs://bucket/run", "hf://datasets/a/b", "s3a://b", "file:///tmp/run"])
def test_url_is_no_path_of_this_machine(url):
    with pytest.raises(argparse.ArgumentTypeError, match="is a URL"):
        local_path(url)
    assert local_path(f"./{url}") == Path(url)
