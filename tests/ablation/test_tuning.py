"""The walk over learning rates, on curves that are known, and what is read off its end."""

import math

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation import finished_runs, training_jobs
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.earlier import EarlierRuns
from jaxformer.ablation.finished_runs import load_finished_run
from jaxformer.ablation.tuning import RateSearch, at_octave, fit, make_search, missing_runs, runs_to_come, tune
from jaxformer.commands import tune as tune_command
from jaxformer.config import TrainingFailure, UserError
from jaxformer.jobs.queue import State, Status

pytestmark = pytest.mark.device_free


def walk(curve, seeds=3) -> dict[tuple[int, int], float]:
    """Returns the trials of a walk, each of which comes to `curve(octave, seed)`."""
    trials = {}
    while missing := missing_runs(trials, seeds):
        assert not set(missing) & set(trials) and len(set(missing)) == len(missing)
        trials |= {(octave, seed): curve(octave, seed) for octave, seed in missing}
    return trials


@pytest.mark.parametrize("best", [-4.3, -1, 0, 0.4, 2.2, 5])
def test_the_best_rate_of_a_parabola_is_found_from_anywhere(best):
    trials = walk(lambda octave, seed: 3 + 0.1 * (octave - best) ** 2 + 0.01 * seed)
    found = fit("small", 1e-3, trials, 3)
    assert found.mean.place == pytest.approx(best) and found.mean.curvature == pytest.approx(0.1)
    assert found.recommended == pytest.approx(1e-3 * 2**best, rel=0.05)
    assert found.excess == pytest.approx(0.1 * best**2, abs=0.011)
    assert len(trials) <= 3 * 3 + abs(best) + 4, "one seed walks"


def test_seeds_that_move_the_mean_take_the_walk_on():
    trials = walk(lambda octave, seed: 3 + 0.1 * (octave - (0 if seed == 0 else 3)) ** 2)
    assert fit("small", 1e-3, trials, 3).mean.place == pytest.approx(2)


def test_rates_that_diverge_bound_the_walk():
    trials = walk(lambda octave, seed: 3 - 0.1 * octave if octave < 2 else math.inf)
    found = fit("small", 1e-3, trials, 3)
    assert found.bracket == (1, 1.5, 2) and found.mean is None and found.recommended == 2.8e-3
    assert found.excess == pytest.approx(0.15) and math.isnan(found.excess_error)
    with pytest.raises(UserError, match="diverges at every learning rate"):
        fit("small", 1e-3, walk(lambda octave, seed: math.inf), 3)


def test_a_walk_ends_where_the_curve_never_turns():
    trials = walk(lambda octave, seed: 3 - 0.1 * octave, seeds=1)
    assert len(trials) < 20
    with pytest.raises(UserError, match=r"best at the end of the search, 0\.256"):
        fit("small", 1e-3, trials, 1)


def test_the_error_of_the_own_rate_is_paired_over_seeds():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 5)
    bits = {(o, s): 3 + 0.1 * (o - 0.5) ** 2 + shared[s] for o in (-1, 0, 1, 2) for s in range(5)}
    found = fit("small", 1e-3, bits, 5)
    assert found.excess == pytest.approx(0.025) and found.excess_error == pytest.approx(0, abs=1e-9)
    noisy = {key: value + rng.normal(0, 0.01) for key, value in bits.items()}
    assert 0.001 < fit("small", 1e-3, noisy, 5).excess_error < 0.02


def test_where_seeds_scatter_more_the_rate_to_take_is_lower():
    bits = {(o, s): 3 + 0.1 * o**2 + (s - 1) * 0.05 * 4.0**o for o in (-1, 0, 1) for s in range(3)}
    found = fit("small", 1e-3, bits, 3)
    assert (
        found.mean.place == pytest.approx(0)
        and found.cautious.place == pytest.approx(-0.3)
        and found.recommended == 8.1e-4
    )


def test_the_walk_ends_half_an_octave_from_its_best_rate_and_what_it_will_take_is_runs_to_come():
    curve = lambda octave, seed: 3 + 0.1 * (octave - 1.2) ** 2  # noqa: E731
    trials = walk(curve)
    assert fit("small", 1e-3, trials, 3).bracket == (0.5, 1.0, 1.5)
    assert sorted(octave for octave, seed in trials if seed == 0) == [-1, 0, 0.5, 1, 1.5, 2]
    assert sorted(octave for octave, seed in trials if seed == 2) == [0.5, 1, 1.5]
    assert len(runs_to_come({}, 3)) == 5 + 2 * 3 and runs_to_come(trials, 3) == []
    first = {trial: bits for trial, bits in trials.items() if trial[1] == 0}
    assert sorted(runs_to_come(first, 3)) == sorted(trial for trial in trials if trial[1]), "as the first seed has it"


