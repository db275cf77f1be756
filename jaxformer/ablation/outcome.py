"""What came out of a study: its runs read, compared, judged and recorded."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.clock import read_clock
from jaxformer.ablation.comparison import Comparison, compare_runs, interaction
from jaxformer.ablation.envelope import Trained, compare_retuned, flag_untuned, make_arm, shared_seeds
from jaxformer.ablation.finished_runs import FinishedRun, Runs, has_diverged, read_runs, seed_of
from jaxformer.ablation.leave_one_out import Composition, composition
from jaxformer.ablation.ledger import (
    Line,
    answers,
    append_verdicts,
    file_digest,
    spread_of_gains,
    verdict_line,
)
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.study import SEEDS_OF_A_GENERATION, Study, is_retuned, ladders, resolve_what_can_be
from jaxformer.ablation.verdict import Rule, Verdict, Word, kept_by_chance
from jaxformer.config import UserError, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.files import for_json, read_json, read_json_or_empty, write_json
from jaxformer.jobs.queue import STOPPED_EARLY, State, state_on_disk
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import benjamini_hochberg, interim_level

# In the folder of an experiment's runs.
NOISE = "noise.json"

# (folder of all run folders, name of an experiment) -> its runs.
Reader = Callable[[Path, str], Runs]

# Measures the times per token of pairs of run folders (parent, variant).
MeasureClocks = Callable[[Sequence[tuple[str, str]]], None]


def study_digest(study: Study) -> str:
    """Returns eight digits that tell a study from one of other questions or another rule."""
    return hashlib.sha256(repr((study.parent, study.variants, study.rule)).encode()).hexdigest()[:8]


def comparison_file(study: Study) -> str:
    """Returns the name of the file that keeps a comparison of a study."""
    return f"comparison_{study_digest(study)}.json"


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
    spread: float = math.nan
    """Spread of the true differences of all questions of the ledger, bits per byte, by which gains are shrunken; NaN
    where they are too few to tell.
    """
    confirmations: Mapping[str, str] = {}
    """What `jaxformer confirm` answered of a variant, by its name."""
    composition: Composition | None = None
    """What the gain of the parent is made of, where the study leaves its changes out."""


def judge_study(
    study: Study,
    runs: Path,
    *,
    allow: Sequence[str] = (),
    reader: Reader = read_runs,
    others: Sequence[float] = (),
    measure_clocks: MeasureClocks | None = None,
) -> Outcome:
    """Returns what came out of a study so far, and writes it beside the runs.

    `runs/VARIANT/comparison_DIGEST.json` keeps each comparison, DIGEST being that of the study's questions and rule,
    `runs/PARENT/noise.json` the noise floor, which the next study of the same parent takes up, and the ledger
    `runs/decisions.jsonl` each verdict that it does not have yet.

    What cannot be read, a run folder as well as a variant whose file is not there any more, is named in
    `Outcome.unread`, and all else is judged without it.

    Args:
        reader: returns the runs of an experiment that count.
        others: p-values of what else counts in the q-values, as of `p_value_of_improvement`.
        measure_clocks: is called with what a verdict depends on and was not measured; None leaves it so.

    Raises:
        UserError: the parent has no finished run that can be read, or no variant of the study is one change.
    """
    found = _collect(study, runs, reader)
    comparisons = _compare(study, found, runs, allow)
    if measure_clocks and (untimed := [one.to_time for one in comparisons if one.to_time]):
        measure_clocks(untimed)
        comparisons = _compare(study, found, runs, allow)
    comparisons = flag_untuned(with_q_values(comparisons, study.rule, others), found.finished, runs)
    lost_hours = {name: hours for name, each in found.read.items() if (hours := _lost_hours(each.folders))}
    lines = _record(study, runs, found, comparisons, lost_hours)
    return Outcome(
        study,
        found.experiments,
        found.finished,
        comparisons,
        _interactions(found, comparisons),
        lost_hours,
        (*(line for each in found.read.values() for line in each.unreadable), *map(str, found.refused.values())),
        found.tried,
        spread_of_gains(lines),
        answers(lines),
        composition(found.experiments, comparisons, found.finished, runs),
    )


class _Found(NamedTuple):
    """The experiments of a study, and what became of their runs."""

    experiments: list[Resolved]
    refused: Mapping[str, UserError]
    """Why other variants are none, by name."""
    read: Mapping[str, Runs]
    failures: Mapping[str, Mapping[int, str]]
    """How runs ended without a result, by name and seed."""
    trained: Mapping[str, Trained]
    """Runs of what is retuned, at all learning rates, by name."""

    @property
    def finished(self) -> dict[str, list[FinishedRun]]:
        """The finished runs of each experiment, by name."""
        return {name: each.finished for name, each in self.read.items()}

    @property
    def tried(self) -> dict[str, list[FinishedRun]]:
        """The finished runs at other learning rates than an experiment's own, by its name."""
        return {
            name: [run for (octave, _), run in each.items() if run and octave] for name, each in self.trained.items()
        }

    @property
    def variants(self) -> list[Resolved]:
        """The variants of which a run has ended."""
        ended = {name for name, each in self.read.items() if each.finished or each.unreadable or self.failures[name]}
        return [one for one in self.experiments[1:] if one.name in ended]


