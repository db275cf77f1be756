"""The contributions to a promoted experiment's gain: each change that it keeps is left out, on its own seeds."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.comparability import check_comparable
from jaxformer.ablation.comparison import Comparison, contrast
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.ablation.records import find_evidence, read_records
from jaxformer.ablation.study import Study, root_of_removals
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import science
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import Kept, kept_changes
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import WITHOUT
from jaxformer.host.console import print_notice
from jaxformer.statistics.paired_difference import Difference

STAYS, DROP = "STAYS", "DROP"


class Part(NamedTuple):
    """A change that an experiment keeps, and its gain there; differences are with it minus without it."""

    name: str
    when_kept: Difference | None
    """When it was kept, on the parent at that time: selected for being large; None without a record."""
    now: Difference | None
    """In the final experiment; None if its removal was not compared."""
    seeds: int
    """Seeds of that."""
    decision: str
    """The decision on it: `STAYS`, `DROP`, UNDECIDED or NOT COMPARED."""


class Composition(NamedTuple):
    """The contributions to the gain of an experiment, bits per byte; negative is better."""

    name: str
    root: str
    """Experiment from which the line of kept changes begins."""
    parts: tuple[Part, ...]
    """In the order in which they were kept."""
    total: Difference | None
    """The experiment minus its root, on the seeds that both have."""
    overlap: Difference | None
    """Total minus the sum of the parts now: gain that no single part accounts for; None unless two seeds have all."""
    why_not: str
    """Why the total is unknown; '' if it is known."""


def leave_one_out(name: str, seeds: int, parent_seeds: int) -> Study:
    """Returns the study that leaves each change out of a promoted experiment; prints those that cannot be left out.

    Raises:
        UserError: it is not promoted, keeps only one change, or none of them can be left out.
    """
    root, kept = kept_changes(resolve(name))
    require(len(kept) > 1, f"{name} keeps only one change, {kept[0].name}: compare it with {root.name}")
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


def composition(
    experiments: Sequence[Resolved],
    comparisons: Sequence[Comparison],
    finished: Mapping[str, Sequence[FinishedRun]],
    runs: Path,
    allow: Collection[str] = (),
) -> Composition | None:
    """Returns the contributions to the gain of a study's parent; None if the study leaves nothing out.

    Args:
        experiments: the parent, and the parent without each change.
        comparisons: of the latter with the former.
        finished: runs by name, including the root's.
        runs: the folder of all run folders.
        allow: as of `check_comparable`.
    """
    whole, *others = experiments
    if (root := root_of_removals(experiments)) is None:
        return None
    without = {one.without: one.name for one in others}
    compared = {one.variant: one for one in comparisons}
    parts = tuple(_part(each, compared.get(without.get(each.name, "")), runs) for each in kept_changes(whole)[1])
    arms = [finished[whole.name], finished[root.name]]
    total, why_not = _total(arms, whole, root, allow)
    overlap = None
    if total and all(part.now for part in parts):
        # (whole - root) - sum over parts of (whole - without it)
        arms += [finished[without[part.name]] for part in parts]
        overlap = contrast(arms, [1 - len(parts), -1, *(1 for _ in parts)])
    return Composition(whole.name, root.name, parts, total, overlap, why_not)


def _total(
    arms: Sequence[Sequence[FinishedRun]], whole: Resolved, root: Resolved, allow: Collection[str]
) -> tuple[Difference | None, str]:
    """Returns the difference of an experiment and its root, from the runs of both; and why it is unknown."""
    seeds = set.intersection(*({run.seed for run in arm} for arm in arms))
    wholes, roots = ([run for run in arm if run.seed in seeds] for arm in arms)
    names = f"{whole.name} and {root.name}"
    if seeds:
        ours, theirs = (json.loads(json.dumps(science(one.experiment))) for one in (whole, root))
        changed = {path: (theirs.get(path), ours.get(path)) for path in {*ours, *theirs}}
        changed = {path: pair for path, pair in changed.items() if pair[0] != pair[1]}
        if flags := check_comparable(roots, wholes, allow=allow, declared=changed)[0]:
            return None, f"{names} are not compared: {'; '.join(flags)}"
    total = contrast([wholes, roots], [1, -1])
    why_not = (
        f"{names} need two seeds in common, on the same validation documents; "
        f"`jaxformer ablate --leave_one_out={whole.name}` trains them"
    )
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
    """Returns the difference when a change was kept: from the evidence, else from the newest comparison."""
    folder, parent = runs / kept.judged.name, kept.judged.parents[0].name
    found = [find_evidence(folder, kept.promoted.lineage.evidence), *read_records(folder)[::-1]]
    return next((one.difference for one in found if one and one.parent == parent and one.difference), None)
