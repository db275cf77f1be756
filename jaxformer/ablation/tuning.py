"""The learning rate of an experiment, tuned: walked by octaves until the best one has a worse one on either side.

A comparison at a rate that is too low for both arms is a comparison of who suffers less: an octave below the best,
three of ten decisive verdicts had the wrong sign in simulation. So a parent is tuned before it is changed.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import has_diverged, read_runs, seed_of
from jaxformer.config import TrainingFailure, require
from jaxformer.experiment.variant import Resolved, resolve
from jaxformer.host.paths import typed
from jaxformer.jobs.dashboard import Dashboard
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import Queue
from jaxformer.statistics.optimum import Parabola, fit_parabola, interpolation_weights

RATE = "optimizer.learning_rate"

# The walk ends this many octaves from where it began.
_FARTHEST = 8

# (octave, seed) -> final validation bits per byte; infinite for a run that diverged.
Trials = Mapping[tuple[int, int], float]


class Tuning(NamedTuple):
    """What the learning rate is worth to an experiment, in bits per byte over octaves from its own rate."""

    experiment: str
    learning_rate: float
    """Its own."""
    trials: Trials
    bracket: tuple[int, int, int]
    """Octaves of the best rate that was tried, and of its neighbours."""
    mean: Parabola | None
    """Through the means of those over seeds; None where they do not bend upwards, or one diverged."""
    cautious: Parabola | None
    """Through their means and one standard deviation: what most runs reach. Seeds scatter more near the rate beyond
    which training diverges, where the lowest mean may lie.
    """
    excess: float
    """What its own rate costs, bits per byte above the lowest mean; NaN where it was not tried."""
    excess_error: float
    """Its standard error over seeds, paired; NaN with one seed or where its own rate is none of the three."""

    @property
    def best(self) -> float:
        """The rate to take, to two digits: the best for most runs, where there is more than one seed."""
        (low, middle, high), parabola = self.bracket, self.cautious or self.mean
        octave = middle if parabola is None else min(max(parabola.place, low), high)
        return float(f"{self.learning_rate * 2**octave:.1e}")


def wanted(trials: Trials, seeds: int) -> list[tuple[int, int]]:
    """Returns the (octave, seed) that are to be trained next; none where the best rate is known on all seeds.

    One seed walks until the best octave has a neighbour on either side; the others then train those three, and walk on
    where the mean of all says so.
    """
    best = 0
    for number in dict.fromkeys((1, seeds)):
        best = _best(_means(trials, number) or {best: math.inf})
        near = [octave for octave in (best - 1, best, best + 1) if abs(octave) <= _FARTHEST]
        missing = [(octave, seed) for octave in near for seed in range(number) if (octave, seed) not in trials]
        if missing:
            return missing
    return []


def _means(trials: Trials, seeds: int) -> dict[int, float]:
    """Returns the mean over the first seeds of each octave that has all of them."""
    found = {}
    for octave in sorted({octave for octave, _ in trials}):
        if all((octave, seed) in trials for seed in range(seeds)):
            found[octave] = float(np.mean([trials[octave, seed] for seed in range(seeds)]))
    return found


def _best(means: Mapping[int, float]) -> int:
    """Returns the octave of the lowest mean; of several such, the nearest to the experiment's own rate."""
    return min(means, key=lambda octave: (means[octave], abs(octave)))


