"""The command that tunes a learning rate: what it writes, and what it refuses before anything runs."""

import json

import pytest

from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.ablation.tuning import fit
from jaxformer.commands import tune

pytestmark = pytest.mark.device_free


@pytest.fixture
def place(tmp_path, experiment_files, monkeypatch):
    """An empty folder with a tiny experiment; nothing is estimated or trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "small.py").write_text(experiment_files["best_fit"].read_text())
    checked = Checked({"small": 9.0}, EarlierRuns([], []))
    monkeypatch.setattr(tune, "check_runs", lambda *_, **options: checked)
    trials = {(octave, seed): 3 + 0.1 * octave**2 + 0.01 * seed for octave in (-1, 0, 1) for seed in range(3)}
    monkeypatch.setattr(tune, "tune", lambda search, seeds, *_, **__: fit("small", 1e-2, trials, 3))
    return tmp_path


def test_table_picture_record_and_the_tuned_file_are_written(place, capsys):
    (place / "runs/small").mkdir(parents=True)
    assert tune.main(["--experiment=small", "--write=experiments/small_tuned.py"]) == 0
    out = capsys.readouterr().out
    assert "0.01*" in out and "runs/small/tuning.png" in out
    record = json.loads((place / "runs/small/tuning.json").read_text())
    assert record["recommended"] == 0.01 and len(record["trials"]) == 9 and record["mean"]["place"] == pytest.approx(0)
    assert (place / "runs/small/tuning.png").read_bytes().startswith(b"\x89PNG")
    assert "jaxformer tune --experiment=small --seeds=3" in (place / "experiments/small_tuned.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=smal"], "unknown experiment 'smal'"),
        (["--experiment=small", "--seeds=0"], "--seeds (0) must lie in [1, 100]"),
        (["--experiment=small", "--parallel=0"], "--parallel (0) must be at least 1"),
        (["--experiment=small", "--write=experiments/small.py"], "it exists; give another name"),
        (["--experiment=small", "--write=tuned"], "an experiment is a Python file"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(place, arguments, message, capsys):
    assert tune.main(arguments) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (place / "runs").exists()
