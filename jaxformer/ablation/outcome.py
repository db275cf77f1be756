"""The outcome of a study: its runs read, compared, judged and recorded."""

import collections
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.clock import read_clock
from jaxformer.ablation.comparison import Comparison, compare_runs, interaction
from jaxformer.ablation.envelope import compare_retuned, flag_untuned, make_arm, shared_seeds
from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.ablation.leave_one_out import Composition, composition
from jaxformer.ablation.ledger import (
    Line,
    answers,
    append_verdicts,
    latest_verdicts,
    shrunken_gain,
    spread_of_gains,
    verdict_line,
)
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.q_values import other_questions, with_q_values
from jaxformer.ablation.records import study_digest, write_or_notice, write_record
from jaxformer.ablation.study import Study, is_retuned
from jaxformer.ablation.study_runs import Reader, StudyRuns, collect_runs
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.files import for_json, read_json
from jaxformer.statistics.paired_difference import Difference

# In the folder of an experiment's runs.
NOISE = "noise.json"

# Measures the times per token of pairs of run folders (parent, variant).
MeasureClocks = Callable[[Sequence[tuple[str, str]]], None]


class Outcome(NamedTuple):
    """The outcome of a study."""

    study: Study
    experiments: list[Resolved]
    """The parent and the variants, resolved."""
    runs: dict[str, list[FinishedRun]]
    """The readable finished runs of each, and of the root of removals, by name."""
    comparisons: list[Comparison]
    """The comparison of each variant with its own parent, in the order of the study."""
    interactions: dict[str, Difference]
    """The interaction of each merge: bits per byte by which the whole exceeds the sum of its parts."""
    lost_hours: dict[str, float]
    """Device hours of runs that were stopped early, by name of the experiment."""
    unread: tuple[str, ...] = ()
    """A line on each run folder, and each variant of the study, that could not be read; the rest is judged without."""
    tried: Mapping[str, list[FinishedRun]] = {}
    """The finished runs at other learning rates than an experiment's own, by its name."""
    shrunken: Mapping[str, float] = {}
    """Difference of each variant, shrunken by the spread over all questions in the ledger, bits per byte; NaN if they
    are too few, or it was not compared.
    """
    confirmations: Mapping[str, str] = {}
    """The answer of `jaxformer confirm` on a variant, by its name."""
    composition: Composition | None = None
    """The contributions to the parent's gain, if the study leaves its changes out."""
    questions: Mapping[str, tuple[str, ...]] = {}
    """Questions that count in the q-value of each variant, including itself, by its name."""


def judge_study(
    study: Study,
    runs: Path,
    *,
    allow: Sequence[str] = (),
    reader: Reader = read_runs,
    measure_clocks: MeasureClocks | None = None,
) -> Outcome:
    """Returns the outcome of a study so far, and writes it beside the runs.

    `runs/VARIANT/comparison_DIGEST.json` holds each comparison, with the digest of the study's questions and rule;
    `runs/PARENT/noise.json` the noise floor, which the next study of the same parent uses; and the ledger
    `runs/decisions.jsonl` each new verdict.

    Run folders that cannot be read, and variants whose file is gone, are named in `Outcome.unread`; all else is judged
    without them.

    Args:
        reader: returns the runs of an experiment that count.
        measure_clocks: measures the times that verdicts depend on and that are missing; None leaves them so.

    Raises:
        UserError: the parent has no finished run that can be read, or no variant of the study is one change.
    """
    found, comparisons, questions = compare_study(study, runs, allow, reader, measure_clocks)
    lines = _record(study, runs, found, comparisons)
    spread, verdicts = spread_of_gains(lines), latest_verdicts(lines)
    return Outcome(
        study,
        found.experiments,
        found.finished,
        comparisons,
        _interactions(found, comparisons),
        found.lost_hours,
        found.unread,
        found.tried,
        {one.variant: shrunken_gain(verdicts[one.parent, one.variant], spread) for one in comparisons},
        answers(lines),
        composition(found.experiments, comparisons, found.finished, runs, allow),
        questions,
    )


def compare_study(
    study: Study,
    runs: Path,
    allow: Sequence[str] = (),
    reader: Reader = read_runs,
    measure_clocks: MeasureClocks | None = None,
) -> tuple[StudyRuns, list[Comparison], dict[str, tuple[str, ...]]]:
    """Returns the runs of a study, its comparisons with their verdicts, and the questions in the q-value of each.

    As `judge_study`, but only the noise floor is recorded, and no verdict.
    """
    found = collect_runs(study, runs, reader)
    comparisons = _compare(study, found, runs, allow)
    if measure_clocks and (untimed := [one.to_time for one in comparisons if one.to_time]):
        measure_clocks(untimed)
        comparisons = _compare(study, found, runs, allow)
    comparisons, questions = _with_q_values(comparisons, study, found, runs)
    return found, flag_untuned(comparisons, found.variants, runs), questions


