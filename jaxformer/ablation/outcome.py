"""What came out of a study: its runs read, compared, judged and recorded."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison, compare_runs, interaction
from jaxformer.ablation.envelope import Trained, compare_retuned, flag_untuned, make_arm, shared_seeds
from jaxformer.ablation.finished_runs import FinishedRun, Runs, has_diverged, read_runs, seed_of
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.study import Study, ladders, resolve_what_can_be
from jaxformer.ablation.verdict import Rule, Verdict, Word, kept_by_chance
from jaxformer.config import require
from jaxformer.experiment.variant import Resolved, common_ancestor
from jaxformer.host.console import print_notice
from jaxformer.host.files import for_json, read_json, read_json_or_empty, write_json
from jaxformer.jobs.queue import STOPPED_EARLY, State, state_on_disk
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import benjamini_hochberg, interim_level

# In the folder of an experiment's runs.
NOISE = "noise.json"


def comparison_file(study: Study) -> str:
    """Returns the name of the file that keeps a comparison of a study: another for other questions or another rule."""
    what = repr((study.parent, study.variants, study.rule))
    return f"comparison_{hashlib.sha256(what.encode()).hexdigest()[:8]}.json"


class Outcome(NamedTuple):
    """What came out of a study."""

    study: Study
    experiments: list[Resolved]
    """The parent and the variants, resolved."""
    runs: dict[str, list[FinishedRun]]
    """The finished runs of each that can be read, by name."""
    comparisons: list[Comparison]
    """Comparisons of each variant with its own parent, in the order of the study."""
    interactions: dict[str, Difference]
    """Interactions of each merge, bits per byte by which the whole exceeds the sum of its parts."""
    lost_hours: dict[str, float]
    """Device hours of runs that were stopped early, by name of the experiment."""
    unread: tuple[str, ...] = ()
    """A line on each run folder, and each variant of the study, that could not be read; the rest is judged without."""
    tried: Mapping[str, list[FinishedRun]] = {}
    """The finished runs at other learning rates than an experiment's own, by its name."""


def judge_study(study: Study, runs: Path, *, allow: Sequence[str] = ()) -> Outcome:
    """Returns what came out of a study so far, and writes it beside the runs.

    `runs/VARIANT/comparison_DIGEST.json` keeps each comparison, DIGEST being that of the study's questions and rule,
    and `runs/PARENT/noise.json` the noise floor, which the next study of the same parent takes up.

    What cannot be read, a run folder as well as a variant whose file is not there any more, is named in
    `Outcome.unread`, and all else is judged without it.

    Raises:
        UserError: the parent has no finished run that can be read, or no variant of the study is one change.
    """
    experiments, refused = resolve_what_can_be(study)
    read = {one.name: read_runs(runs, one.name) for one in experiments}
    finished = {name: each.finished for name, each in read.items()}
    failures = {name: _failures(each.folders) for name, each in read.items()}
    _require_runs(runs / study.parent, read[study.parent], failures[study.parent])
    ended = {name for name, each in read.items() if each.finished or each.unreadable or failures[name]}
    variants = [one for one in experiments[1:] if one.name in ended]

    trained = {ladder.experiment: ladder.read()[0] for ladder in ladders(study, experiments, runs)}
    at_best, why_not = compare_retuned(study, variants, trained, allow)

    def compare(one: Resolved, floor: NoiseFloor) -> Comparison:
        parent = one.parents[0].name
        found = compare_runs(
            finished[parent],
            finished[one.name],
            variant=one.name,
            rule=study.rule,
            floor=floor,
            failures=failures[one.name],
            parent_failures=failures[parent],
            allow=allow,
        )
        notes = [f"at the parent's learning rate: {why_not[one.name]}"] if one.name in why_not else []
        notes += [*found.notes, *(f"not read: {line}" for line in read[one.name].unreadable)]
        return found._replace(notes=tuple(notes))

    floors, at_own = {}, [one for one in variants if one.name not in at_best]
    for parent in dict.fromkeys(one.parents[0].name for one in at_own if finished[one.parents[0].name]):
        floor = noise_floor(finished[parent])
        ours = [compare(one, floor) for one in at_own if one.parents[0].name == parent]
        variances = {one.variant: (one.seed_variance, len(one.seeds) - 1) for one in ours if len(one.seeds) > 1}
        floors[parent] = _reuse(runs / parent / NOISE, floor._replace(variances=variances), finished[parent][0])
    at_own = [one for one in at_own if one.parents[0].name in floors]
    compared = at_best | {one.name: compare(one, floors[one.parents[0].name]) for one in at_own}
    comparisons = [compared.get(one.name) or _without_parent(one, failures) for one in variants]
    comparisons = flag_untuned(with_q_values(comparisons, study.rule), finished, runs)
    for one in comparisons:
        asked = {"study": {"parent": study.parent, "variants": study.variants}}
        _keep(runs / one.variant / comparison_file(study), to_json({**asked, **one._asdict()}))
    lost_hours = {name: hours for name, each in read.items() if (hours := _lost_hours(each.folders))}
    interactions = _interactions(experiments, finished, trained, comparisons)
    unread = (*(line for each in read.values() for line in each.unreadable), *map(str, refused.values()))
    tried = {name: [run for (octave, _), run in each.items() if run and octave] for name, each in trained.items()}
    return Outcome(study, experiments, finished, comparisons, interactions, lost_hours, unread, tried)