def _collect(study: Study, runs: Path, reader: Reader) -> _Found:
    experiments, refused = resolve_what_can_be(study)
    # The next generations train seeds of their own, of the same experiments too.
    first = experiments[0].first_seed
    ours = range(first, first + SEEDS_OF_A_GENERATION)
    read = {one.name: _of_seeds(reader(runs, one.name), ours) for one in experiments}
    failures = {name: failures_of(each.folders) for name, each in read.items()}
    _require_runs(runs / study.parent, read[study.parent], failures[study.parent])
    trained = {}
    for ladder in ladders(study, experiments, runs):
        trained[ladder.experiment], unreadable = ladder.read(SEEDS_OF_A_GENERATION)
        known = read[ladder.experiment]
        more = tuple(line for line in unreadable if line not in known.unreadable)
        read[ladder.experiment] = known._replace(unreadable=(*known.unreadable, *more))
    return _Found(experiments, refused, read, failures, trained)


def _of_seeds(read: Runs, seeds: Collection[int]) -> Runs:
    """Returns the runs of some seeds."""
    folders = [path for path in read.folders if seed_of(path) in seeds]
    return read._replace(folders=folders, finished=[run for run in read.finished if run.seed in seeds])


def _compare(study: Study, found: _Found, runs: Path, allow: Sequence[str]) -> list[Comparison]:
    """Returns the comparison of each variant with its own parent; keeps the noise floor of each parent."""
    finished, failures = found.finished, found.failures
    at_best, why_not, to_train = compare_retuned(study, found.variants, found.trained, allow)

    def compare(one: Resolved, floor: NoiseFloor) -> Comparison:
        parent = one.parents[0].name
        compared = compare_runs(
            finished[parent],
            finished[one.name],
            variant=one.name,
            rule=study.rule,
            floor=floor,
            # A rate at which what is retuned diverges is an answer about that rate.
            failures={} if is_retuned(study, one) else failures[one.name],
            parent_failures=failures[parent],
            clock=read_clock(finished[parent], finished[one.name]),
            allow=allow,
            leaves_out=bool(one.without),
        )
        notes = [f"at the parent's learning rate: {why_not[one.name]}"] if one.name in why_not else []
        notes += [*compared.notes, *(f"not read: {line}" for line in found.read[one.name].unreadable)]
        if one.name in to_train and not compared.flags:
            compared = compared._replace(verdict=_wait_for_rates(compared, to_train[one.name]))
        return compared._replace(notes=tuple(notes))

    compared, at_own = dict(at_best), [one for one in found.variants if one.name not in at_best]
    for parent in dict.fromkeys(one.parents[0].name for one in at_own if finished[one.parents[0].name]):
        ours, floor = [one for one in at_own if one.parents[0].name == parent], noise_floor(finished[parent])
        alone = [compare(one, floor) for one in ours]
        variances = {one.variant: (one.seed_variance, len(one.seeds) - 1) for one in alone if len(one.seeds) > 1}
        floor = remember_noise(runs / parent / NOISE, floor._replace(variances=variances), finished[parent][0])
        compared |= {one.name: compare(one, floor) for one in ours}
    return [compared.get(one.name) or _without_parent(one, failures) for one in found.variants]