def test_a_curve_that_is_steep_above_its_best_rate_is_read_where_that_is():
    def steep(octave, best):
        return 3 + 0.077 * (octave - best) ** 2 * (1 + 0.5 * np.tanh(octave - best))

    by_octaves = []
    for best in np.linspace(-0.5, 0.5, 9):
        found = fit("small", 1e-3, walk(lambda octave, seed, best=best: steep(octave, best), 1), 1)
        assert found.mean.value == pytest.approx(3, abs=0.002)
        octaves = {(octave, 0): steep(octave, best) for octave in range(-3, 4)}
        by_octaves.append(abs(fit("small", 1e-3, octaves, 1).mean.value - 3))
    assert max(by_octaves) > 0.006


@pytest.fixture
def search(tmp_path, experiment_files, monkeypatch):
    """The search of a tiny experiment, whose runs all fail."""

    class FakeQueue:
        def __init__(self, jobs, parallel):
            self.jobs = jobs

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def watch(self):
            yield [Status(job, State.FAILED, 1, 3.0, 1.0, 0.0, 0.0, "why") for job in self.jobs]

    monkeypatch.setattr(training_jobs, "Queue", FakeQueue)
    return make_search(str(experiment_files["best_fit"]), "", tmp_path / "runs")


def test_runs_are_those_of_the_command_and_its_own_rate_is_that_of_the_experiment(search):
    job = search.job(0, 2, 9.0)
    assert job.workdir.parts[-2:] == (search.own.name, "seed_2") and job.estimated_seconds == 9
    assert not [each for each in job.arguments if "learning_rate" in each]
    above = search.job(1, 2, 9.0)
    assert "--optimizer.learning_rate=0.02" in above.arguments and above.workdir.parent != job.workdir.parent


def test_a_run_that_failed_otherwise_ends_the_walk(search):
    with pytest.raises(TrainingFailure, match=r"best_fit at 0\.005 seed 0 failed: why; see .*\.log"):
        tune(search, 1, 9.0)


def test_what_is_trained_already_is_taken_up(search, monkeypatch):
    trials = walk(lambda octave, seed: 3 + octave**2)
    monkeypatch.setattr(RateSearch, "trials", lambda self, seeds: trials)
    monkeypatch.setattr(training_jobs, "Queue", None)
    assert tune(search, 3, 9.0).excess == pytest.approx(0)


def test_a_run_that_diverged_counts_as_one(search, tmp_path):
    folder = tmp_path / "runs" / at_octave(search.own, 2).name / "seed_1"
    (folder / "faults").mkdir(parents=True)
    assert search.trials(3) == {}
    (folder / "faults" / "step_3.npz").write_bytes(b"")
    assert search.trials(3) == {(2, 1): math.inf} and search.trials(1) == {}


def test_trials_are_read_from_small_files_and_a_damaged_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments")
    search = make_search("root", "", tmp_path / "runs")
    written = {(o, s): (search.own if o == 0 else at_octave(search.own, o), s) for o in (-1, 0, 0.5) for s in (0, 1)}
    folders = {trial: fake_runs.write_run(search.runs, *run, tasks=()) for trial, run in written.items()}
    expected = {trial: load_finished_run(folder).bits_per_byte for trial, folder in folders.items()}
    monkeypatch.setattr(finished_runs, "_read_validation", None)
    assert search.trials(2) == pytest.approx(expected, abs=1e-12) and len(search.trials(1)) == 3
    monkeypatch.setattr(tune_command, "check_runs", lambda *_, **__: Checked({"root": 9.0}, EarlierRuns([], [])))
    for name in ("config.json", "summary.json", "evaluations/step_40/validation.json"):
        path = folders[0.5, 1] / name
        content = path.read_bytes()
        for damage in (content[:100], b"{}"):
            path.write_bytes(damage)
            assert tune_command.main(["--experiment=root", "--seeds=2"]) == 2
            assert str(folders[0.5, 1].relative_to(tmp_path)) in (error := capsys.readouterr().err)
            assert error.count("\n") == 1
        path.write_bytes(content)
    folders[0.5, 1].rename(folders[0.5, 1].with_name("seed_2"))
    assert tune_command.main(["--experiment=root", "--seeds=3"]) == 2
    assert "seed_2: it holds root~" in capsys.readouterr().err