def _compare(study: Study, found: StudyRuns, runs: Path, allow: Sequence[str]) -> list[Comparison]:
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
            # A retuned variant that diverges at a rate answers only about that rate.
            failures={} if is_retuned(study, one) else failures[one.name],
            parent_failures=failures[parent],
            clock=read_clock(finished[parent], finished[one.name]),
            allow=allow,
            leaves_out=bool(one.without),
        )
        notes = [f"at the parent's learning rate: {why_not[one.name]}"] if one.name in why_not else []
        notes += [*compared.notes, *(f"not read: {line}" for line in found.read[one.name].unreadable)]
        if one.name in to_train and not compared.flags:
            # The difference at one rate is no answer: q-values and the ledger do not count it, and it is not timed.
            verdict = _wait_for_rates(compared, to_train[one.name])
            compared = compared._replace(verdict=verdict, difference=None, to_time=None)
        return compared._replace(notes=tuple(notes))

    compared, at_own = dict(at_best), [one for one in found.variants if one.name not in at_best]
    for parent in dict.fromkeys(one.parents[0].name for one in at_own if finished[one.parents[0].name]):
        ours, floor = [one for one in at_own if one.parents[0].name == parent], noise_floor(finished[parent])
        alone = [compare(one, floor) for one in ours]
        variances = {one.variant: (one.seed_variance, len(one.seeds) - 1) for one in alone if len(one.seeds) > 1}
        floor = remember_noise(runs / parent / NOISE, floor._replace(variances=variances), finished[parent][0])
        compared |= {one.name: compare(one, floor) for one in ours}
    return [compared.get(one.name) or _without_parent(one, failures) for one in found.variants]


def _with_q_values(
    comparisons: Sequence[Comparison], study: Study, found: StudyRuns, runs: Path
) -> tuple[list[Comparison], dict[str, tuple[str, ...]]]:
    """Returns comparisons with the q-value of each over all questions of its parent that have a finished run.

    Also returns these questions by name; none if the variant has no finished run itself.
    """
    asked, judged, questions = collections.defaultdict(list), {one.variant: one for one in comparisons}, {}
    removals = {one.name for one in found.experiments if one.without}
    for one in comparisons:
        if found.finished[one.variant] or any(found.trained.get(one.variant, {}).values()):
            asked[one.parent, one.variant in removals].append(one)
    for (parent, leaves_out), ours in asked.items():
        names = [one.variant for one in ours]
        others = other_questions(runs, parent, names, leaves_out=leaves_out)
        judged |= {one.variant: one for one in with_q_values(ours, study.rule, [*others.values()])}
        questions |= dict.fromkeys(names, (*names, *others))
    return [judged[one.variant] for one in comparisons], questions


def _wait_for_rates(compared: Comparison, runs: int) -> Verdict:
    """Returns the verdict on a variant to be compared at its best learning rate, while runs for that are missing."""
    at_one = f"{compared.difference.mean:+.4f} at the parent's learning rate; " if compared.difference else ""
    reason = f"{at_one}each is compared at its best rate, and about {runs} runs for that are missing"
    return Verdict(Word.UNDECIDED, f"{reason}: `jaxformer ablate` trains them", None)


def _without_parent(one: Resolved, failures: Mapping[str, Mapping[int, str]]) -> Comparison:
    """Returns the comparison of a variant whose parent has no finished run."""
    parent = one.parents[0].name
    ended = "".join(f"; its seed {seed} {why}" for seed, why in sorted(failures[parent].items()))
    verdict = Verdict(Word.NOT_COMPARED, f"its parent, {parent}, has no finished run that can be read{ended}")
    return Comparison(parent, one.name, verdict, math.nan, {})


def _record(study: Study, runs: Path, found: StudyRuns, comparisons: Sequence[Comparison]) -> list[Line]:
    """Writes each comparison beside its variant's runs, and appends new verdicts to the ledger; returns its lines."""
    by_name, finished, verdicts = {one.name: one for one in found.experiments}, found.finished, []
    tried, lost_hours = found.tried, found.lost_hours
    for one in comparisons:
        digest = write_record(runs, study, one)
        ours = [*finished[one.variant], *tried.get(one.variant, ())]
        hours = sum((run.device_hours for run in ours), lost_hours.get(one.variant, 0.0))
        line = verdict_line(one, by_name[one.variant], hours, ours[-1].record["starts"][-1]["code"] if ours else "")
        verdicts.append({**line, "study": study_digest(study), "comparison": digest})
    return append_verdicts(runs, verdicts)


def _interactions(found: StudyRuns, comparisons: Sequence[Comparison]) -> dict[str, Difference]:
    """Returns the interaction of each merge that was compared, as were both its parents.

    At each arm's best learning rate if all were compared so, else at their own.
    """
    by_name, finished, interactions = {one.name: one for one in found.experiments}, found.finished, {}
    compared = {one.variant for one in comparisons if one.difference is not None}
    at_best = {one.variant for one in comparisons if one.best_rates}
    for one in found.experiments:
        parents = [parent.name for parent in one.parents]
        # A merge whose line to the common ancestor has flags has no interaction either.
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


def remember_noise(path: Path, floor: NoiseFloor, run: FinishedRun) -> NoiseFloor:
    """Returns a noise floor with the results of earlier studies of the same parent, and stores it.

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
        print_notice(f"{path}: damaged ({error}); results of earlier studies of the same parent are not used")
    record = {**floor._asdict(), "standard_deviation": floor.standard_deviation, "made_with": made_with}
    write_or_notice(path, for_json(record))
    return floor
