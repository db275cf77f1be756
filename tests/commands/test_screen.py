"""The command that screens changes: what it plans, prints and keeps, how it resumes, and what it refuses."""

import itertools
import json

import fake_runs
import numpy as np
import pytest
from variant_files import HEADER, variant

from jaxformer.ablation import screening
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.ablation.seeds import FIRST_SCREENING_SEED
from jaxformer.commands import screen
from jaxformer.experiment.resolution import resolve
from jaxformer.jobs import queue

pytestmark = pytest.mark.device_free

CHANGES = {"normed": {"model.qk_norm": True}, "untied": {"model.tied_embeddings": False}}
CHANGES |= {"capped": {"model.logit_soft_cap": 30.0}}
EFFECTS = {"normed": 0.05, "untied": -0.1, "capped": 0.02}


def effect_of(name):
    return sum(effect for variant, effect in EFFECTS.items() if variant in name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a screening of three changes in eight runs on each of two seeds; nothing is timed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "studies").mkdir(parents=True)
    files = {"root": "replace(load_experiment('baseline'), {'model.width': 64})"}
    files |= {name: variant(repr(change)) for name, change in CHANGES.items()}
    for name, expression in files.items():
        (tmp_path / "experiments" / f"{name}.py").write_text(f"{HEADER}EXPERIMENT = {expression}\n")
    study = f"from jaxformer import Screening\nSTUDY = Screening(parent='root', variants={tuple(CHANGES)!r}, seeds=2)\n"
    (tmp_path / "experiments" / "studies" / "three.py").write_text(study)
    joined = (f"{'+'.join(some)}@root" for n in (2, 3) for some in itertools.combinations(CHANGES, n))
    checked = Checked(dict.fromkeys(["root", *CHANGES, *joined], 3600.0), EarlierRuns([], []))
    monkeypatch.setattr(screen, "check_runs", lambda *_, **__: checked)
    return tmp_path


@pytest.fixture
def trained(place, monkeypatch):
    """The jobs that were run; what they come to is made up."""
    jobs, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(screen, "run_to_results", lambda ours, **_: jobs.extend(ours))

    def bits_per_byte(folder):
        return 2 + effect_of(folder.parent.name) + 1e-3 * rng.standard_normal()

    monkeypatch.setattr(screening, "final_bits_per_byte", bits_per_byte)
    (place / "runs" / "root").mkdir(parents=True)
    return jobs


def test_the_plan_trains_nothing(trained, capsys):
    assert screen.main(["--study=three", "--plan"]) == 0 and not trained
    out = capsys.readouterr().out
    assert out.startswith(
        "16 runs to go, 16.00 device hours, over in about 16:00:00\n3 changes of root in 8 runs on each"
    )
    assert (
        "resolution IV" in out
        and "Screening is not the better method with fewer than 4 changes: train one seed of each" in out
    )
    assert screen.main(["--study=three", "--plan", "--json", "--parallel=2"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["runs_to_go"], planned["device_hours_to_go"], planned["seconds_to_go"]) == (16, 16.0, 8 * 3600)
    assert planned["resolution"] == 4 and len({*planned["runs"]}) == 8


def test_the_plan_recommends_by_the_hours(trained, place, capsys):
    path = place / "experiments" / "studies" / "three.py"
    path.write_text(path.read_text().replace("seeds=2", "seeds=1"))
    assert screen.main(["--study=three", "--plan", "--hours=12"]) == 0 and not trained
    assert "and hours for at most 3 seeds of each" in " ".join(capsys.readouterr().out.split())


def test_rows_are_trained_seed_by_seed_and_what_survives_is_to_be_confirmed(trained, place, capsys):
    assert screen.main(["--study=three"]) == 0
    assert [job.seed - FIRST_SCREENING_SEED for job in trained] == [0] * 8 + [1] * 8
    command = "jaxformer ablate --parent=root --variants=untied --seeds=11"
    assert f"in 22.00 device hours: {command}\n" in capsys.readouterr().out
    record = json.loads((place / "runs" / "root" / "screening_three.json").read_text())
    assert record["parent"] == "root" and record["seeds"] == [FIRST_SCREENING_SEED, FIRST_SCREENING_SEED + 1]
    assert record["survivors"] == ["untied"] and record["effects"]["untied"]["mean"] == pytest.approx(-0.1, abs=0.002)
    assert record["confirm"]["command"] == command and record["confirm"]["device_hours"] == 22
    assert screen.main(["--study=three", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["survivors"] == ["untied"]


def test_screening_and_confirmation_stay_within_the_hours(trained, capsys):
    assert screen.main(["--study=three", "--hours=32"]) == 0
    assert (
        "in 16.00 device hours: jaxformer ablate --parent=root --variants=untied --seeds=8\n" in capsys.readouterr().out
    )
    assert screen.main(["--study=three", "--hours=17"]) == 0
    assert "1.00 device hours are left, too few to confirm untied" in capsys.readouterr().out
    trained.clear()
    assert screen.main(["--study=three", "--hours=15"]) == 2 and not trained
    assert "take about 16.00 device hours, more than --hours (15)" in capsys.readouterr().err


def test_a_screening_that_was_killed_goes_on_where_it_was(place, monkeypatch, capsys):
    started, killed_at = [], [5]

    class Ended:
        def poll(self):
            return 0

    def launch(job, slot, slots):
        if len(started) in killed_at:
            raise KeyboardInterrupt
        started.append((job.name, job.seed))
        fake_runs.write_run(place / "runs", resolve(job.name), job.seed, effect=effect_of(job.name), tasks=())
        return Ended()

    monkeypatch.setattr(queue, "launch_local", launch)
    assert screen.main(["--study=three"]) == 130 and len(started) == 5
    killed_at.clear()
    capsys.readouterr()
    assert screen.main(["--study=three"]) == 0
    assert len(started) == len({*started}) == 16, "nothing is trained twice"
    out = capsys.readouterr().out
    assert out.startswith("11 runs to go") and "Confirm the survivors" in out
    assert screen.main(["--study=three", "--hours=0.1"]) == 0, "what is trained is shown, whatever it took"
    assert "0.00 device hours are left, too few to confirm untied" in capsys.readouterr().out


def test_what_diverges_on_the_first_seed_is_not_trained_on_the_next(trained, monkeypatch, capsys):
    monkeypatch.setattr(screening, "has_diverged", lambda folder: bool(trained) and "capped" in folder.parent.name)
    assert screen.main(["--study=three"]) == 2
    error = capsys.readouterr().err
    assert "exactly those with capped" in error and error.count("\n") == 1 and len(trained) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study=thre"], "unknown study 'thre'; did you mean"),
        (["--study=first"], "this is not a screening: `jaxformer ablate --study=first` runs it"),
        (["--study=three", "--parallel=0"], "--parallel (0) must be at least 1"),
        (["--study=three", "--price=-1"], "--price (-1.0) must be a price"),
        (["--study=three", "--hours=0"], "--hours (0.0) must be above 0"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(trained, arguments, message, capsys):
    assert screen.main(arguments) == 2 and not trained
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_path_in_a_study_is_refused_before_anything_is_named_after_it(trained, place, capsys):
    path = place / "experiments" / "studies" / "three.py"
    path.write_text(path.read_text().replace("'root'", "'experiments/root.py'"))
    assert screen.main(["--study=three"]) == 2 and not trained
    assert "takes names of experiments, not a path: experiments/root.py" in capsys.readouterr().err
