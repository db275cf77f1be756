"""The cost of asking an open question, and the runs to come that a kept change makes cheaper, in device hours."""

import math
from collections.abc import Mapping
from pathlib import Path

from jaxformer.ablation.study import Study, make_jobs
from jaxformer.ablation.training_jobs import device_hours, not_over
from jaxformer.ablation.tuning import RUNS_AT_BEST
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.statistics.question_value import RunCosts
from jaxformer.statistics.significance import INTERIM_SEEDS, next_analysis

# Without a target, the run to come is one of ten times the parent's parameters and ten times its tokens.
LARGER = 100.0


def run_costs(
    parent: Resolved,
    name: str,
    one: Resolved,
    runs: Path,
    seconds: Mapping[str, float],
    *,
    seeds: int,
    parent_seeds: int,
) -> RunCosts:
    """Returns the cost of the runs of a question.

    Args:
        name: of the question's file.
        one: the question, applied to the parent.
        runs: the folder of all run folders.
        seconds: of a run of each experiment, by name.
        seeds, parent_seeds: finished seeds of the question and of the parent.
    """
    first = next_analysis(seeds) or seeds
    study = Study(parent=parent.name, variants=(name,), seeds=first, parent_seeds=first)
    now, later = make_jobs(study, runs, seconds, [parent, one])
    missing = device_hours(not_over([*now, *later]))
    hours, parent_hours = (hours_of_a_run(each, seconds) for each in (one, parent))
    per_seed = RUNS_AT_BEST if one.is_retuned else 1
    new_parent = INTERIM_SEEDS[0] * hours
    return RunCosts(first, missing, per_seed * hours, per_seed * parent_hours, parent_seeds, new_parent)


def hours_of_a_run(one: Resolved, seconds: Mapping[str, float]) -> float:
    """Returns the device hours of a run of an experiment, by the seconds of each by name."""
    return seconds[one.name] * one.experiment.mesh.devices / 3600


def run_to_come(parent: Resolved, parent_hours: float, target: str, target_hours: float) -> tuple[str, float]:
    """Returns a description of the run to come, and its device hours.

    Args:
        parent_hours: device hours of a run of the parent.
        target: its experiment; '' for one with `LARGER` times the parent's operations.
        target_hours: its device hours; NaN to estimate them from the parent's hours per operation.
    """
    one = resolve(target).experiment if target else None
    if math.isfinite(target_hours):
        return f"a run of {one.name}" if one else "a run", target_hours
    if one:
        return f"a run of {one.name}", parent_hours * training_flops(one) / training_flops(parent.experiment)
    what = f"a run of {LARGER:g} times the operations (assumed: name yours by --target or --target_hours)"
    return what, parent_hours * LARGER
