"""Whether the gain of a promoted variant holds: tested once, on seeds and documents that no verdict has read.

A kept variant was chosen by its seeds and validation documents, and seems better on them than it is. So the new parent
and the one before are trained on the new parent's own seeds, which its next study reuses, each at the learning rate
found for it when they were compared. Both are validated on documents of the validation share that no verdict and no
other confirmation has read, as many as validate runs (`evaluation.validation_bytes`).
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation import ledger
from jaxformer.ablation.comparability import check_comparable
from jaxformer.ablation.envelope import run_at_own_rate
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
from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.outcome import NOISE, remember_noise
from jaxformer.ablation.promotion import evidence_of
from jaxformer.ablation.records import Record
from jaxformer.ablation.training_jobs import make_job
from jaxformer.ablation.verdict import Word
from jaxformer.config import require
from jaxformer.data.packing import plan_rows
from jaxformer.data.shards import Shards
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.validation import ValidationSet, select_validation, validate
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import promoted_variant
from jaxformer.experiment.resolution import with_overrides
from jaxformer.host.console import progress_bar
from jaxformer.jobs.launch import Job
from jaxformer.record import check_same
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.init_from import with_tokenizer
from jaxformer.run.inputs import open_corpora, prepare_corpora
from jaxformer.run.trained import load_trained
from jaxformer.statistics.paired_difference import Difference, crossed_difference

# Level of the single analysis: two-sided, so that an equal variant is confirmed in 2.5 %.
LEVEL = 0.05

# The fewest independent documents of a corpus that show how they vary.
_FEWEST_DOCUMENTS = 2


class Confirmation(NamedTuple):
    """A promoted variant, and the parent that it is compared with once more."""

    promoted: Resolved
    parent: Resolved
    """The parent before, at the learning rate found for it."""
    evidence: Record
    """The comparison that the variant was promoted by."""
    seeds: range

    @property
    def own_parent(self) -> Resolved:
        """The parent before, at its own learning rate."""
        return self.promoted.parents[0]


def find_answer(promoted: Resolved, runs: Path) -> ledger.Line | None:
    """Returns the ledger's answer for a promoted variant, found by its evidence under any name; None if there is none.

    Raises:
        UserError: it is not promoted, or it or an ancestor has changed since it was answered.
    """
    names = {"parent": promoted.parents[0].name, "variant": promoted_variant(promoted).name}
    lines, evidence = ledger.read_ledger(runs), promoted.lineage.evidence
    answer = ledger.last_of(lines, ledger.CONFIRMATION, **names, evidence=evidence)
    if answer:
        check_earlier_runs(runs, promoted)
    return answer


def plan_confirmation(promoted: Resolved, seeds: int, runs: Path) -> Confirmation:
    """Returns the confirmation of a promoted variant on so many seeds.

    Raises:
        UserError: it is not promoted, its evidence is not in the folder of runs, or its parent has changed.
    """
    evidence, parent = evidence_of(promoted, runs), promoted.parents[0]
    rate, _ = evidence.recommended_rates or (parent.experiment.optimizer.learning_rate, None)
    if rate != parent.experiment.optimizer.learning_rate:
        parent = with_overrides(parent, {RATE: repr(rate)})
        check_earlier_runs(runs, parent)
    return Confirmation(promoted, parent, evidence, range(promoted.first_seed, promoted.first_seed + seeds))


def confirmation_jobs(confirmation: Confirmation, runs: Path, seconds: Mapping[str, float] = {}) -> list[Job]:
    """Returns the runs of both arms, seed by seed. Args: seconds: as of `make_jobs`."""
    arms, jobs = ((confirmation.promoted, confirmation.promoted), (confirmation.own_parent, confirmation.parent)), []
    for seed, (own, one) in itertools.product(confirmation.seeds, arms):
        name = own.name if one is own else f"{own.name} at {one.experiment.optimizer.learning_rate:.3g}"
        jobs.append(make_job(one, seed, runs, seconds.get(own.name, math.nan), name=name))
    return jobs


def confirm(confirmation: Confirmation, runs: Path, *, allow: Collection[str] = ()) -> ledger.Line:
    """Returns the answer of all runs of both arms on the confirmation's seeds, and appends it to the ledger.

    Args:
        allow: as of `check_comparable`.

    Raises:
        UserError: the runs cannot be compared.
    """
    promoted, parent = confirmation.promoted, confirmation.own_parent
    parents, ours, failed = _collect(confirmation, runs)
    pairs, difference, locked, notes = paired_seeds(parents, ours), None, [], ()
    if failed:
        answer, reason = ledger.NOT_CONFIRMED, failed
    else:
        require(len(pairs) > 1, f"{promoted.name}: two seeds of both arms are needed, not {len(pairs)}")
        at_own_rate = [run_at_own_rate(run, parent.name, parent.experiment.optimizer.learning_rate) for run in parents]
        flags, notes = check_comparable(at_own_rate, ours, allow=allow)
        require(not flags, f"{promoted.name} cannot be compared with {parent.name}: {'; '.join(flags)}")
        difference, locked = _measure(confirmation, pairs, runs)
        answer, reason = _decide(confirmation, difference, locked)
    names = {"parent": parent.name, "variant": confirmation.evidence.variant}
    if before := ledger.last_of(ledger.read_ledger(runs), ledger.CONFIRMATION, **names):
        reason += f"; promoted by other evidence, it was {before['answer']} ({before['time']})"
    line = {
        "kind": ledger.CONFIRMATION,
        **names,
        "name": promoted.name,
        "answer": answer,
        "reason": reason,
        "difference": ledger.describe_difference(difference, LEVEL) if difference else None,
        "level": LEVEL,
        "notes": list(notes),
        "seeds": [run.seed for run, _ in pairs],
        "learning_rates": {
            "parent": confirmation.parent.experiment.optimizer.learning_rate,
            "variant": promoted.experiment.optimizer.learning_rate,
        },
        "locked": {one.name: _describe_locked(one) for one in locked},
        "device_hours": sum(run.device_hours for run in parents),
        "evidence": confirmation.evidence.digest,
    }
    ledger.append(runs, line)
    return line


def _collect(confirmation: Confirmation, runs: Path) -> tuple[list[FinishedRun], list[FinishedRun], str]:
    """Returns the finished runs of the parent and of the promoted variant, and how the latter failed, else ''.

    Raises:
        UserError: a run cannot be read.
    """
    arms, diverged = [], []
    for one in (confirmation.parent, confirmation.promoted):
        read = read_runs(runs, one.name)
        require(not read.unreadable, "; ".join(read.unreadable))
        arms.append([run for run in read.finished if run.seed in confirmation.seeds])
        diverged.append({seed_of(path) for path in read.folders if has_diverged(path)}.intersection(confirmation.seeds))
    alone = ", ".join(map(str, sorted(diverged[1] - diverged[0])))
    parent = confirmation.own_parent.name
    return arms[0], arms[1], f"it diverged on seed {alone}, where {parent} did not" if alone else ""


def _decide(confirmation: Confirmation, difference: Difference, locked: Sequence[ValidationSet]) -> tuple[str, str]:
    """Returns the answer and its reason."""
    low, high = difference.interval(1 - LEVEL)
    measured = f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    limit, what = 0.0, "better"
    if confirmation.evidence.word in (Word.CHEAPER, Word.EQUIVALENT):
        limit, what = confirmation.evidence.margin, "equal, or better"
    where = "on fresh seeds alone, since verdicts have read all validation documents"
    if locked:
        where = f"on {sum(len(one.documents) for one in locked):,} documents that no verdict has read"
    if confirmation.evidence.recommended_rates:
        rate = confirmation.parent.experiment.optimizer.learning_rate
        where += f"; {confirmation.own_parent.name} at {rate:.3g}, the learning rate found for it"
    if high < limit:
        return ledger.CONFIRMED, f"{measured} is {what}, {where}"
    return ledger.NOT_CONFIRMED, f"{measured} is not surely {what}, {where}"


def _measure(
    confirmation: Confirmation, pairs: Sequence[tuple[FinishedRun, FinishedRun]], runs: Path
) -> tuple[Difference, list[ValidationSet]]:
    """Returns the difference over pairs of runs (parent, promoted), and the documents that it is measured on.

    If verdicts have read all documents, it is measured on those that validate runs.
    """
    theirs, ours = zip(*pairs, strict=True)
    noise = remember_noise(runs / confirmation.parent.name / NOISE, noise_floor(theirs), theirs[0])
    prior = noise.prior(confirmation.evidence.variant, len(pairs))
    sets, other_sets = (_locked_sets(arm[0], confirmation.promoted, runs) for arm in (theirs, ours))
    locked = sets if _texts(sets) == _texts(other_sets) else []
    if locked:
        theirs, ours = (_validated_on(arm, each) for arm, each in ((theirs, sets), (ours, other_sets)))
    corpora = [name for name in theirs[0].validation if name in ours[0].validation]
    (parent_SI, bytes_I, strata_I), (bits_SI, _, _) = stack(theirs, corpora), stack(ours, corpora)
    sources_I = stack_sources(theirs[0], corpora)
    return crossed_difference(bits_SI - parent_SI, bytes_I, sources_I, strata_I=strata_I, prior=prior), locked


def _locked_sets(run: FinishedRun, promoted: Resolved, runs: Path) -> list[ValidationSet]:
    """Returns documents of each corpus that neither a verdict nor a confirmation has read; none if a corpus has none.

    Raises:
        UserError: the corpora or their tokenizer have changed since the run.
    """
    sizes = [one.experiment.evaluation.validation_bytes for one in (promoted, *promoted.ancestors)]
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
    lines = [line for line in ledger.read_ledger(runs) if line["kind"] == ledger.CONFIRMATION]
    read = [each for line in lines for each in line.get("locked", {}).values()]
    found = [_locked_set(each.validation, experiment, each.name, max(sizes), read) for each in corpora]
    independent = [len(np.unique(one.shards.sources[one.documents])) for one in found]
    return found if min(independent) >= _FEWEST_DOCUMENTS else []


def _locked_set(
    shards: Shards, experiment: Experiment, name: str, size: int, read: Sequence[Mapping[str, Any]]
) -> ValidationSet:
    """Returns the first unread documents, in the order of validation, up to so many bytes.

    A piece of a file counts as read if another piece has been read.

    Args:
        size: bytes that validate runs, and that are returned; fewer if fewer are left.
        read: documents that confirmations have read, from the ledger.
    """
    packing, options = experiment.packing, experiment.evaluation
    order, validating = (
        select_validation(shards, dataclasses.replace(options, validation_bytes=each), packing, name).documents
        for each in (0, size)
    )
    ours = [one for one in read if one["data"] == shards.manifest.source_digest]
    if all(one.get("drawn_from") == _drawn_from(shards) for one in ours):
        lasts = np.isin(order, [validating[-1], *(one["last"] for one in ours)])
        known = order[: np.flatnonzero(lasts)[-1] + 1]
    else:  # In another order any of them may have been read.
        known = order
    left = order[~np.isin(shards.sources[order], shards.sources[known])]
    chosen = left[: np.searchsorted(np.cumsum(shards.text_bytes[left]), size) + 1]
    plan = plan_rows(shards.tokens, dataclasses.replace(packing, method="best_fit"), seed=0, documents=chosen)
    return ValidationSet(name, shards, chosen, plan)


def _drawn_from(shards: Shards) -> int:
    """Returns the number of documents from which the order of validation is drawn; 0 if it is the reading order."""
    return 0 if shards.manifest.budget else len(shards)


def _describe_locked(one: ValidationSet) -> dict[str, str | int]:
    """Returns the ledger's record of locked documents: the first and the last, in the order of validation."""
    first, last = one.documents[[0, -1]].tolist()
    return {
        "data": one.shards.manifest.source_digest,
        "drawn_from": _drawn_from(one.shards),
        "first": first,
        "last": last,
    }


def _texts(sets: Sequence[ValidationSet]) -> list[tuple]:
    """Returns a key that is equal for sets of the same text."""
    documents = [(one.documents.tolist(), one.shards.text_bytes[one.documents].tolist()) for one in sets]
    return [(one.name, one.shards.manifest.source_digest, each) for one, each in zip(sets, documents, strict=True)]


@fixed_options()
def _validated_on(runs: Sequence[FinishedRun], sets: Sequence[ValidationSet]) -> list[FinishedRun]:
    """Returns the runs of an arm with the losses of other documents in place of their own validation."""
    result = []
    with progress_bar(desc=f"locked documents, {runs[0].record['experiment']}", total=len(runs)) as bar:
        for run in runs:
            state = load_trained(run.workdir, int(run.summary["steps"])).state
            losses = validate(state, sets, run.experiment.evaluation)
            bits = {one.name: one.nats / math.log(2) for one in losses}
            found = {
                one.name: Documents(one.documents, bits[one.name], one.text_bytes, one.digest, {}, one.sources)
                for one in losses
            }
            result.append(run._replace(validation=found))
            bar.update()
    return result
