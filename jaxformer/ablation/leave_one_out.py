"""What the gain of a promoted experiment is made of: each change that it keeps, left out of it on its own seeds."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.comparison import Comparison, contrast
from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import Kept, kept_changes
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import WITHOUT
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json_or_empty
from jaxformer.host.paths import typed
from jaxformer.jobs.launch import Job
from jaxformer.statistics.paired_difference import Difference

STAYS, DROP = "STAYS", "DROP"


class Part(NamedTuple):
    """A change that an experiment keeps, and what it gives there; differences are with it minus without it."""

    name: str
    when_kept: Difference | None
    """When it was kept, on the parent of then: chosen for being large; None where no record of it is found."""
    now: Difference | None
    """In the final experiment; None where its removal was not compared."""
    seeds: int
    """Seeds of that."""
    decision: str
    """What becomes of it: `STAYS`, `DROP`, UNDECIDED or NOT COMPARED."""


class Composition(NamedTuple):
    """What the gain of an experiment is made of, bits per byte; negative is better."""

    name: str
    root: str
    """Experiment from which the line of kept changes begins."""
    parts: tuple[Part, ...]
    """In the order in which they were kept."""
    total: Difference | None
    """The experiment minus its root, on the seeds that both have."""
    overlap: Difference | None
    """Total minus the sum of the parts now: what no part would take along alone; None unless two seeds have all."""
    why_not: str
    """Why the total is not known; '' where it is."""


def leave_one_out(name: str, seeds: int, parent_seeds: int) -> Study:
    """Returns the study that leaves each change out of a promoted experiment; a line names what cannot be left out.

    Raises:
        UserError: it is not promoted, keeps one change alone, or none of them can be left out.
    """
    root, kept = kept_changes(resolve(name))
    require(len(kept) > 1, f"{name} keeps one change, {kept[0].name}, and is {root.name} without it: compare the two")
    variants, refused = [], []
    for each in kept:
        try:
            variants.append(resolve(f"{name}{WITHOUT}{each.name}").name)
        except UserError as error:
            refused.append(str(error))
    require(bool(variants), "; ".join(refused))
    for line in refused:
        print_notice(f"not left out: {line}")
    return Study(parent=name, variants=tuple(variants), seeds=seeds, parent_seeds=parent_seeds)


def root_jobs(jobs: Sequence[Job], study: Study, runs: Path) -> list[Job]:
    """Returns the runs of the root on the seeds of a study that leaves out, from which the total gain is known.

    Args:
        jobs: of the study.
    """
    root, _ = kept_changes(resolve(study.parent))
    found = []
    for job in (job for job in jobs if job.name == study.variants[0]):
        workdir = runs / root.name / f"seed_{job.seed}"
        arguments = (f"--experiment={root.name}", f"--seed={job.seed}", f"--workdir={typed(workdir)}")
        steps, devices = root.experiment.training.steps, root.experiment.mesh.devices
        found.append(Job(root.name, job.seed, arguments, workdir, steps, job.estimated_seconds, job.needs, devices))
    return found


def composition(
    experiments: Sequence[Resolved],
    comparisons: Sequence[Comparison],
    finished: Mapping[str, Sequence[FinishedRun]],
    runs: Path,
) -> Composition | None:
    """Returns what the gain of a study's parent is made of; None where the study leaves nothing out.

    Args:
        experiments: the parent, and what it is without each change.
        comparisons: of the latter with the former.
        finished: runs, by name.
        runs: the folder of all run folders.
    """
    whole, *others = experiments
    without = {one.without: one.name for one in others}
    if "" in without or not without:
        return None
    root, kept = kept_changes(whole)
    compared = {one.variant: one for one in comparisons}
    parts = tuple(_part(each, compared.get(without.get(each.name, "")), runs) for each in kept)
    arms = [finished[whole.name], read_runs(runs, root.name).finished]
    total, why_not = _total(arms, whole, root)
    overlap = None
    if total and all(part.now for part in parts):
        # (whole - root) - sum over parts of (whole - without it)
        arms += [finished[without[part.name]] for part in parts]
        overlap = contrast(arms, [1 - len(parts), -1, *(1 for _ in parts)])
    return Composition(whole.name, root.name, parts, total, overlap, why_not)


def _total(arms: Sequence[Sequence[FinishedRun]], whole: Resolved, root: Resolved) -> tuple[Difference | None, str]:
    """Returns an experiment minus its root, from the runs of both; and why it is not known."""
    seeds = set.intersection(*({run.seed for run in arm} for arm in arms))
    starts = [start for arm in arms for run in arm if run.seed in seeds for start in run.record["starts"]]
    if len({(start["code"], str(start["versions"]), start["device"]) for start in starts}) > 1:
        return None, f"runs of {whole.name} and {root.name} were made with other code, versions or devices"
    why_not = (
        f"it takes two seeds that {whole.name} and {root.name} both have, on the same validation documents; "
        f"`jaxformer ablate --leave_one_out={whole.name}` trains them"
    )
    total = contrast(arms, [1, -1])
    return total, "" if total else why_not


def _part(kept: Kept, removal: Comparison | None, runs: Path) -> Part:
    """Args: removal: the comparison of the experiment without the change, with the experiment."""
    word = removal.verdict.word if removal else Word.NOT_COMPARED
    decision = {Word.REVERT: STAYS, Word.UNDECIDED: word.value, Word.NOT_COMPARED: word.value}.get(word, DROP)
    now, seeds = None, 0
    if removal and removal.difference:
        now, seeds = removal.difference._replace(mean=-removal.difference.mean), len(removal.seeds)
    return Part(kept.name, _when_kept(kept, runs), now, seeds, decision)


def _when_kept(kept: Kept, runs: Path) -> Difference | None:
    """Returns the difference that a change was kept by: that of the evidence, else of the comparison of most seeds."""
    found, folder, (parent, *_) = [], runs / kept.judged.name, kept.judged.parents
    for path in sorted([*folder.glob("comparison_*.json"), *folder.glob("evidence_*.json")]):
        record = read_json_or_empty(path)
        if record.get("parent") == parent.name and isinstance(record.get("difference"), dict):
            is_evidence = hashlib.sha256(path.read_bytes()).hexdigest() == kept.promoted.lineage.evidence
            found.append((is_evidence, len(record["seeds"]), str(path), record["difference"]))
    return _difference(max(found)[-1]) if found else None


def _difference(record: Mapping) -> Difference:
    """Returns a difference from its record, with what its standard error is made of."""
    mean, *variances = (
        math.inf if record[name] is None else float(record[name])
        for name in ("mean", "seed_variance", "seed_degrees_of_freedom", "item_variance", "item_degrees_of_freedom")
    )
    return Difference(mean, *variances, seeds_counted=bool(record["seeds_counted"]))
