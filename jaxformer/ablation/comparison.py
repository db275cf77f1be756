"""A variant beside its parent: the same seeds, the same batches, the same documents and items.

What decides is the difference of validation bits per byte, paired by seed and by document. Accuracies of small models
move more by chance than by what is compared; they stand guard, and the bits per byte of right answers inform.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparability import check_comparable, have_same_documents, shared_tasks
from jaxformer.ablation.cost import Cost, compare_costs, mean_worth
from jaxformer.ablation.finished_runs import FinishedRun, paired_seeds, stack
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.verdict import Measured, Rule, Verdict, Word, decide
from jaxformer.config import require
from jaxformer.statistics.paired_difference import Difference, crossed_difference
from jaxformer.statistics.significance import INTERIM_SEEDS, holm, mcnemar
from jaxformer.statistics.variance_prior import VariancePrior


class TaskDifference(NamedTuple):
    """A task's scores, variant minus parent."""

    metric: str
    """The accuracy to report."""
    parent: float
    variant: float
    """`parent` and `variant`: its mean."""
    accuracy: Difference
    gold_bits_per_byte: Difference
    margin: Difference | None
    """`accuracy`, `gold_bits_per_byte` and `margin`: their differences; no margin where items have one option."""
    p_value: float
    """P-value of the accuracy, adjusted for all tasks (Holm); by McNemar's exact test where there is one seed."""


class Comparison(NamedTuple):
    """All that is known of a variant beside its parent; what is not is NaN, None or empty."""

    parent: str
    variant: str
    verdict: Verdict
    """What is decided."""
    margin: float
    """Bits per byte within which they count as equal."""
    lineage: dict
    """Lineage of the variant, as its runs recorded it."""
    question: str = ""
    flags: tuple[str, ...] = ()
    """Why they cannot be compared."""
    notes: tuple[str, ...] = ()
    """What to keep in mind where they can."""
    seeds: tuple[int, ...] = ()
    """Seeds that both have; what follows is over these."""
    parent_bits: float = math.nan
    variant_bits: float = math.nan
    """`parent_bits` and `variant_bits`: mean validation bits per byte."""
    difference: Difference | None = None
    """Difference of them, which decides."""
    q_value: float = math.nan
    """Q-value of that difference, among all of a study."""
    corpora: Mapping[str, Difference] = {}
    """The difference for each corpus."""
    tasks: Mapping[str, TaskDifference] = {}
    """The differences of each task."""
    seed_variance: float = math.nan
    """Variance of one seed's difference, by these seeds alone."""
    noise: float = math.nan
    """Standard deviation of the parent's bits per byte over its seeds."""
    correlation: float = math.nan
    """Correlation of the two arms' bits per byte over seeds."""
    cost: Cost | None = None
    worth: float = math.nan
    """What the gain is worth in tokens: the parent needs so many times the variant's."""


def compare_runs(
    parents: Sequence[FinishedRun],
    variants: Sequence[FinishedRun],
    *,
    variant: str = "",
    rule: Rule | None = None,
    floor: NoiseFloor | None = None,
    failures: Mapping[int, str] | None = None,
    parent_failures: Mapping[int, str] | None = None,
    allow: Collection[str] = (),
) -> Comparison:
    """Returns the comparison of a variant's runs with its parent's.

    Args:
        variant: its name, where there may be no finished run that records it.
        floor: the parent's noise; that of its runs here if it is not given.
        failures: by seed, how runs of the variant failed; one is enough to revert it.
        parent_failures: by seed, how runs of the parent failed: noted, since no pair shows them.
        allow: kinds of differences that shall not keep runs from being compared, such as 'code' or 'versions'.

    Raises:
        UserError: there is no run of one of them.
    """
    require(bool(parents), "there is no finished run of the parent to compare with; train it first")
    rule, floor = rule or Rule(), floor or noise_floor(parents)
    margin = rule.margin or floor.standard_deviation
    parent = parents[0].record["experiment"]
    failed = "; ".join(_by_seed(failures))
    if not variants:
        verdict = Verdict(Word.REVERT, failed) if failed else Verdict(Word.NOT_COMPARED, "no run of it can be read")
        return Comparison(parent, variant, verdict, margin, {})
    name, lineage, question = (variants[0].record[key] for key in ("experiment", "lineage", "question"))
    flags, notes = check_comparable(parents, variants, allow=allow)
    for failure in _by_seed(parent_failures):
        notes = (*notes, f"the parent failed: {failure}; what the variant does there is not in the difference")
    pairs = paired_seeds(parents, variants)
    analysed = max((seeds for seeds in INTERIM_SEEDS if seeds <= len(pairs)), default=len(pairs))
    if analysed < len(pairs):
        notes = (*notes, f"{len(pairs) - analysed} more seeds than the last interim analysis takes wait for the next")
    if not pairs:
        flags = (*flags, f"seeds: {parent} and {name} share none; train both with the same --seed")
    if flags:
        verdict = Verdict(Word.NOT_COMPARED, "; ".join(flags))
        return Comparison(parent, name, verdict, margin, lineage, question, flags, notes)
    found = _compare_pairs(pairs[:analysed], floor.prior(name, analysed), rule)
    tasks = found["tasks"].items()
    findings = Measured(
        found["difference"],
        analysed,
        margin,
        found["cost"],
        found["worth"],
        worse_tasks=tuple(name for name, t in tasks if t.p_value <= rule.guard_alpha and t.accuracy.mean < 0),
        failures=failed,
        parent_seeds=len(parents),
    )
    known = {"lineage": lineage, "question": question, "notes": notes, "noise": floor.standard_deviation}
    return Comparison(parent, name, decide(findings, rule), margin, **known, **found)


