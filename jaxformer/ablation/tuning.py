"""Tuning of an experiment's learning rate: a search until the best rate has a worse one on either side.

The search moves by octaves (factors of 2), and by half octaves at its end. Curves are steep above the best rate and
flat below it. On a measured curve (0.3 million parameters, four rates), the minimum read from three rates an octave
apart errs by 0.011 bits per byte (standard deviation over positions of the three), and half an octave apart by 0.002.

A comparison at a rate that is too low for both arms shows which suffers less: an octave below the best, three of ten
decisive verdicts had the wrong sign in simulation. So a parent is tuned before it is changed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import (
    FinishedRun,
    ended_seeds,
    final_bits_per_byte,
    has_diverged,
    read_runs,
    seed_folders,
    seed_of,
)
from jaxformer.ablation.seeds import seeds_of
from jaxformer.ablation.training_jobs import Planned, make_job, run_to_results
from jaxformer.config import require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve, with_overrides
from jaxformer.jobs.launch import Job
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.statistics.optimum import Parabola, fit_parabola, interpolation_weights

# The record of a tuning, in the folder of an experiment's runs.
TUNING = "tuning.json"

# The search ends this many octaves from its start.
FARTHEST = 8

# Octaves between the last rates, and their number; every seed is trained at each of them.
STEP, RUNS_AT_BEST = 0.5, 3

# Rates that may have runs, in octaves from an experiment's own rate.
_OCTAVES = tuple(np.arange(-FARTHEST, FARTHEST + STEP, STEP).tolist())

# (octave, seed) -> final validation bits per byte; infinite for a run that diverged.
Trials = Mapping[tuple[float, int], float]


class Tuning(NamedTuple):
    """The effect of the learning rate on an experiment: bits per byte over octaves from its own rate."""

    experiment: str
    learning_rate: float
    """Its own learning rate."""
    trials: Trials
    bracket: tuple[float, float, float]
    """Octaves of the best rate tried, between its neighbours."""
    mean: Parabola | None
    """Through their means over seeds; None if they show no minimum, or one diverged."""
    cautious: Parabola | None
    """Through their means plus one standard deviation: what most runs reach. Seeds scatter more near the rate where
    training begins to diverge, and the lowest mean may lie there.
    """
    excess: float
    """Cost of its own rate, bits per byte above the lowest mean; NaN if it was not tried."""
    excess_error: float
    """Its standard error over seeds, paired; NaN with one seed, or if not all were trained at its own rate."""

    @property
    def recommended(self) -> float:
        """The recommended rate, to two digits: with several seeds, the best for most runs."""
        return self._rate(self._within_bracket(self.cautious or self.mean))

    @property
    def lowest(self) -> float:
        """The rate of the lowest mean, to two digits."""
        return self._rate(self.place)

    @property
    def place(self) -> float:
        """Octaves from its own rate to that of the lowest mean, within the three; without one, the best of these."""
        return self._within_bracket(self.mean)

    def _within_bracket(self, parabola: Parabola | None) -> float:
        low, middle, high = self.bracket
        return middle if parabola is None else min(max(parabola.place, low), high)

    def _rate(self, octave: float) -> float:
        return float(f"{self.learning_rate * 2**octave:.1e}")


def missing_runs(trials: Trials, seeds: int) -> list[tuple[float, int]]:
    """Returns the (octave, seed) to train next; none once the best rate is known on all seeds.

    One seed moves by octaves until the best has a neighbour on either side, and by `STEP` from there. The others then
    train the last three rates, and all move on if the mean over all seeds says so.
    """
    best = 0.0
    for number, step in dict.fromkeys(((1, 1.0), (1, STEP), (seeds, STEP))):
        means = _means(trials, number, step)
        best = _best(means) if best in means else best
        near = [octave for octave in (best - step, best, best + step) if abs(octave) <= FARTHEST]
        missing = [(octave, seed) for seed in range(number) for octave in near if (octave, seed) not in trials]
        if missing:
            return missing
    return []


def runs_to_come(trials: Trials, seeds: int) -> list[tuple[float, int]]:
    """Returns all (octave, seed) left to train if the best rate so far turns out to be the best."""
    known, assumed = dict(trials), []
    best = _best(_means(trials, 1) or {0.0: 0.0})
    while missing := missing_runs(known, seeds):
        known |= {(octave, seed): known.get((best, 0), 0.0) + abs(octave - best) for octave, seed in missing}
        assumed += missing
    return assumed


def _means(trials: Trials, seeds: int, step: float = STEP) -> dict[float, float]:
    """Returns the mean over the first seeds, for each octave that has all of them and is a multiple of a step."""
    found = {}
    for octave in sorted({octave for octave, _ in trials if octave % step == 0}):
        if all((octave, seed) in trials for seed in range(seeds)):
            found[octave] = float(np.mean([trials[octave, seed] for seed in range(seeds)]))
    return found


def _best(means: Mapping[float, float]) -> float:
    """Returns the octave of the lowest mean; of several, the nearest to the experiment's own rate."""
    return min(means, key=lambda octave: (means[octave], abs(octave)))


