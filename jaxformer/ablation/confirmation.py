"""Whether the gain of a promoted variant holds: asked once, on seeds and documents that no verdict has read.

What was kept was chosen by its seeds and by its validation documents, and looks better on them than it is. The new
parent and the one before it are trained on the new parent's own seeds, which its next study takes up, and both are
validated on the next documents of the validation share, one window of `evaluation.validation_bytes` a generation.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation import ledger
from jaxformer.ablation.comparability import check_comparable
from jaxformer.ablation.finished_runs import (
    Documents,
    FinishedRun,
    has_diverged,
    paired_seeds,
    read_runs,
    seed_of,
    stack,
    stack_sources,
)
from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.outcome import NOISE, remember_noise
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import TrainingFailure, check_same, require
from jaxformer.data.packing import plan_rows
from jaxformer.data.shards import Shards
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.validation import ValidationSet, select_validation, validate
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import promoted_variant
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import typed
from jaxformer.jobs.dashboard import Dashboard
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import Queue
from jaxformer.run.init_from import with_tokenizer
from jaxformer.run.inputs import open_corpora, prepare_corpora
from jaxformer.run.trained import load_trained
from jaxformer.statistics.paired_difference import Difference, crossed_difference

# Of the single analysis that there is: two-sided, so that an equal is confirmed in 2.5 %.
LEVEL = 0.05

# Independent documents of a corpus from which something can be learnt of how they vary.
_FEWEST_DOCUMENTS = 2


class Question(NamedTuple):
    """A promoted variant, and what its gain is asked of again."""

    promoted: Resolved
    variant: str
    """Name under which it was judged."""
    seeds: Sequence[int]

    @property
    def parent(self) -> Resolved:
        """The parent before."""
        return self.promoted.parents[0]


def ask(promoted: Resolved, seeds: int) -> Question:
    """Returns the question that confirms a promoted variant.

    Raises:
        UserError: it is none.
    """
    return Question(promoted, promoted_variant(promoted).name, range(promoted.first_seed, promoted.first_seed + seeds))


def recorded_answer(question: Question, runs: Path) -> ledger.Line | None:
    """Returns the answer that the ledger has, under whatever name the variant was promoted; None where it has none."""
    names = {"parent": question.parent.name, "variant": question.variant}
    return ledger.last_of(ledger.read_ledger(runs), ledger.CONFIRMATION, **names)


def make_jobs(question: Question, runs: Path, seconds: Mapping[str, float]) -> list[Job]:
    """Returns the runs of both arms, seed by seed. Args: seconds: of a run of each, estimated."""
    jobs = []
    for seed in question.seeds:
        for one in (question.promoted, question.parent):
            workdir = runs / one.name / f"seed_{seed}"
            arguments = (f"--experiment={one.name}", f"--seed={seed}", f"--workdir={typed(workdir)}")
            experiment = one.experiment
            steps, devices = experiment.training.steps, experiment.mesh.devices
            jobs.append(Job(one.name, seed, arguments, workdir, steps, seconds[one.name], devices=devices))
    return jobs


def train(jobs: Sequence[Job], *, parallel: int = 1) -> None:
    """Runs jobs, showing what they do.

    Raises:
        TrainingFailure: one ended otherwise than finished or by divergence.
    """
    board, statuses = Dashboard(), []
    with Queue(jobs, parallel=parallel) as queue:
        for statuses in queue.watch():
            board.draw(statuses, parallel=parallel)
    for status in statuses:
        is_over = (status.job.workdir / "summary.json").exists() or has_diverged(status.job.workdir)
        if not is_over:
            raise TrainingFailure(f"{status.job} {status.state.value}: {status.note}; see {status.job.log}")


def confirm(question: Question, runs: Path) -> ledger.Line:
    """Returns the answer, which is appended to the ledger: of all runs of both arms on the question's seeds.

    Raises:
        UserError: the runs cannot be compared.
    """
    parents, ours, failed = _collect(question, runs)
    pairs, difference, documents = paired_seeds(parents, ours), None, {}
    if failed:
        answer, reason = ledger.NOT_CONFIRMED, failed
    else:
        require(len(pairs) > 1, f"{question.promoted.name}: two seeds of both arms are needed, not {len(pairs)}")
        flags, _ = check_comparable(parents, ours)
        names = f"{question.promoted.name} cannot be compared with {question.parent.name}"
        require(not flags, f"{names}: {'; '.join(flags)}")
        difference, documents = _measure(question, pairs, runs)
        answer, reason = _decide(difference, parents, question, documents)
    line = {
        "kind": ledger.CONFIRMATION,
        "parent": question.parent.name,
        "variant": question.variant,
        "name": question.promoted.name,
        "answer": answer,
        "reason": reason,
        "difference": ledger.describe_difference(difference, LEVEL) if difference else None,
        "level": LEVEL,
        "seeds": [run.seed for run, _ in pairs],
        "locked_documents": documents,
        "device_hours": sum(run.device_hours for run in parents),
        "evidence": question.promoted.lineage.evidence,
    }
    ledger.append(runs, line)
    return line


def _collect(question: Question, runs: Path) -> tuple[list[FinishedRun], list[FinishedRun], str]:
    """Returns the finished runs of the parent and of the promoted variant, and how the latter failed; '' if it did not.

    Raises:
        UserError: a run cannot be read.
    """
    arms, diverged = [], []
    for one in (question.parent, question.promoted):
        read = read_runs(runs, one.name)
        require(not read.unreadable, "; ".join(read.unreadable))
        arms.append([run for run in read.finished if run.seed in question.seeds])
        diverged.append({seed_of(path) for path in read.folders if has_diverged(path)}.intersection(question.seeds))
    alone = ", ".join(map(str, sorted(diverged[1] - diverged[0])))
    return arms[0], arms[1], f"it diverged on seed {alone}, where {question.parent.name} did not" if alone else ""


def _decide(
    difference: Difference, parents: Sequence[FinishedRun], question: Question, documents: Mapping[str, int]
) -> tuple[str, str]:
    """Returns the answer and why."""
    low, high = difference.interval(1 - LEVEL)
    measured = f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    limit, what = 0.0, "better"
    if question.promoted.promoted and question.promoted.promoted.verdict.startswith(Word.CHEAPER.value):
        limit, what = margin_of_tokens(parents, Rule.equal_tokens).bits_per_byte, "equal, or better"
    where = "by fresh seeds alone, since no validation documents are left that no verdict has read"
    if documents:
        where = f"on {sum(documents.values()):,} documents that no verdict has read"
    if question.promoted.tuned:
        where += f"; {question.parent.name} at its own learning rate"
    if high < limit:
        return ledger.CONFIRMED, f"{measured} is {what}, {where}"
    return ledger.NOT_CONFIRMED, f"{measured} is not surely {what}, {where}"


def _measure(
    question: Question, pairs: Sequence[tuple[FinishedRun, FinishedRun]], runs: Path
) -> tuple[Difference, dict[str, int]]:
    """Returns the difference over pairs of runs (parent, promoted), and the number of locked documents by corpus.

    Where there are none, the difference is that of the documents that verdicts have read, and there is no number.
    """
    theirs, ours = [parent for parent, _ in pairs], [promoted for _, promoted in pairs]
    prior = remember_noise(runs / question.parent.name / NOISE, noise_floor(theirs), theirs[0]).prior(
        question.variant, len(pairs)
    )
    sets, other_sets = (_locked_sets(arm[0], question) for arm in (theirs, ours))
    documents = {}
    if sets and _are_same(sets, other_sets):
        documents = {one.name: len(one.documents) for one in sets}
        theirs, ours = _validated_on([(theirs, sets), (ours, other_sets)])
    corpora = [name for name in theirs[0].validation if name in ours[0].validation]
    (parent_SI, bytes_I, strata_I), (bits_SI, _, _) = stack(theirs, corpora), stack(ours, corpora)
    sources_I = stack_sources(theirs[0], corpora)
    return crossed_difference(bits_SI - parent_SI, bytes_I, sources_I, strata_I=strata_I, prior=prior), documents


def _locked_sets(run: FinishedRun, question: Question) -> list[ValidationSet]:
    """Returns the validation documents of each corpus that are set aside for a generation; nothing where one has none.

    Raises:
        UserError: the corpora or their tokenizer are no longer those of the run.
    """
    line = (question.promoted, *question.promoted.ancestors)
    sizes = [one.experiment.evaluation.validation_bytes for one in line]
    if not all(sizes):  # A verdict reads all documents.
        return []
    experiment = with_tokenizer(run.experiment, run.workdir) if run.experiment.init_from else run.experiment
    documents, tokenizer = open_corpora(experiment)
    corpora = prepare_corpora(experiment, documents, tokenizer, ())
    now = {f"corpus.{i}": each.validation.manifest.corpus_digest for i, each in enumerate(corpora)}
    check_same(
        f"run folder {run.workdir} belongs",
        now | {"tokenizer": tokenizer.digest},
        {name: run.record["digests"].get(name) for name in (*now, "tokenizer")},
    )
    found = [
        _window(each.validation, experiment, each.name, question.promoted.generation + 1, max(sizes))
        for each in corpora
    ]
    independent = [len(np.unique(one.shards.sources[one.documents])) for one in found]
    return found if min(independent) >= _FEWEST_DOCUMENTS else []


def _window(shards: Shards, experiment: Experiment, name: str, number: int, size: int) -> ValidationSet:
    """Returns the documents behind those of `number` windows of so many bytes, the first of which validates runs.

    Without pieces of a file of which another piece lies before them.
    """
    packing = experiment.packing
    everything = dataclasses.replace(experiment.evaluation, validation_bytes=0)
    order = select_validation(shards, everything, packing, name).documents
    ends = np.cumsum(shards.text_bytes[order])
    begin, end = np.searchsorted(ends, [number * size, (number + 1) * size]) + 1
    chosen = order[begin:end]
    chosen = chosen[~np.isin(shards.sources[chosen], shards.sources[order[:begin]])]
    plan = plan_rows(shards.tokens, dataclasses.replace(packing, method="best_fit"), seed=0, documents=chosen)
    return ValidationSet(name, shards, chosen, plan)


def _are_same(ours: Sequence[ValidationSet], theirs: Sequence[ValidationSet]) -> bool:
    """Returns whether two arms are validated on the same text."""

    def describe(sets: Sequence[ValidationSet]) -> list:
        return [
            (
                one.name,
                one.shards.manifest.source_digest,
                one.documents.tolist(),
                one.shards.text_bytes[one.documents].tolist(),
            )
            for one in sets
        ]

    return describe(ours) == describe(theirs)


@fixed_options()
def _validated_on(arms: Sequence[tuple[Sequence[FinishedRun], Sequence[ValidationSet]]]) -> list[list[FinishedRun]]:
    """Returns the runs of each arm with the losses of other documents in place of their own validation."""
    result = []
    with progress_bar(desc="locked documents", total=sum(len(runs) for runs, _ in arms)) as bar:
        for runs, sets in arms:
            result.append([])
            for run in runs:
                state = load_trained(run.workdir, int(run.summary["steps"])).state
                losses = validate(state, sets, run.experiment.evaluation)
                found = {
                    one.name: Documents(
                        one.documents, one.nats / math.log(2), one.text_bytes, one.digest, {}, one.sources
                    )
                    for one in losses
                }
                result[-1].append(run._replace(validation=found))
                bar.update()
    return result