def _by_seed(failures: Mapping[int, str] | None) -> list[str]:
    return [f"seed {seed} {why}" for seed, why in sorted((failures or {}).items())]


def _compare_pairs(pairs: Sequence[tuple[FinishedRun, FinishedRun]], prior: VariancePrior | None, rule: Rule) -> dict:
    """Returns what pairs of runs (parent, variant) say, as fields of a `Comparison`."""
    ours, theirs = [variant for _, variant in pairs], [parent for parent, _ in pairs]
    corpora = [name for name in theirs[0].validation if name in ours[0].validation]
    bits_SI, bytes_I, strata_I = stack(ours, corpora)
    parent_SI, _, _ = stack(theirs, corpora)
    differences_SI = bits_SI - parent_SI
    bits_S, parent_S = bits_SI.sum(1) / bytes_I.sum(), parent_SI.sum(1) / bytes_I.sum()
    return {
        "seeds": tuple(run.seed for run in ours),
        "parent_bits": float(parent_S.mean()),
        "variant_bits": float(bits_S.mean()),
        "difference": crossed_difference(differences_SI, bytes_I, strata_I=strata_I, prior=prior),
        "corpora": {
            name: crossed_difference(differences_SI[:, strata_I == i], bytes_I[strata_I == i])
            for i, name in enumerate(corpora)
        },
        "tasks": compare_tasks(ours, theirs),
        "seed_variance": float(np.var(bits_S - parent_S, ddof=1)) if len(pairs) > 1 else math.nan,
        "correlation": float(np.corrcoef(bits_S, parent_S)[0, 1]) if len(pairs) > 2 else math.nan,
        "cost": compare_costs(ours, theirs, rule.alpha),
        "worth": mean_worth(ours, theirs),
    }


def compare_tasks(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> dict[str, TaskDifference]:
    """Returns the differences of each task, with accuracies' p-values adjusted for their number."""
    found = {}
    for name in shared_tasks([*theirs, *ours]):
        first = theirs[0].tasks[name]
        if len(set(first.groups.tolist())) < 2:  # One source shows nothing of how sources vary.
            continue
        variant, parent = ([run.tasks[name] for run in runs] for runs in (ours, theirs))

        def paired(score: str, variant=variant, parent=parent, groups=first.groups) -> Difference:
            pairs = zip(variant, parent, strict=True)
            values_SI = np.stack([getattr(one, score) - getattr(other, score) for one, other in pairs])
            return crossed_difference(values_SI, groups_I=groups)

        accuracy = paired("accuracy")
        p_value = accuracy.p_value
        if len(variant) == 1:
            only_ours = int((variant[0].accuracy > parent[0].accuracy).sum())
            only_theirs = int((variant[0].accuracy < parent[0].accuracy).sum())
            p_value = mcnemar(only_ours, only_theirs)
        has_margin = np.isfinite(first.margin).all()
        found[name] = TaskDifference(
            first.primary,
            float(np.mean([one.accuracy.mean() for one in parent])),
            float(np.mean([one.accuracy.mean() for one in variant])),
            accuracy,
            paired("gold_bits_per_byte"),
            paired("margin") if has_margin else None,
            p_value,
        )
    adjusted = holm(np.array([task.p_value for task in found.values()])) if found else []
    return {name: task._replace(p_value=float(p)) for (name, task), p in zip(found.items(), adjusted, strict=True)}


def interaction(
    merge: Sequence[FinishedRun], parents: Sequence[Sequence[FinishedRun]], ancestor: Sequence[FinishedRun]
) -> Difference | None:
    """Returns by how much the joint change exceeds the sum of its parts, bits per byte: 0 where gains add up.

    With two parents A and B of a common ancestor P: (AB - P) - (A - P) - (B - P), paired by seed and by document; None
    without a seed that all have, or with one alone.
    """
    arms = [{run.seed: run for run in runs} for runs in (merge, *parents, ancestor)]
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))
    if len(seeds) < 2:
        return None
    corpora = list(arms[-1][seeds[0]].validation)
    if not have_same_documents([arm[seed] for arm in arms[::-1] for seed in seeds], corpora):
        return None
    joint_SI, *parts_SI, base_SI = (stack([arm[seed] for seed in seeds], corpora)[0] for arm in arms)
    _, bytes_I, strata_I = stack([arms[0][seed] for seed in seeds], corpora)
    return crossed_difference(joint_SI - sum(parts_SI) + (len(parts_SI) - 1) * base_SI, bytes_I, strata_I=strata_I)
