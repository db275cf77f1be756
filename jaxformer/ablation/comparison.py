"""A variant compared with its parent: on the same seeds, batches, documents and items.

The difference of validation bits per byte decides, paired by seed and by document. Accuracies of small models change
more by chance than by the variant: they only guard against harm, and the bits per byte of right answers inform.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.clock import Clock
from jaxformer.ablation.comparability import check_comparable, have_same_documents, shared_tasks
from jaxformer.ablation.cost import Cost, compare_costs
from jaxformer.ablation.finished_runs import FinishedRun, paired_seeds, stack, stack_sources
from jaxformer.ablation.margin import margin_of_tokens, worth_in_tokens
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.verdict import Measured, Rule, Verdict, Word, decide, depends_on_time
from jaxformer.config import require
from jaxformer.statistics.paired_difference import Difference, crossed_difference
from jaxformer.statistics.significance import INTERIM_SEEDS, holm, mcnemar, next_analysis
from jaxformer.statistics.variance_prior import VariancePrior

_UNTIMED = (
    "the time per token was not measured, and does not count here; `jaxformer ablate` measures it where the runs "
    "were trained"
)


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
    """`accuracy`, `gold_bits_per_byte` and `margin`: their differences; no margin if items have one option."""
    p_value: float
    """P-value of the accuracy, adjusted for all tasks (Holm); by McNemar's exact test with one seed."""

    def is_worse(self, alpha: float) -> bool:
        """Returns whether the variant is worse at it, at a level."""
        return self.p_value <= alpha and self.accuracy.mean < 0


class BestRate(NamedTuple):
    """The learning rates of an experiment compared at its best one."""

    own: float
    """The experiment's own."""
    compared: float
    """The rate of the lowest mean, to two digits, at which it is compared."""
    recommended: float
    """The rate of the lowest mean plus one standard deviation over seeds, to two digits: what most runs reach."""
    tried: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    """`tried` and `bits_per_byte`: the three rates around it, and their means; infinite if one diverged."""
    excess: float
    excess_error: float
    """`excess` and `excess_error`: what its own rate costs, bits per byte; NaN if unknown."""


class Comparison(NamedTuple):
    """All that is known about a variant compared with its parent; unknown values are NaN, None or empty."""

    parent: str
    variant: str
    verdict: Verdict
    """The decision."""
    margin: float
    """Bits per byte within which they count as equal."""
    lineage: dict
    """Lineage of the variant, as its runs recorded it."""
    question: str = ""
    flags: tuple[str, ...] = ()
    """Reasons why they cannot be compared."""
    notes: tuple[str, ...] = ()
    """Reservations if they can."""
    seeds: tuple[int, ...] = ()
    """Seeds that both have; the following fields are over these."""
    parent_bits: float = math.nan
    variant_bits: float = math.nan
    """`parent_bits` and `variant_bits`: mean validation bits per byte."""
    difference: Difference | None = None
    """Their difference, which decides."""
    q_value: float = math.nan
    """Q-value of an improvement, over all questions about the parent."""
    until_next: tuple[int | None, float] = (None, 0.0)
    """More seeds, and their device hours, to the next interim analysis; None after the last."""
    corpora: Mapping[str, Difference] = {}
    """The difference for each corpus."""
    tasks: Mapping[str, TaskDifference] = {}
    """The differences of each task."""
    seed_variance: float = math.nan
    """Variance of one seed's difference, from these seeds alone."""
    noise: float = math.nan
    """Standard deviation of the parent's bits per byte over its seeds."""
    pairing: float = math.nan
    """Standard deviation of a seed's paired difference, divided by that of two runs with different seeds."""
    cost: Cost | None = None
    worth: float = math.nan
    """Worth of the gain in tokens: the parent needs so many times the variant's, by the slope of its curve."""
    to_time: tuple[str, str] | None = None
    """Run folders (parent, variant) whose unmeasured time per token could change the verdict; else None."""
    best_rates: tuple[BestRate, BestRate] | None = None
    """Of the parent and of the variant, if each is compared at its best; None if both have their own."""


