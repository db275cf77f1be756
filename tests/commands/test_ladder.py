"""`jaxformer ladder` trains sizes, each forecast by those below it; `jaxformer forecast` scores and draws them."""

import shutil
from pathlib import Path

import fake_runs
import pytest

from jaxformer.ablation import sizes
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.commands import forecast, ladder
from jaxformer.experiment.resolution import resolve
from jaxformer.run.forecast import FORECAST

pytestmark = pytest.mark.device_free

NOISE = fake_runs.Noise(seed=0.002, run=0.002)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Returns the sizes that are trained, in order; runs are made up in place of training."""
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments")
    made = []

    def check(plan, runs, **options):
        return Checked({one.name: 60.0 for one in plan(runs).experiments}, EarlierRuns([], []))

    def train(rung, runs, seconds, *, parallel):
        made.append((rung.name, (runs / rung.name / "seed_0" / FORECAST).exists()))
        for seed in range(rung.seeds):
            if not (runs / rung.name / f"seed_{seed}" / "summary.json").exists():
                effect = 2.0 * rung.compute**-0.05 - 2.0
                fake_runs.write_run(runs, resolve(rung.name), seed, effect=effect, noise=NOISE, tasks=())

    ours = ["root", *(f"root_d{depth}" for depth in (1, 2, 3, 4))]
    monkeypatch.setattr(sizes, "list_experiments", lambda: ours)  # The others take seconds.
    monkeypatch.setattr(ladder, "check_runs", check)
    monkeypatch.setattr(ladder, "train_rung", train)
    return made


COMMAND = ["--experiment=root", "--sizes=4,1,2,3", "--seeds=2,2,2,1"]


def test_sizes_are_trained_from_the_smallest_and_the_fourth_is_forecast(trained, tmp_path, capsys):
    assert ladder.main([*COMMAND, "--plan"]) == 0
    assert "root_d4" in capsys.readouterr().out and not trained and not (tmp_path / "experiments/root_d1.py").exists()
    assert ladder.main(COMMAND) == 0
    assert trained == [("root_d1", False), ("root_d2", False), ("root_d3", False), ("root_d4", True)]
    printed = capsys.readouterr().out
    assert (
        "root_d4: forecast" in printed
        and "root_d4 seed 0: " in printed
        and "--sizes=4,1,2,3" in (tmp_path / "experiments/root_d4.py").read_text()
    )
    assert ladder.main(COMMAND) == 0  # Nothing is forecast twice.
    assert "root_d4: forecast" not in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert forecast.main([]) == 0
    printed = capsys.readouterr().out
    assert "1 run forecast, 1 finished" in printed and "root_d4 seed 0" in printed
    page = (tmp_path / "runs/reports/forecasts/index.html").read_text()
    assert page.count("<img") == 2 and "root_d4 seed 0" in page
    shutil.rmtree(tmp_path / "runs/root_d4")  # A run that is deleted still counts.
    assert forecast.main([]) == 0
    assert "1 run forecast, 1 of them deleted or unreadable since, 1 finished: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sizes=0,2"], "--sizes=0,2 must be whole numbers from 1 to 1000"),
        (["--sizes=2,2"], "names a depth twice"),
        (["--sizes=2,3", "--seeds=1,2,3"], "must have one number, or one for each of the sizes"),
        (["--sizes=2,3", "--rates=2:0.1"], "rates of one size show no trend"),
        (["--sizes=2,3", "--rates=2:fast"], "must be DEPTH:RATE"),
        (["--sizes=2,3", "--rates=2:0.1,3:-1"], "is no depth and learning rate from 1e-9 to 1e3"),
        (["--sizes=2,3", "--rates=2:0.1,3:1e300"], "is no depth and learning rate from 1e-9 to 1e3"),
        (["--sizes=2,3", "--tokens_per_parameter=-1"], "must be above 0 and at most 1e+06"),
        (["--sizes=2,3", "--tokens_per_parameter=nan"], "must be above 0 and at most 1e+06"),
        (["--sizes=2,3", "--name=a/b", "--plan"], "--name: a run folder is named after it"),
    ],
)
def test_what_makes_no_ladder_is_one_line(trained, arguments, reason, capsys):
    assert ladder.main(["--experiment=root", *arguments]) == 2
    assert reason in capsys.readouterr().err and not trained


def test_files_can_be_written_alone_and_under_another_name(trained, tmp_path, capsys):
    assert ladder.main(["--experiment", "root", "--sizes", "2", "--name=tuned", "--write"]) == 0
    assert capsys.readouterr().out == "experiments/tuned_d2.py\n" and not trained
    written = (tmp_path / "experiments/tuned_d2.py").read_text()
    assert "`jaxformer ladder --experiment=root --sizes=2 --name=tuned` made it." in written
    assert ladder.main(["--experiment=root", "--sizes=2", "--name=tuned", "--rates=1:1e-2,2:1e-2", "--write"]) == 2
    assert "tuned_d2 differs from root at that size: give another --name" in capsys.readouterr().err
    rates = "--rates=1:1e-2,2:1e-2"
    assert ladder.main(["--experiment=root", "--sizes=1,2", "--name=tuned", rates, "--write"]) == 2
    assert not (tmp_path / "experiments/tuned_d1.py").exists(), "a part of a ladder is no ladder"
    capsys.readouterr()
    fake_runs.write_variant(tmp_path / "experiments", "normed", {"model.qk_norm": True}, parent="root")
    fake_runs.write_root(tmp_path / "experiments", "other")
    assert ladder.main(["--experiment=normed@other", "--sizes=2", "--write"]) == 2
    assert capsys.readouterr().err.startswith("jaxformer: ") and not [*tmp_path.glob("experiments/normed@*")]


def test_sizes_without_a_law_are_trained_without_a_forecast(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fake_runs, "write_run", _rising(fake_runs.write_run))
    assert ladder.main(COMMAND) == 0
    assert trained[-1] == ("root_d4", False)
    assert capsys.readouterr().err.count("no forecast of root_d4: the losses do not fall with size") == 1
    shutil.rmtree(tmp_path / "runs/root_d4")
    assert ladder.main(["--experiment=root", "--sizes=4", "--seeds=1"]) == 0  # Without the sizes below it.
    assert "no forecast of root_d4: the losses do not fall with size" in capsys.readouterr().err


def _rising(write_run):
    return lambda runs, resolved, seed, **options: write_run(
        runs, resolved, seed, **options | {"effect": 0.4 * resolved.experiment.model.depth}
    )


def test_without_a_forecast_there_is_nothing_to_show(trained, capsys):
    pytest.importorskip("matplotlib")
    assert forecast.main([]) == 2
    assert "runs: there is no such folder of runs" in capsys.readouterr().err
    Path("runs").mkdir()
    assert forecast.main([]) == 2
    assert "no run was forecast" in capsys.readouterr().err
    assert forecast.main(["--allow=bananas"]) == 2
    assert "bananas" in capsys.readouterr().err
    assert forecast.main(["--experiment=root"]) == 2
    assert "0 smaller sizes with finished runs, but a forecast needs 3" in capsys.readouterr().err
