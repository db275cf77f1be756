"""What identifies a run is compared, and a folder of another is refused."""

import json

import pytest

from jaxformer.config import UserError, check_same
from jaxformer.experiment.variant import load_experiment
from jaxformer.run.folder import write_json
from jaxformer.run.identity import check_folder, identify


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