def fit(experiment: str, learning_rate: float, trials: Trials, seeds: int) -> Tuning:
    """Returns the result of complete trials (`missing_runs`).

    Raises:
        UserError: every rate diverged, or the best is at the end of the search.
    """
    means = _means(trials, seeds)
    best = _best(means)
    require(math.isfinite(means[best]), f"{experiment} diverges at every learning rate that was tried")
    below, above = ([octave for octave in means if sign * (octave - best) > 0] for sign in (-1, 1))
    require(
        bool(below and above),
        f"{experiment} is best at the end of the search, {learning_rate * 2.0**best:g}; set optimizer.learning_rate to "
        "that, and tune again",
    )
    bracket = (max(below), best, min(above))
    values_SP = np.array([[trials[octave, seed] for octave in bracket] for seed in range(seeds)])
    mean = fit_parabola(np.array(bracket), values_SP.mean(0))
    cautious = None
    if seeds > 1 and np.isfinite(values_SP).all():
        cautious = fit_parabola(np.array(bracket), values_SP.mean(0) + values_SP.std(0, ddof=1))
    lowest_S = values_SP @ interpolation_weights(np.array(bracket), mean.place) if mean else values_SP[:, 1]
    excess, error = _excess(trials, lowest_S)
    return Tuning(experiment, learning_rate, trials, bracket, mean, cautious, excess, error)