def compare_runs(
    parents: Sequence[FinishedRun],
    variants: Sequence[FinishedRun],
    *,
    variant: str = "",
    rule: Rule | None = None,
    floor: NoiseFloor | None = None,
    failures: Mapping[int, str] | None = None,
    parent_failures: Mapping[int, str] | None = None,
    clock: Clock | None = None,
    allow: Collection[str] = (),
    leaves_out: bool = False,
    runs_per_seed: int = 1,
    further_variance: float = 0.0,
) -> Comparison:
    """Returns the comparison of a variant's runs with its parent's.

    Args:
        variant: its name, in case no finished run records it.
        floor: the parent's seed noise; by default from its runs here.
        failures: by seed, how runs of the variant failed; one is enough to revert it, if the parent's did not fail.
        parent_failures: by seed, how runs of the parent failed: noted, since no pair shows them.
        clock: the ratio of their times per token, if measured.
        allow: kinds of differences that do not prevent a comparison, such as 'code' or 'versions'.
        leaves_out: whether the variant leaves out a change that the parent keeps.
        runs_per_seed: runs of each arm for a further seed.
        further_variance: of the difference, (bits per byte)^2, from neither seeds nor documents.

    Raises:
        UserError: one of them has no run.
    """
    require(bool(parents), "there is no finished run of the parent to compare with; train it first")
    rule, floor, parent = rule or Rule(), floor or noise_floor(parents), parents[0].record["experiment"]
    margin = rule.margin or margin_of_tokens(parents, rule.equal_tokens).bits_per_byte
    failed, failure_notes = _describe_failures(failures or {}, parent_failures or {})
    if not variants:
        verdict = Verdict(Word.NOT_COMPARED, "; ".join(("no run of it can be read", *failure_notes)))
        return Comparison(parent, variant, Verdict(Word.REVERT, failed) if failed else verdict, margin, {})
    name, lineage, question = (variants[0].record[key] for key in ("experiment", "lineage", "question"))
    flags, notes = check_comparable(parents, variants, allow=allow)
    pairs = paired_seeds(parents, variants)
    analysed = max((seeds for seeds in INTERIM_SEEDS if seeds <= len(pairs)), default=len(pairs))
    notes = (*notes, *failure_notes, *_describe_seeds_left(len(pairs), analysed))
    if not pairs:
        flags = (*flags, f"seeds: {parent} and {name} share none; train both with the same --seed")
    if flags:
        verdict = Verdict(Word.NOT_COMPARED, "; ".join(flags))
        return Comparison(parent, name, verdict, margin, lineage, question, flags, notes)
    prior = floor.prior(name, analysed)
    found = _compare_pairs(pairs[:analysed], parents, prior, clock, further_variance)
    worse_tasks = tuple(name for name, task in found["tasks"].items() if task.is_worse(rule.guard_alpha))
    known = found["difference"], analysed, margin, found["cost"], found["worth"], prior, worse_tasks, failed
    findings = Measured(*known, len(parents), runs_per_seed, leaves_out)
    to_time = None
    if clock is None and depends_on_time(findings, rule):
        notes, to_time = (*notes, _UNTIMED), _folders(pairs[0])
    found |= {"lineage": lineage, "question": question, "notes": notes, "noise": floor.standard_deviation}
    found |= {"until_next": findings.until_next(), "to_time": to_time}
    return Comparison(parent, name, decide(findings, rule), margin, **found)


def _folders(pair: tuple[FinishedRun, FinishedRun]) -> tuple[str, str]:
    return str(pair[0].workdir), str(pair[1].workdir)


def _describe_failures(failures: Mapping[int, str], parent_failures: Mapping[int, str]) -> tuple[str, list[str]]:
    """Returns how the variant failed where its parent did not, and notes on seeds where the parent failed."""
    failed = "; ".join(f"seed {seed} {why}" for seed, why in sorted(failures.items()) if seed not in parent_failures)
    notes = []
    for seed, why in sorted(parent_failures.items()):
        if seed in failures:
            both = f"seed {seed} failed in both: the parent {why}; the variant {failures[seed]}"
            notes.append(f"{both}; this decides nothing")
        else:
            notes.append(f"the parent failed: seed {seed} {why}; the difference leaves this seed out")
    return failed, notes


def _describe_seeds_left(seeds: int, analysed: int) -> list[str]:
    """Returns a note if there are more seeds than the interim analysis takes."""
    later = next_analysis(analysed)
    use = f", left for that after {later}" if later else ", the last, left out"
    number = f"{seeds - analysed} more seed{'s' * (seeds - analysed > 1)}"
    return [f"{number} than the interim analysis after {analysed} takes{use}"] if analysed < seeds else []