def _require_runs(folder: Path, read: Runs, failures: Mapping[int, str]) -> None:
    """Raises `UserError` unless a run of the study's parent is finished and can be read: with what became of them."""
    ended = [*(f"seed {seed} {why}; see {folder / f'seed_{seed}'}.log" for seed, why in sorted(failures.items()))]
    ended += read.unreadable
    require(
        bool(read.finished),
        f"{folder}: no finished run of the parent{' can be read' * bool(read.unreadable)}"
        + (f": {'; '.join(ended)}" if ended else "; train it first"),
    )


def _without_parent(one: Resolved, failures: Mapping[str, Mapping[int, str]]) -> Comparison:
    """Returns what is known of a variant whose parent has no finished run."""
    parent = one.parents[0].name
    ended = "".join(f"; its seed {seed} {why}" for seed, why in sorted(failures[parent].items()))
    verdict = Verdict(Word.NOT_COMPARED, f"{parent}, which it changes, has no finished run that can be read{ended}")
    return Comparison(parent, one.name, verdict, math.nan, {})


def _keep(path: Path, record: dict) -> None:
    """Writes a record beside the runs; where that cannot be done, a line says so."""
    try:
        write_json(path, record)
    except OSError as error:
        print_notice(f"{path}: {error.strerror}; it is not kept, and the report is made without")


def _interactions(
    experiments: Sequence[Resolved],
    finished: Mapping[str, list[FinishedRun]],
    trained: Mapping[str, Trained],
    comparisons: Sequence[Comparison],
) -> dict[str, Difference]:
    """Returns the interaction of each merge that was compared, and both of whose parents were.

    At each arm's best learning rate where all were compared so, and else at their own.
    """
    compared, found = {one.variant for one in comparisons if one.difference is not None}, {}
    at_best, resolved = {one.variant for one in comparisons if one.best_rates}, {one.name: one for one in experiments}
    for one in experiments:
        parents = [parent.name for parent in one.parents]
        # What was flagged on the way to the common ancestor is not joined either.
        if len(parents) > 1 and {one.name, *parents} <= compared:
            names = [one.name, *parents, common_ancestor(one).name]
            arms = [finished.get(name, []) for name in names]
            if {one.name, *parents} <= at_best and names[-1] in trained:
                seeds = shared_seeds([trained[name] for name in names])
                arms = [make_arm(resolved[name], trained[name], seeds).at_best() if seeds else [] for name in names]
            found[one.name] = interaction(arms[0], arms[1:-1], arms[-1])
    return {name: difference for name, difference in found.items() if difference}


def _failures(folders: Sequence[Path]) -> dict[int, str]:
    """Returns, by seed, how runs of an experiment ended without a result."""
    failures = {}
    for path in folders:
        seed, (state, reason) = seed_of(path), state_on_disk(path)
        if state is State.STOPPED_EARLY:
            step = read_json_or_empty(path / STOPPED_EARLY).get("step", "?")
            failures[seed] = f"stopped early at step {step}: {reason}"
        elif has_diverged(path):
            failures[seed] = "diverged: its loss or gradient is not finite"
    return failures


def _lost_hours(folders: Sequence[Path]) -> float:
    """Returns the device hours of an experiment's runs that were stopped early."""
    stopped = [one for one in folders if state_on_disk(one)[0] is State.STOPPED_EARLY]
    return sum(float(read_json_or_empty(one / STOPPED_EARLY).get("device_hours", 0.0)) for one in stopped)


def _reuse(path: Path, floor: NoiseFloor, run: FinishedRun) -> NoiseFloor:
    """Returns a noise floor with what earlier studies found of the same parent, and stores it."""
    shared = {name: run.record[name] for name in ("code", "versions", "device")}
    digests = {name: d for name, d in run.record["digests"].items() if not name.startswith("plan.")}
    made_with = {"identity": {**run.record["identity"], "seed": None}, "digests": digests, **shared}
    try:
        stored = read_json(path) or {}
        if stored.get("made_with") == json.loads(json.dumps(made_with)):
            earlier = {name: (float(variance), int(df)) for name, (variance, df) in stored["variances"].items()}
            floor = floor._replace(variances={**earlier, **floor.variances})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        print_notice(f"{path}: damaged ({error}); what earlier studies of the same parent found is not used")
    record = {**floor._asdict(), "standard_deviation": floor.standard_deviation, "made_with": made_with}
    _keep(path, for_json(record))
    return floor


def with_q_values(comparisons: Sequence[Comparison], rule: Rule) -> list[Comparison]:
    """Returns comparisons with the q-value of each over all, and none kept that has too large a one."""
    differences = {i: one.difference for i, one in enumerate(comparisons) if one.difference is not None}
    compared = {i: difference for i, difference in differences.items() if difference.seeds_counted}
    # One-sided, since of all that is found only what is kept counts; and larger by as much as all interim analyses
    # together err more often than this one.
    p_values = [
        min(1.0, 0.05 / interim_level(len(comparisons[i].seeds)) * difference.p_value_below)
        for i, difference in compared.items()
    ]
    q_values = benjamini_hochberg(np.array(p_values))
    judged = list(comparisons)
    for i, q in zip(compared, q_values, strict=True):
        one = comparisons[i]._replace(q_value=float(q))
        demoted = kept_by_chance(one.verdict, float(q), rule, *one.until_next)
        judged[i] = one._replace(verdict=demoted or one.verdict)
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
