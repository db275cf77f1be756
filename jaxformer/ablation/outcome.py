"""What came out of a study: its runs read, compared, judged and recorded."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison, compare_runs, interaction, load_runs
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.study import Study, resolve_study
from jaxformer.ablation.verdict import Rule, Word, kept_by_chance
from jaxformer.config import require
from jaxformer.experiment.variant import Resolved, common_ancestor
from jaxformer.host.files import for_json, read_json, require_json, write_json
from jaxformer.jobs.queue import STOPPED_EARLY, State, state_on_disk
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import INTERIM_ALPHA, benjamini_hochberg

# In the folder of an experiment's runs.
NOISE = "noise.json"
COMPARISON = "comparison.json"


class Outcome(NamedTuple):
    """What came out of a study."""

    study: Study
    experiments: list[Resolved]
    """The parent and the variants, resolved."""
    runs: dict[str, list[FinishedRun]]
    """The finished runs of each, by name."""
    comparisons: list[Comparison]
    """Comparisons of each variant with its own parent, in the order of the study."""
    interactions: dict[str, Difference]
    """Interactions of each merge, bits per byte by which the whole exceeds the sum of its parts."""
    lost_hours: dict[str, float]
    """Device hours of runs that were stopped early, by name of the experiment."""


def judge_study(study: Study, runs: Path, *, allow: Sequence[str] = ()) -> Outcome:
    """Returns what came out of a study so far, and writes it beside the runs.

    `runs/VARIANT/comparison.json` keeps each comparison, `runs/PARENT/noise.json` the noise floor, which the next study
    of the same parent takes up.

    Raises:
        UserError: the parent has no finished run, or files are damaged.
    """
    experiments = resolve_study(study)
    finished = {one.name: load_runs(runs, one.name) for one in experiments}
    failures = {one.name: _failures(runs / one.name) for one in experiments}
    require(bool(finished[study.parent]), f"{runs / study.parent}: no finished run of the parent; train it first")
    variants = [one for one in experiments[1:] if finished[one.name] or failures[one.name]]

    def compare(one: Resolved, floor: NoiseFloor) -> Comparison:
        return compare_runs(
            finished[one.parents[0].name],
            finished[one.name],
            variant=one.name,
            rule=study.rule,
            floor=floor,
            failures=failures[one.name],
            allow=allow,
        )

    floors = {}
    for parent in dict.fromkeys(one.parents[0].name for one in variants):
        require(bool(finished[parent]), f"{runs / parent}: no finished run of it to compare its variants with")
        floor = noise_floor(finished[parent])
        ours = [compare(one, floor) for one in variants if one.parents[0].name == parent]
        variances = {one.variant: (one.seed_variance, len(one.seeds) - 1) for one in ours if len(one.seeds) > 1}
        floors[parent] = _reuse(runs / parent / NOISE, floor._replace(variances=variances), finished[parent][0])
    comparisons = [compare(one, floors[one.parents[0].name]) for one in variants]
    comparisons = _with_q_values(comparisons, study.rule)
    for one in comparisons:
        write_json(runs / one.variant / COMPARISON, to_json(one))
    lost_hours = {one.name: hours for one in experiments if (hours := _lost_hours(runs / one.name))}
    interactions = _interactions(experiments, finished, comparisons)
    return Outcome(study, experiments, finished, comparisons, interactions, lost_hours)


def _interactions(
    experiments: Sequence[Resolved], finished: Mapping[str, list[FinishedRun]], comparisons: Sequence[Comparison]
) -> dict[str, Difference]:
    """Returns the interaction of each merge that was compared, and both of whose parents were."""
    compared, found = {one.variant for one in comparisons if one.difference is not None}, {}
    for one in experiments:
        parents = [parent.name for parent in one.parents]
        # What was flagged on the way to the common ancestor is not joined either.
        if len(parents) > 1 and {one.name, *parents} <= compared:
            ancestor = finished.get(common_ancestor(one).name, [])
            found[one.name] = interaction(finished[one.name], [finished[name] for name in parents], ancestor)
    return {name: difference for name, difference in found.items() if difference}


def _failures(folder: Path) -> dict[int, str]:
    """Returns, by seed, how runs of an experiment ended without a result."""
    failures = {}
    for path in sorted(folder.glob("seed_*/")):
        seed = int(path.name.removeprefix("seed_")) if path.name.removeprefix("seed_").isdigit() else None
        state, reason = state_on_disk(path)
        if seed is not None and state is State.STOPPED_EARLY:
            failures[seed] = f"stopped early at step {require_json(path / STOPPED_EARLY)['step']}: {reason}"
        elif seed is not None and state is State.WAITING and any((path / "faults").glob("*.npz")):
            failures[seed] = "diverged: its loss or gradient is not finite"
    return failures


def _lost_hours(folder: Path) -> float:
    """Returns the device hours of an experiment's runs that were stopped early."""
    stopped = [path.parent for path in sorted(folder.glob(f"seed_*/{STOPPED_EARLY}"))]
    stopped = [one for one in stopped if state_on_disk(one)[0] is State.STOPPED_EARLY]
    return sum(float(require_json(one / STOPPED_EARLY).get("device_hours", 0.0)) for one in stopped)


def _reuse(path: Path, floor: NoiseFloor, run: FinishedRun) -> NoiseFloor:
    """Returns a noise floor with what earlier studies found of the same parent, and stores it."""
    shared = {name: run.record[name] for name in ("code", "versions", "device")}
    digests = {name: d for name, d in run.record["digests"].items() if not name.startswith("plan.")}
    made_with = {"identity": {**run.record["identity"], "seed": None}, "digests": digests, **shared}
    stored = read_json(path) or {}
    if stored.get("made_with") == json.loads(json.dumps(made_with)):
        earlier = {name: (float(variance), int(df)) for name, (variance, df) in stored["variances"].items()}
        floor = floor._replace(variances={**earlier, **floor.variances})
    record = {**floor._asdict(), "standard_deviation": floor.standard_deviation, "made_with": made_with}
    write_json(path, for_json(record))
    return floor


def _with_q_values(comparisons: Sequence[Comparison], rule: Rule) -> list[Comparison]:
    """Returns comparisons with the q-value of each over all, and none kept that has too large a one."""
    differences = {i: one.difference for i, one in enumerate(comparisons) if one.difference is not None}
    compared = {i: difference for i, difference in differences.items() if difference.seeds_counted}
    # The level of an interim analysis is smaller than that of all together, 0.05, and so is its p-value.
    p_values = [min(1.0, 0.05 / INTERIM_ALPHA * difference.p_value) for difference in compared.values()]
    q_values = benjamini_hochberg(np.array(p_values))
    judged = list(comparisons)
    for i, q in zip(compared, q_values, strict=True):
        one = comparisons[i]._replace(q_value=float(q))
        judged[i] = one._replace(verdict=kept_by_chance(one.verdict, float(q), rule) or one.verdict)
    return judged


def to_json(value):
    """Returns a comparison as plain values that JSON can hold; NaN and infinity as None."""
    if isinstance(value, Difference):
        low, high = value.interval()
        own = {"standard_error": value.standard_error, "p_value": value.p_value, "low_95": low, "high_95": high}
        return to_json({**value._asdict(), **own})
    if isinstance(value, Word):
        return value.value
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): to_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
