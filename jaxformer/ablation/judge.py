"""The verdict on one variant from its finished runs, for programs that act on it: nothing is trained.

A program that tries changes until one seems better finds a lucky one. So it has no choice: neither of the seeds, nor of
their number, nor of the rule; and all other questions about the same parent count.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.records import to_json
from jaxformer.ablation.seeds import SEEDS_OF_A_GENERATION, seeds_of
from jaxformer.ablation.study import (
    Study,
    estimate_seconds,
    make_jobs,
    rate_searches,
    resolve_study,
)
from jaxformer.ablation.study_runs import failures_of
from jaxformer.ablation.training_jobs import experiment_of
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.config import require
from jaxformer.experiment.experiment import science
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.variant import AD_HOC
from jaxformer.host.paths import on_this_machine
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import OVER, state_on_disk
from jaxformer.record import differences
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level

# Exit status of the command by verdict; 1 and 2 are a failure and bad input, as of every command.
STATUS = {
    Word.KEEP: 0,
    Word.CHEAPER: 0,
    Word.REVERT: 3,
    Word.EQUIVALENT: 4,
    Word.UNDECIDED: 5,
    Word.NOT_COMPARED: 6,
}


class Judgement(NamedTuple):
    """The decision on a variant, and the missing runs."""

    comparison: Comparison
    questions: tuple[str, ...]
    """Variants of the parent that count in the q-value, including this one; none if it has no finished run."""
    missing: tuple[Job, ...]
    """Runs to train next, in order; none if no further seed would be used."""

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return STATUS[self.comparison.verdict.word]

    @property
    def missing_hours(self) -> float:
        """Device hours of the missing runs, estimated from finished ones; NaN if there are none."""
        return sum(job.estimated_seconds * job.devices for job in self.missing) / 3600

    def record(self) -> dict:
        """Returns it as plain values for JSON; what is not known is None or empty."""
        one, difference = self.comparison, self.comparison.difference
        level = interim_level(len(one.seeds))
        low, high = difference.interval(1 - level) if difference else (math.nan, math.nan)
        values = {
            "parent": one.parent,
            "variant": one.variant,
            "verdict": one.verdict.word.value,
            "status": self.status,
            "reason": one.verdict.reason,
            "difference": difference.mean if difference else math.nan,
            "standard_error": difference.standard_error if difference else math.nan,
            "interval": [low, high],
            "confidence": 1 - level,
            "margin": one.margin,
            "q_value": one.q_value,
            "questions": list(self.questions),
            "seeds": list(one.seeds),
            "parent_bits_per_byte": one.parent_bits,
            "variant_bits_per_byte": one.variant_bits,
            "tokens_worth": one.worth,
            "time_per_token": one.cost.time_per_token if one.cost else math.nan,
            "parameters": one.cost.parameters if one.cost else math.nan,
            "flags": list(one.flags),
            "notes": list(one.notes),
            "missing": [
                {"experiment": experiment_of(job), "seed": job.seed, "command": list(train_arguments(job))}
                for job in self.missing
            ],
            "missing_device_hours": self.missing_hours,
        }
        return {name: to_json(value) for name, value in values.items()}


def train_arguments(job: Job) -> tuple[str, ...]:
    """Returns the command that trains a run."""
    return ("jaxformer", "train", *job.arguments)


def locate(parent: str, variant: str, runs: Path) -> tuple[str, str, Path]:
    """Returns the names of two experiments, and the folder that holds the folders of their runs.

    Args:
        parent, variant: each a name, or the path of the folder of its runs, such as `runs/baseline`.
        runs: where a name is searched.

    Raises:
        UserError: a path is no folder of an experiment's runs, or the two lie in different folders.
    """
    names, folders = [], []
    for text in (parent, variant):
        if "/" not in text:
            names.append(text)
            continue
        path = on_this_machine(text)
        require(path.is_dir(), f"{path}: no such folder; give an experiment, or the folder of its runs")
        require(not path.name.startswith("seed_"), f"{path} is one run; give the folder of all, {path.parent}")
        names.append(path.name)
        folders.append(path.parent)
    require(len({path.absolute() for path in folders}) < 2, f"{parent} and {variant} lie in different folders")
    require(names[0] != names[1], f"{names[0]} cannot be judged against itself")
    return names[0], names[1], folders[0] if folders else runs


def judge(parent: str, variant: str, runs: Path, *, allow: Sequence[str] = ()) -> Judgement:
    """Returns the verdict on a variant of a parent from their finished runs, and records it as a study does.

    Pairs of seeds count from the parent's first up to the first that is missing; a seed on which a run failed is
    skipped.

    Args:
        runs: the folder of all run folders.
        allow: as of `judge_study`.

    Raises:
        UserError: an experiment is not found, has changed since its runs were made, or is no variant of the parent; or
            a run at another learning rate cannot be read. Nothing is recorded then.
    """
    for name in (parent, variant):
        if AD_HOC in name:
            reason = (
                f"{name} is ad hoc, with fields set on the command line, and is no evidence: write the change as a file"
            )
            return Judgement(Comparison(parent, variant, Verdict(Word.NOT_COMPARED, reason), math.nan, {}), (), ())
    study = Study(parent=parent, variants=(variant,))
    base, one = resolve_study(study)
    parents, variants = (read_runs(runs, each.name) for each in (base, one))
    _check_not_moved(base, parents.finished)
    _check_not_moved(one, variants.finished)
    failures = failures_of(variants.folders)
    # A retuned variant that diverges at a rate answers only about that rate.
    passed_over = set() if one.is_retuned else {*failures, *failures_of(parents.folders)}
    counted, note = _in_order(parents.finished, variants.finished, seeds_of((base, one)).start, passed_over)
    for search in rate_searches(study, (base, one), runs):
        _, unreadable = search.read(SEEDS_OF_A_GENERATION)
        require(not unreadable, "; ".join(unreadable))  # Then no missing run can be named.
    questions = {}
    if parents.finished and (counted or failures):
        read = {base.name: parents, one.name: variants._replace(finished=counted)}
        outcome = judge_study(
            study, runs, allow=allow, reader=lambda runs, name: read.get(name) or read_runs(runs, name)
        )
        (found,), questions = outcome.comparisons, outcome.questions
        comparison = found._replace(notes=(*found.notes, *note))
    else:
        unread = (f"not read: {line}" for line in (*parents.unreadable, *variants.unreadable))
        reason = "; ".join([f"{base.name} and {one.name} have no finished run of a seed that counts", *note, *unread])
        verdict = Verdict(Word.NOT_COMPARED, reason)
        comparison = Comparison(base.name, one.name, verdict, math.nan, {}, one.experiment.question)
    missing = _missing(study, runs, comparison, passed_over)
    return Judgement(comparison, questions.get(one.name, ()), tuple(missing))


def _check_not_moved(resolved: Resolved, runs: Sequence[FinishedRun]) -> None:
    """Raises `UserError` if an experiment has changed since its runs were made."""
    for run in runs:
        changes = differences(science(resolved.experiment), science(run.experiment))
        require(
            not changes,
            f"{resolved.name} has changed since {run.workdir} was trained ({'; '.join(changes[:5])}); undo the change, "
            "or write the new experiment in a file of its own",
        )


def _in_order(
    parents: Sequence[FinishedRun], variants: Sequence[FinishedRun], first: int, passed_over: Collection[int]
) -> tuple[list[FinishedRun], list[str]]:
    """Returns the variant's runs that count, on the first seeds that both arms have, and a note on others.

    Args:
        first: the first seed.
        passed_over: seeds on which a run failed.
    """
    ours, theirs = ({run.seed: run for run in runs} for runs in (variants, parents))
    seed, counted = first, []
    while seed in passed_over or (seed in ours and seed in theirs):
        if seed in ours and seed in theirs:
            counted.append(ours[seed])
        seed += 1
    left = [each for each in ours if each not in passed_over and each not in {run.seed for run in counted}]
    numbers, lacks = ", ".join(map(str, left)), "the variant" if seed in theirs else "the parent"
    why = f"seeds count in order from {first} on, and {lacks} has no finished run of seed {seed}"
    return counted, [f"not counted: seed{'s' * (len(left) > 1)} {numbers} of the variant, since {why}"] if left else []


def _missing(study: Study, runs: Path, comparison: Comparison, passed_over: Collection[int]) -> list[Job]:
    """Returns the unfinished runs of the next interim analysis, if further seeds are of use."""
    verdict, arms = comparison.verdict, resolve_study(study)
    first = seeds_of(arms).start
    if arms[1].is_retuned and not comparison.best_rates:
        seeds = study.seeds
    elif verdict.word is Word.UNDECIDED and verdict.more_seeds:
        seeds = _number_of_seeds(first, len(comparison.seeds) + verdict.more_seeds, passed_over)
    elif verdict.word is Word.NOT_COMPARED and not comparison.flags:
        seeds = _number_of_seeds(first, INTERIM_SEEDS[0], passed_over)
    else:
        return []
    longer = dataclasses.replace(study, seeds=seeds, parent_seeds=seeds)
    jobs = make_jobs(longer, runs, estimate_seconds(arms, runs, {arms[0].name: math.nan})).now
    names = {one.name for one in arms}
    return [job for job in jobs if experiment_of(job) in names and job.seed not in passed_over and not _is_over(job)]


def _number_of_seeds(first: int, pairs: int, passed_over: Collection[int]) -> int:
    """Returns the seeds from the first on that so many pairs take."""
    counting = (seed for seed in itertools.count(first) if seed not in passed_over)
    *_, last = itertools.islice(counting, pairs)
    return last - first + 1


def _is_over(job: Job) -> bool:
    return state_on_disk(job.workdir)[0] in OVER