def _wait_for_rates(compared: Comparison, runs: int) -> Verdict:
    """Returns the verdict on what is to be compared at its best learning rate, before the runs at others are there."""
    at_one = f"{compared.difference.mean:+.4f} at the parent's learning rate; " if compared.difference else ""
    reason = f"{at_one}each is compared at its best rate, of which about {runs} runs are missing: `jaxformer ablate`"
    return Verdict(Word.UNDECIDED, f"{reason} trains them", None)


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


def _record(
    study: Study, runs: Path, found: _Found, comparisons: Sequence[Comparison], lost_hours: Mapping[str, float]
) -> list[Line]:
    """Writes each comparison beside its variant's runs, and appends new verdicts to the ledger; returns its lines."""
    by_name, finished, verdicts = {one.name: one for one in found.experiments}, found.finished, []
    for one in comparisons:
        asked, path = {"parent": study.parent, "variants": study.variants}, runs / one.variant / comparison_file(study)
        _keep(path, to_json({"study": asked, **one._asdict()}))
        ours = [*finished[one.variant], *found.tried.get(one.variant, ())]
        hours = sum((run.device_hours for run in ours), lost_hours.get(one.variant, 0.0))
        line = verdict_line(one, by_name[one.variant], hours, ours[-1].record["starts"][-1]["code"] if ours else "")
        verdicts.append({**line, "study": study_digest(study), "comparison": file_digest(path)})
    return append_verdicts(runs, verdicts)


def _keep(path: Path, record: dict) -> None:
    """Writes a record beside the runs; where that cannot be done, a line says so."""
    try:
        write_json(path, record)
    except OSError as error:
        print_notice(f"{path}: {error.strerror}; it is not kept, and the report is made without")


def _interactions(found: _Found, comparisons: Sequence[Comparison]) -> dict[str, Difference]:
    """Returns the interaction of each merge that was compared, and both of whose parents were.

    At each arm's best learning rate where all were compared so, and else at their own.
    """
    by_name, finished, interactions = {one.name: one for one in found.experiments}, found.finished, {}
    compared = {one.variant for one in comparisons if one.difference is not None}
    at_best = {one.variant for one in comparisons if one.best_rates}
    for one in found.experiments:
        parents = [parent.name for parent in one.parents]
        # What was flagged on the way to the common ancestor is not joined either.
        if len(parents) > 1 and {one.name, *parents} <= compared:
            names = [one.name, *parents, one.common_ancestor.name]
            arms = [finished.get(name, []) for name in names]
            if {one.name, *parents} <= at_best and names[-1] in found.trained:
                trained = [found.trained[name] for name in names]
                seeds = shared_seeds(trained)
                pairs = zip(names, trained, strict=True)
                arms = [make_arm(by_name[name], each, seeds).at_best() if seeds else [] for name, each in pairs]
            if difference := interaction(arms[0], arms[1:-1], arms[-1]):
                interactions[one.name] = difference
    return interactions


def failures_of(folders: Sequence[Path]) -> dict[int, str]:
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


def remember_noise(path: Path, floor: NoiseFloor, run: FinishedRun) -> NoiseFloor:
    """Returns a noise floor with what earlier studies found of the same parent, and stores it.

    Args:
        path: `NOISE` in the folder of the parent's runs.
        run: one of them.
    """
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


def p_value_of_improvement(p_value_below: float, seeds: int) -> float:
    """Returns the p-value of a comparison after so many seeds that its q-value is made of.

    One-sided, since of all that is found only what is kept counts; and larger by as much as all interim analyses
    together err more often than this one.
    """
    return min(1.0, 0.05 / interim_level(seeds) * p_value_below)


def with_q_values(comparisons: Sequence[Comparison], rule: Rule, others: Sequence[float] = ()) -> list[Comparison]:
    """Returns comparisons with the q-value of each over all, and none kept that has too large a one.

    Args:
        others: p-values of what counts beside them, as of `p_value_of_improvement`.
    """
    differences = {i: one.difference for i, one in enumerate(comparisons) if one.difference is not None}
    compared = {i: difference for i, difference in differences.items() if difference.seeds_counted}
    p_values = [
        p_value_of_improvement(difference.p_value_below, len(comparisons[i].seeds))
        for i, difference in compared.items()
    ]
    q_values = benjamini_hochberg(np.array([*p_values, *others]))[: len(p_values)]
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
