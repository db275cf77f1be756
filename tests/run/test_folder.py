"""The run folder: its files are whole or absent."""

import pytest

from jaxformer.config import UserError
from jaxformer.host.files import read_json, write_json
from jaxformer.run.folder import make_folder, peak_memory


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
    with pytest.raises(UserError, match="choose another --workdir"):
        make_folder(tmp_path / "file" / "run")


def test_peak_memory_is_that_of_a_python_process_with_jax():
    assert 50e6 < peak_memory() < 100e9
