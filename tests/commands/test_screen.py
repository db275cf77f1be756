"""The command that screens changes: what it plans, prints and keeps, and what it refuses before anything runs."""

import itertools
import json

import numpy as np
import pytest
from variant_files import HEADER, variant

from jaxformer.ablation import screening
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.commands import screen

pytestmark = pytest.mark.device_free

CHANGES = {"normed": "qk_norm", "untied": "tied_embeddings", "capped": "logit_soft_cap"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a screening; nothing is timed or trained, and what runs come to is made up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "studies").mkdir(parents=True)
    files = {"root": "replace(load_experiment('baseline'), {'model.width': 64})"}
    values = {"normed": True, "untied": False, "capped": 30.0}
    files |= {name: variant(repr({f"model.{CHANGES[name]}": value})) for name, value in values.items()}
    for name, expression in files.items():
        (tmp_path / "experiments" / f"{name}.py").write_text(f"{HEADER}EXPERIMENT = {expression}\n")
    study = f"from jaxformer import Screening\nSTUDY = Screening(parent='root', variants={tuple(values)!r}, seeds=2)\n"
    (tmp_path / "experiments" / "studies" / "three.py").write_text(study)
    names = ["root", *values, *(f"{'+'.join(some)}@root" for n in (2, 3) for some in itertools.combinations(values, n))]
    checked = Checked(dict.fromkeys(names, 9.0), EarlierRuns([], []))
    monkeypatch.setattr(screen, "check_screening", lambda *_, **__: checked)
    trained = []
    monkeypatch.setattr(screen, "run_to_results", lambda jobs, **_: trained.extend(jobs))
    effects, rng = {"normed": 0.05, "untied": -0.1, "capped": 0.02}, np.random.default_rng(0)

    def bits_per_byte(folder):
        on = sum(effect for name, effect in effects.items() if name in folder.parent.name)
        return 2 + on + 1e-3 * rng.standard_normal()

    monkeypatch.setattr(screening, "final_bits_per_byte", bits_per_byte)
    (tmp_path / "runs" / "root").mkdir(parents=True)
    return trained


def test_the_plan_trains_nothing(place, capsys):
    assert screen.main(["--study=three", "--plan"]) == 0 and not place
    out = capsys.readouterr().out
    assert "16 runs to go" in out and "Resolution IV" in out and "depends on the noise of root" in out


def test_rows_are_trained_seed_by_seed_and_what_survives_is_to_be_confirmed(place, tmp_path, capsys):
    assert screen.main(["--study=three"]) == 0
    assert [job.seed - screening.FIRST_SEED for job in place] == [0] * 8 + [1] * 8
    out = capsys.readouterr().out
    assert "jaxformer ablate --parent=root --variants=untied --seeds=11 --parent_seeds=11" in out
    record = json.loads((tmp_path / "runs" / "root" / "screening_three.json").read_text())
    assert record["screening"]["parent"] == "root" and record["found"]["survivors"][0] == 1
    assert record["found"]["effects"][1]["mean"] == pytest.approx(-0.1, abs=0.002)


def test_what_diverges_on_the_first_seed_is_not_trained_on_the_next(place, monkeypatch, capsys):
    monkeypatch.setattr(screening, "has_diverged", lambda folder: bool(place) and "capped" in folder.parent.name)
    assert screen.main(["--study=three"]) == 2
    error = capsys.readouterr().err
    assert "all those with capped and no other" in error and error.count("\n") == 1 and len(place) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study=thre"], "unknown study 'thre'; did you mean"),
        (["--study=first"], "this is no screening: `jaxformer ablate --study=first` runs it"),
        (["--study=three", "--parallel=0"], "--parallel (0) must be at least 1"),
        (["--study=three", "--price=-1"], "--price (-1.0) must be a price"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(place, arguments, message, capsys):
    assert screen.main(arguments) == 2 and not place
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
