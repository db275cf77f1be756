"""An experiment at several sizes, each forecast from the smaller ones before it is trained."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation.finished_runs import ended_seeds
from jaxformer.ablation.training_jobs import Planned, make_job, not_over, run_to_results
from jaxformer.config import UserError, replace, require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.experiment import science
from jaxformer.experiment.files import check_name, list_experiments
from jaxformer.experiment.lineage import Lineage, Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.sizes import Rate, at_size, compute_of, size_file
from jaxformer.experiment.variant import AD_HOC, OF
from jaxformer.host.files import write_whole
from jaxformer.jobs.launch import Job


class Ladder(NamedTuple):
    """An experiment, and its sizes."""

    base: str
    """The name of the scaled experiment."""
    name: str
    """What the names of the sizes begin with: NAME_d2 and so on."""
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    """The number of runs of each size."""
    rate: Rate
    """Learning rate of each size, by its compute."""
    tokens_per_parameter: float = 0.0
    """As of `at_size`."""


class Rung(NamedTuple):
    """A size of a ladder."""

    resolved: Resolved
    values: Mapping[str, Any]
    """Its changes of the scaled experiment, by dotted path."""
    compute: float
    """Of a run, as a multiple of the scaled experiment's."""
    seeds: int

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.resolved.name

    def jobs(self, runs: Path, seconds: float) -> list[Job]:
        """Returns its runs. Args: seconds: of each, estimated."""
        return [make_job(self.resolved, seed, runs, seconds) for seed in range(self.seeds)]


def make_rungs(ladder: Ladder) -> list[Rung]:
    """Returns the sizes of a ladder, by ascending depth.

    Raises:
        UserError: the experiment cannot be scaled to one of them.
    """
    resolved, rungs = resolve(ladder.base), []
    base, lineage = resolved.experiment, Lineage(own_code=resolved.lineage.own_code)
    for depth, seeds in sorted(zip(ladder.depths, ladder.seeds, strict=True)):
        try:
            values = at_size(base, depth, tokens_per_parameter=ladder.tokens_per_parameter)
            compute = compute_of(base, values)
            values |= {RATE: ladder.rate.at(compute)}
            experiment = replace(base, values | {"name": f"{ladder.name}_d{depth}"})
        except UserError as error:
            raise UserError(f"{base.name} at depth {depth}: {error}") from error
        rungs.append(Rung(Resolved(experiment, lineage), values, compute, seeds))
    return rungs


def plan_ladder(ladder: Ladder, runs: Path) -> Planned:
    """Returns the runs of a ladder, to be checked.

    Raises:
        UserError: as of `make_rungs`.
    """
    rungs = make_rungs(ladder)
    jobs = [job for rung in rungs for job in rung.jobs(runs, math.nan)]
    ended = [make_job(one.resolved, n, runs, math.nan) for one in rungs for n in ended_seeds(runs / one.name)]
    return Planned([rung.resolved for rung in rungs], jobs, ended, times_each=True)


def check_rungs(ladder: Ladder, rungs: Sequence[Rung]) -> None:
    """Checks that the files of the sizes exist or can be written.

    Raises:
        UserError: another experiment has that name, or a file cannot have it.
    """
    check_name(ladder.name, "--name")
    is_named = not any(mark in ladder.base for mark in (OF, AD_HOC, "/"))
    require(is_named, f"{ladder.base}: the files of its sizes must name it; give it a file of its own")
    known = list_experiments()
    for rung in (each for each in rungs if each.name in known):
        require(
            science(resolve(rung.name).experiment) == science(rung.resolved.experiment),
            f"the experiment {rung.name} differs from {ladder.base} at that size: give another --name, or the "
            "options that it was made with",
        )


def write_rungs(ladder: Ladder, rungs: Sequence[Rung], command: str) -> list[Path]:
    """Writes the file of each size to `experiments/`, unless it exists; returns the written ones.

    Args:
        command: that made them.
    """
    written, known = [], list_experiments()
    for rung in (each for each in rungs if each.name not in known):
        path = Path("experiments", f"{rung.name}.py")
        path.parent.mkdir(exist_ok=True)
        write_whole(path, size_file(ladder.base, rung.values, command).encode())
        written.append(path)
    return written


def train_rung(rung: Rung, runs: Path, seconds: float, *, parallel: int) -> None:
    """Trains the unfinished runs of a size, showing their progress.

    Args:
        seconds: of each, estimated.
        parallel: how many run at a time and share the machine; fewer runs have more of it each.

    Raises:
        TrainingFailure: a run ended otherwise than by divergence.
    """
    jobs = rung.jobs(runs, seconds)
    run_to_results(jobs, parallel=max(1, min(parallel, len(not_over(jobs)))))