def fit(experiment: str, learning_rate: float, trials: Trials, seeds: int) -> Tuning:
    """Returns what trials that lack nothing (`wanted`) say.

    Raises:
        UserError: every rate diverged, or the best is at the end of the walk.
    """
    means = _means(trials, seeds)
    best = _best(means)
    require(math.isfinite(means[best]), f"{experiment} diverges at every learning rate that was tried")
    bracket = (best - 1, best, best + 1)
    require(
        all(octave in means for octave in bracket),
        f"{experiment} is best at the end of the walk, {learning_rate * 2.0**best:g}; give it another learning rate",
    )
    values_SP = np.array([[trials[octave, seed] for octave in bracket] for seed in range(seeds)])
    mean = fit_parabola(np.array(bracket), values_SP.mean(0))
    cautious = None
    if seeds > 1 and np.isfinite(values_SP).all():
        cautious = fit_parabola(np.array(bracket), values_SP.mean(0) + values_SP.std(0, ddof=1))
    lowest = mean.value if mean else means[best]
    excess, error = means.get(0, trials.get((0, 0), math.nan)) - lowest, math.nan
    if mean and 0 in bracket and seeds > 1:
        weights_P = np.array([float(octave == 0) for octave in bracket])
        weights_P -= interpolation_weights(np.array(bracket), mean.place)
        error = float((values_SP @ weights_P).std(ddof=1)) / math.sqrt(seeds)
    return Tuning(experiment, learning_rate, trials, bracket, mean, cautious, excess, error)


class Ladder(NamedTuple):
    """An experiment at rates an octave apart, and where its runs lie."""

    experiment: str
    """Its name, as its file has it, or its path."""
    parent: str
    """Of a variant that is asked of another than its own; else ''."""
    runs: Path

    def at(self, octave: int) -> Resolved:
        """Returns the experiment so many octaves above its own rate."""
        base = resolve(self.experiment, parent=self.parent)
        if octave == 0:
            return base
        rate = base.experiment.optimizer.learning_rate * 2.0**octave
        return resolve(self.experiment, {RATE: repr(rate)}, parent=self.parent)

    def job(self, octave: int, seed: int, seconds: float) -> Job:
        """Returns the run at an octave, of which a run takes so many seconds by an estimate."""
        one = self.at(octave).experiment
        rate, workdir = one.optimizer.learning_rate, self.runs / one.name / f"seed_{seed}"
        arguments = [f"--experiment={self.experiment}", f"--seed={seed}", f"--workdir={typed(workdir)}"]
        arguments += [f"--parent={self.parent}"] if self.parent else []
        arguments += [f"--{RATE}={rate!r}"] if octave else []
        name = f"learning rate {rate:g}"
        return Job(name, seed, tuple(arguments), workdir, one.training.steps, seconds, devices=one.mesh.devices)

    def trials(self, seeds: int) -> dict[tuple[int, int], float]:
        """Returns the trials of the first seeds that are over, from earlier ones too."""
        found = {}
        for octave in range(-_FARTHEST, _FARTHEST + 1):
            read = read_runs(self.runs, self.at(octave).name)
            require(not read.unreadable, "; ".join(read.unreadable))
            found |= {(octave, run.seed): run.bits_per_byte for run in read.finished}
            found |= {(octave, seed_of(folder)): math.inf for folder in read.folders if has_diverged(folder)}
        return {(octave, seed): bits for (octave, seed), bits in found.items() if seed < seeds}


def tune(ladder: Ladder, seeds: int, seconds: float, *, parallel: int = 1) -> Tuning:
    """Trains what is missing, showing what it does, and returns what came out.

    Args:
        seconds: of a run, estimated.

    Raises:
        TrainingFailure: a run ended otherwise than by divergence.
        UserError: as of `fit`.
    """
    board, trials = Dashboard(), ladder.trials(seeds)
    while missing := wanted(trials, seeds):
        jobs, statuses = [ladder.job(octave, seed, seconds) for octave, seed in missing], []
        with Queue(jobs, parallel=parallel) as queue:
            for statuses in queue.watch():
                board.draw(statuses, parallel=parallel)
        trials = ladder.trials(seeds)
        for trial, status in zip(missing, statuses, strict=True):
            if trial not in trials:
                raise TrainingFailure(f"{status.job} {status.state.value}: {status.note}; see {status.job.log}")
    base = ladder.at(0)
    return fit(base.name, base.experiment.optimizer.learning_rate, trials, seeds)