def _excess(trials: Trials, lowest_S: np.ndarray) -> tuple[float, float]:
    """Returns the cost of the own rate over the best one, on the seeds trained at it, and its error."""
    own = [seed for seed in range(len(lowest_S)) if (0, seed) in trials]
    costs_S = np.array([trials[0, seed] - lowest_S[seed] for seed in own])
    if not (own and np.isfinite(costs_S).all()):
        return (math.inf if own else math.nan), math.nan
    return float(costs_S.mean()), float(costs_S.std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else math.nan


class RateSearch(NamedTuple):
    """An experiment at learning rates around its own, and its folder of runs."""

    own: Resolved
    """The experiment at its own rate."""
    runs: Path
    first_seed: int = 0
    """The seed of a trial with number 0."""
    arguments: tuple[str, ...] = ()
    """Of the command line for the experiment; its name if empty."""

    def job(self, octave: float, seed: int, seconds: float = math.nan, *, needs: Sequence[Path] = ()) -> Job:
        """Returns the run of a trial: `seconds` and `needs` as of `make_job`."""
        one = at_octave(self.own, octave)
        name = f"{self.own.name} at {one.experiment.optimizer.learning_rate:.3g}"
        options = {"name": name, "needs": needs, "arguments": self.arguments}
        return make_job(one, self.first_seed + seed, self.runs, seconds, **options)

    def read(self, seeds: float = math.inf) -> tuple[dict[tuple[float, int], FinishedRun | None], list[str]]:
        """Returns the finished trials of the first seeds, None for diverged ones, and lines on unreadable ones."""
        found, unreadable = {}, []
        for octave in _OCTAVES:
            read = read_runs(self.runs, at_octave(self.own, octave).name)
            unreadable += read.unreadable
            found |= {(octave, run.seed): run for run in read.finished}
            found |= {(octave, seed_of(folder)): None for folder in read.folders if has_diverged(folder)}
        trials = {(octave, seed - self.first_seed): run for (octave, seed), run in found.items()}
        return {trial: run for trial, run in trials.items() if 0 <= trial[1] < seeds}, unreadable

    def trials(self, seeds: int) -> dict[tuple[float, int], float]:
        """Returns the bits per byte of the finished trials of the first seeds, infinite for diverged ones.

        Raises:
            UserError: a run is damaged, or the experiment has changed since.
        """
        found = {}
        for octave in _OCTAVES:
            one = at_octave(self.own, octave)
            folders = {seed_of(folder) - self.first_seed: folder for folder in seed_folders(self.runs / one.name)}
            over = {seed: final_bits_per_byte(folder) for seed, folder in folders.items() if 0 <= seed < seeds}
            ours = {(octave, seed): bits for seed, bits in over.items() if bits is not None}
            if ours:
                check_earlier_runs(self.runs, one)
            found |= ours
        return found

    def ended_jobs(self, seeds: Collection[int]) -> list[Job]:
        """Returns the runs of some seeds that have a result, at any of the rates."""
        rates = {octave: self.runs / at_octave(self.own, octave).name for octave in _OCTAVES}
        ended = [(octave, seed) for octave, folder in rates.items() for seed in ended_seeds(folder) if seed in seeds]
        return [self.job(octave, seed - self.first_seed) for octave, seed in ended]


def make_search(name_or_path: str, parent: str, runs: Path) -> RateSearch:
    """Returns the search for the best learning rate of an experiment on its own seeds.

    Args:
        parent: applies a variant to this parent instead of its own; '' for its own.
    """
    own = resolve(name_or_path, parent=parent)
    arguments = (f"--experiment={name_or_path}", *([f"--parent={parent}"] if parent else []))
    return RateSearch(own, runs, own.first_seed, arguments)


def plan_tuning(name_or_path: str, parent: str, seeds: int, runs: Path) -> Planned:
    """Returns the runs that tune an experiment, to be checked.

    Args:
        name_or_path, parent: as of `make_search`.
        seeds: of each of the best rates.

    Raises:
        UserError: as of `resolve`, or of `RateSearch.trials`.
    """
    search = make_search(name_or_path, parent, runs)
    jobs = [search.job(octave, seed) for octave, seed in runs_to_come(search.trials(seeds), seeds)]
    return Planned([search.own], jobs, search.ended_jobs(seeds_of([search.own])))


def at_octave(own: Resolved, octave: float) -> Resolved:
    """Returns an experiment at so many octaves above its own rate."""
    return with_overrides(own, {RATE: repr(own.experiment.optimizer.learning_rate * 2.0**octave)} if octave else {})


def bits_of(runs: Mapping[tuple[float, int], FinishedRun | None]) -> dict[tuple[float, int], float]:
    """Returns the bits per byte of trials; infinite for diverged ones."""
    return {trial: run.bits_per_byte if run else math.inf for trial, run in runs.items()}


def tune(search: RateSearch, seeds: int, seconds: float, *, parallel: int = 1) -> Tuning:
    """Trains the missing runs, showing their progress, and returns the result.

    Args:
        seconds: of a run, estimated.

    Raises:
        TrainingFailure: a run failed without diverging.
        UserError: as of `fit`.
    """
    while missing := missing_runs(trials := search.trials(seeds), seeds):
        run_to_results([search.job(octave, seed, seconds) for octave, seed in missing], parallel=parallel)
    return fit(search.own.name, search.own.experiment.optimizer.learning_rate, trials, seeds)
