"""The finished runs of an experiment at other sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparability import have_same_documents
from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.experiment.experiment import Experiment, trained_tokens, training_flops
from jaxformer.experiment.sizes import is_another_size
from jaxformer.flops import parameter_count

# Of the steps, how far apart validations of two sizes may lie to count as those of the same share of the training.
_SAME_SHARE = 0.01


class Size(NamedTuple):
    """Finished runs of one size, which differ by their seeds alone."""

    name: str
    runs: tuple[FinishedRun, ...]
    parameters: int
    tokens: int
    """That a run is trained on."""
    compute: float
    """Of a run's training, floating-point operations."""

    @property
    def bits_per_byte(self) -> list[float]:
        """What each run ended with."""
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
    """Returns the size of an experiment, with the runs of it that are finished."""
    compute = training_flops(experiment)
    return Size(experiment.name, tuple(runs), parameter_count(experiment.model), trained_tokens(experiment), compute)


def smaller_sizes(target: Experiment, runs: Path) -> tuple[list[Size], list[str]]:
    """Returns the sizes below an experiment's of which there are finished runs, by compute, and why runs are left out.

    A size differs from it in fields of its size alone (`SIZE_FIELDS`). All are validated on the same documents.
    """
    found, notes = [], []
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        read = read_runs(runs, folder.name) if any(folder.glob("seed_*/summary.json")) else None
        if read is None or not read.finished or not is_another_size(read.finished[0].experiment, target):
            continue
        notes += read.unreadable
        experiment = read.finished[0].experiment
        ours = [run for run in read.finished if not run.record["lineage"]["overrides"]]
        if ours and training_flops(experiment) < training_flops(target):
            found.append(size_of(experiment, ours)._replace(name=folder.name))
    found.sort(key=lambda size: size.compute)
    whole = []
    for size in found:
        largest = found[-1].runs[0]
        same = [run for run in size.runs if have_same_documents([largest, run], largest.validation)]
        notes += [f"{run.workdir}: validated on other documents, and left out" for run in size.runs if run not in same]
        whole += [size._replace(runs=tuple(same))] if same else []
    return whole, notes