def _compare_pairs(
    pairs: Sequence[tuple[FinishedRun, FinishedRun]],
    parents: Sequence[FinishedRun],
    prior: VariancePrior | None,
    clock: Clock | None,
    further_variance: float,
) -> dict:
    """Returns what pairs of runs (parent, variant), and all of the parent's, show, as fields of a `Comparison`."""
    ours, theirs = [variant for _, variant in pairs], [parent for parent, _ in pairs]
    corpora = [name for name in theirs[0].validation if name in ours[0].validation]
    bits_SI, bytes_I, strata_I = stack(ours, corpora)
    parent_SI, _, _ = stack(theirs, corpora)
    differences_SI, sources_I = bits_SI - parent_SI, stack_sources(theirs[0], corpora)
    bits_S, parent_S = bits_SI.sum(1) / bytes_I.sum(), parent_SI.sum(1) / bytes_I.sum()
    difference = crossed_difference(differences_SI, bytes_I, sources_I, strata_I=strata_I, prior=prior)
    token_ratio = ours[0].summary["tokens"] / theirs[0].summary["tokens"]
    return {
        "seeds": tuple(run.seed for run in ours),
        "parent_bits": float(parent_S.mean()),
        "variant_bits": float(bits_S.mean()),
        # With the documents' part, which further seeds do not reduce either.
        "difference": difference._replace(item_variance=difference.item_variance + further_variance),
        "corpora": {
            name: crossed_difference(differences_SI[:, strata_I == i], bytes_I[strata_I == i], sources_I[strata_I == i])
            for i, name in enumerate(corpora)
        },
        "tasks": compare_tasks(ours, theirs),
        "seed_variance": float(np.var(bits_S - parent_S, ddof=1)) if len(pairs) > 1 else math.nan,
        "pairing": _pairing(bits_S, parent_S),
        "cost": compare_costs(ours, theirs, clock),
        "worth": worth_in_tokens(difference.mean, parents, token_ratio),
    }


def _pairing(bits_S: np.ndarray, parent_S: np.ndarray) -> float:
    unpaired = math.hypot(*(float(np.std(arm_S, ddof=1)) for arm_S in (bits_S, parent_S))) if len(bits_S) > 2 else 0.0
    return float(np.std(bits_S - parent_S, ddof=1)) / unpaired if unpaired else math.nan


def compare_tasks(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> dict[str, TaskDifference]:
    """Returns the differences of each task, with accuracies' p-values adjusted for their number."""
    found = {}
    for name in shared_tasks([*theirs, *ours]):
        first = theirs[0].tasks[name]
        if len(set(first.groups.tolist())) < 2:  # One source does not show how sources vary.
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
    """Returns by how much the joint change exceeds the sum of its parts, bits per byte: 0 if gains add up.

    With two parents A and B of a common ancestor P: (AB - P) - (A - P) - (B - P), paired by seed and by document; None
    unless all share two seeds.
    """
    return contrast([merge, *parents, ancestor], [1, *(-1 for _ in parents), len(parents) - 1])


def contrast(arms: Sequence[Sequence[FinishedRun]], factors: Sequence[float]) -> Difference | None:
    """Returns the sum of experiments' bits per byte times factors that sum to 0, paired by seed and by document.

    Its error accounts for shared seeds and documents. None if they share fewer than two seeds, or were validated on
    different documents.
    """
    by_seed = [{run.seed: run for run in arm} for arm in arms]
    seeds = sorted(set.intersection(*(set(arm) for arm in by_seed)))
    if len(seeds) < 2:
        return None
    corpora = list(by_seed[-1][seeds[0]].validation)
    if not have_same_documents([arm[seed] for arm in by_seed[::-1] for seed in seeds], corpora):
        return None
    stacked = [stack([arm[seed] for seed in seeds], corpora) for arm in by_seed]
    _, bytes_I, strata_I = stacked[0]
    contrast_SI = np.tensordot(factors, np.stack([bits_SI for bits_SI, _, _ in stacked]), 1)
    sources_I = stack_sources(by_seed[0][seeds[0]], corpora)
    return crossed_difference(contrast_SI, bytes_I, sources_I, strata_I=strata_I)
