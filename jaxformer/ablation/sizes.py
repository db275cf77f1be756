"""An experiment at other sizes, and their finished runs."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from jaxformer.ablation.comparability import agreeing
from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.config import UserError
from jaxformer.experiment.experiment import Experiment, science, trained_tokens, training_flops
from jaxformer.experiment.files import find_experiment, list_experiments, run_experiment_file
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.sizes import is_another_size
from jaxformer.experiment.variant import Merge, Variant
from jaxformer.flops import parameter_count

T = TypeVar("T")

# Share of the steps by which validations of two sizes may differ and still count as at the same share of the training.
_SAME_SHARE = 0.01


class Size(NamedTuple):
    """Finished runs of one size, which differ only in their seeds."""

    name: str
    runs: tuple[FinishedRun, ...]
    parameters: int
    tokens: int
    """Training tokens of a run."""
    compute: float
    """Of a run's training, floating-point operations."""

    @property
    def bits_per_byte(self) -> list[float]:
        """The final bits per byte of each run."""
        return [run.bits_per_byte for run in self.runs]

    def at_share(self, share: float) -> list[float]:
        """Returns the bits per byte of each run that was validated after a share of its steps."""
        found = []
        for run in self.runs:
            shares = run.curve[:, 0] / run.summary["steps"]
            nearest = int(np.abs(shares - share).argmin()) if len(shares) else 0
            if len(shares) and abs(shares[nearest] - share) <= _SAME_SHARE:
                found.append(float(run.curve[nearest, 1]))
        return found


def size_of(experiment: Experiment, runs: Sequence[FinishedRun] = ()) -> Size:
    """Returns the size of an experiment, with its finished runs."""
    compute = training_flops(experiment)
    return Size(experiment.name, tuple(runs), parameter_count(experiment.model), trained_tokens(experiment), compute)


def find_sizes(target: Resolved) -> list[Resolved]:
    """Returns the experiments that differ from a target only in their size, and the target, by compute.

    Only files in `experiments/` count, without variants, since a change of the width is a question too.
    """
    found = [target]
    for name in list_experiments():
        try:
            is_question = isinstance(run_experiment_file(find_experiment(name), (object,)), Variant | Merge)
            one = target if is_question or name == target.name else resolve(name)
        except UserError:  # Reported when that experiment itself is used.
            continue
        if is_another_size(one.experiment, target.experiment):
            found.append(one)
    return sorted(found, key=lambda one: training_flops(one.experiment))


def distinct(sizes: Sequence[T], key: Callable[[T], tuple[float, float]]) -> list[T]:
    """Returns, from sizes by compute, sizes that differ by 1 % or more: only one of several that are closer.

    Two experiments of one shape with different learning rates show no trend: only their rates make one better.

    Args:
        key: (compute, runs) of a size; the one with more runs stays, of equals the first.
    """
    kept: list[T] = []
    for size in sizes:
        compute, runs = key(size)
        if not kept or compute > 1.01 * key(kept[-1])[0]:
            kept.append(size)
        elif runs > key(kept[-1])[1]:
            kept[-1] = size
    return kept


def smaller_sizes(target: Resolved, runs: Path, allow: Collection[str] = ()) -> tuple[list[Size], list[str]]:
    """Returns the sizes below a target's with finished runs, by compute, and why runs are left out.

    All were made alike and validated on the same documents: as most were.

    Args:
        allow: kinds of differences between runs that do not count, as of a comparison.
    """
    below = [one for one in find_sizes(target) if training_flops(one.experiment) < training_flops(target.experiment)]
    every, notes = [], []
    for one in below:
        read = read_runs(runs, one.name)
        notes += read.unreadable
        for run in read.finished:
            if science(run.experiment) == science(one.experiment):
                every.append(run)
            else:
                notes.append(f"{run.workdir}: left out, since {one.name} has changed since it was trained")
    alike, others = agreeing(every, allow)
    found = [size_of(one.experiment, [run for run in alike if run.experiment.name == one.name]) for one in below]
    found = [size for size in found if size.runs]
    kept = distinct(found, lambda size: (size.compute, len(size.runs)))
    dropped = {size.name for size in found} - {size.name for size in kept}
    notes += others + [f"{name}: left out, since another size is as large, with more runs" for name in sorted(dropped)]
    return kept, notes
