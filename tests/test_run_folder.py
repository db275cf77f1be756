"""The run folder: what identifies a run is compared, and its files are whole or absent."""

import json

import pytest

from jaxformer.config import UserError
from jaxformer.run_folder import check_folder, check_same, identify, make_folder, peak_memory, read_json, write_json
from jaxformer.variant import load_experiment


def test_a_new_folder_belongs_to_anyone_and_a_used_one_to_its_run(tmp_path):
    ours = {"model.width": 8, "seed": 0}
    check_folder(tmp_path / "new", ours, "identity")
    write_json(tmp_path / "config.json", {"identity": ours})
    check_folder(tmp_path, ours, "identity")
    with pytest.raises(UserError, match=r"another configuration \(seed: 0 -> 1\)"):
        check_folder(tmp_path, ours | {"seed": 1}, "identity")


def test_many_differences_are_told_in_one_short_line():
    ours, theirs = ({f"key{i}": value for i in range(8)} for value in (1, 2))
    with pytest.raises(UserError, match=r"key4: 2 -> 1 and 3 more\)"):
        check_same("this belongs", ours, theirs)


def test_the_identity_names_the_seed_and_the_precision_of_the_device():
    identity = identify(load_experiment("baseline"), seed=7)
    assert identity["seed"] == 7 and identity["training.compute_dtype"] == "float32"
    assert json.loads(json.dumps(identity)) == identity


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
