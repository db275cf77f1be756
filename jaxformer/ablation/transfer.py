"""A change compared at several sizes, and the prediction of its effect at a target size, trained there or not.

Axes: N size, L place along the compute.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxformer.ablation.comparability import have_same_documents
from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.envelope import tuned_rate
from jaxformer.ablation.finished_runs import paired_seeds, seed_folders, stack, stack_sources
from jaxformer.ablation.outcome import compare_study
from jaxformer.ablation.question_cost import hours_of_a_run
from jaxformer.ablation.sizes import distinct
from jaxformer.ablation.study import Study, mean_seconds
from jaxformer.ablation.study_runs import StudyRuns
from jaxformer.ablation.transfer_result import Proposal, SizeResult, TransferResult
from jaxformer.ablation.tuning import RUNS_AT_BEST, TUNING
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve_variant_of
from jaxformer.experiment.variant import JOIN, OF
from jaxformer.statistics.paired_difference import Difference, item_correlation
from jaxformer.statistics.transfer import (
    DOCUMENT_CORRELATION,
    Effect,
    Prediction,
    TransferVerdict,
    decide,
    error_covariance,
    predict_effect,
)
from jaxformer.statistics.transfer_design import (
    EXPECTED_DOCUMENTS,
    EXPECTED_EFFECT,
    SizeOption,
    cheapest_design,
    expected_deviation,
)

# Number of sizes that a design chooses from: all combinations of seeds are tried.
_MOST_OPTIONS = 5

# Points along the compute at which the law is drawn.
_PLACES = 60


def ask_transfer(
    variant: str,
    aim: Resolved,
    sizes: Sequence[Resolved],
    runs: Path,
    *,
    effect: float = math.nan,
    budget: float = math.inf,
    allow: Sequence[str] = (),
) -> TransferResult:
    """Returns what is known about a variant at a target, from all sizes with finished runs.

    Each size is judged as by `jaxformer report --parent=SIZE --variants=VARIANT`, but no verdict is recorded.

    Args:
        aim: the target.
        sizes: of it, as of `find_sizes`.
        effect: the smallest at the target that matters, bits per byte; NaN takes the margin of the largest size.
        budget: device hours to spend on further runs.
        allow: as of `judge_study`.

    Raises:
        UserError: the variant is not found, or does not change the target.
    """
    require(JOIN not in variant, f"{variant} joins several changes: name one alone")
    require(
        OF not in variant,
        f"{variant} is a change at one size: name it without the size, {variant.partition(OF)[0]}",
    )
    is_retuned = resolve_variant_of(aim, variant).is_retuned
    sizes = [size for size in sizes if _variant_of(size, variant)]
    judged = [_judge(size, variant, runs, allow) for size in sizes if _has_runs(runs, size, variant)]
    results = _without_doubles([_size_result(*one, runs) for one in judged])
    counted = [one for one in results if not one.why_not]
    margin = effect if math.isfinite(effect) or not counted else counted[-1].comparison.margin
    compute, prediction, law = training_flops(aim.experiment), None, None
    word, reason = TransferVerdict.UNKNOWN, "no size has a comparison with an error over seeds"
    if counted:
        prediction, law = _predict(counted, compute, margin)
        word, reason = decide(prediction)
    elif not results:
        reason = f"no size has finished runs of {variant} and of its parent, in the folder {runs}"
    found = TransferResult(
        variant=variant,
        target=aim.name,
        compute=compute,
        sizes=results,
        verdict=word,
        reason=reason,
        prediction=prediction,
        law=law,
        proposal=None,
        unread=tuple(line for _, found, _ in judged for line in found.unread),
        runs=runs,
    )
    if word is TransferVerdict.UNKNOWN:
        found = found._replace(
            proposal=_propose(found, sizes, aim, 2 * (RUNS_AT_BEST if is_retuned else 1), effect, budget)
        )
    return found


def _propose(
    found: TransferResult, sizes: Sequence[Resolved], aim: Resolved, runs_per_seed: int, effect: float, budget: float
) -> Proposal | None:
    """Returns the runs that would decide it; None if nothing can be predicted at the target.

    Without data, noise and effect are assumed, and hours are taken from the parent's runs.

    Args:
        runs_per_seed: of both arms together.
    """
    known = [one for one in found.counted if one.hours > 0 and one.difference and _own_noise(one.difference)[0] > 0]
    hours, assumed = _hours(known, sizes, found.runs, runs_per_seed), []
    why_not = f"--budget: no finished run of {found.target} or of a smaller size shows how long runs take"
    require(bool(hours) or math.isinf(budget), why_not)
    folders = {one.name: seed_folders(found.runs / one.name) for one in (*sizes, aim)}
    trained = {name: sum((each / "summary.json").exists() for each in ours) for name, ours in folders.items()}
    options = _options(known, sizes, aim, hours or {1.0: (runs_per_seed, 1.0)}, trained)
    if not known:
        first, option = options[0]
        assumed.append(f"a seed's difference scatters by {option.deviation:.4f} bits per byte at {first}")
    if math.isnan(effect) and found.prediction:
        effect = np.nanmax([abs(found.prediction.target.mean), found.prediction.margin])
    elif math.isnan(effect):
        effect = EXPECTED_EFFECT
        assumed.append(f"{effect} bits per byte matter (--effect)")
    if not effect > 0:
        return None
    designs = cheapest_design([option for _, option in options], effect, budget)
    return Proposal(options, float(effect), designs, budget, bool(hours), tuple(assumed))


def _variant_of(size: Resolved, variant: str) -> Resolved | None:
    """Returns the variant of a size; None if it does not change it, such as to the depth that the size has."""
    try:
        one = resolve_variant_of(size, variant)
    except UserError:
        return None
    return one if one.parents and one.parents[0].name == size.name else None


def _has_runs(runs: Path, size: Resolved, variant: str) -> bool:
    """Returns whether a size and its variant have finished runs, at any learning rate."""
    arms = [size.name, *([one.name] if (one := _variant_of(size, variant)) else [])]
    folders = [[*seed_folders(runs / name), *runs.glob(f"{name}~*/seed_*")] for name in arms]
    return len(arms) == 2 and all(any((each / "summary.json").exists() for each in ours) for ours in folders)


def _judge(size: Resolved, variant: str, runs: Path, allow: Sequence[str]) -> tuple[Resolved, StudyRuns, Comparison]:
    found, (comparison,), _ = compare_study(Study(parent=size.name, variants=(variant,)), runs, allow)
    return size, found, comparison


def _size_result(size: Resolved, study: StudyRuns, comparison: Comparison, runs: Path) -> SizeResult:
    (variant,), finished = study.experiments[1:], study.finished
    rate = size.experiment.optimizer.learning_rate
    if comparison.best_rates:
        is_tuned, rates = True, "best " + ", ".join(f"{one.compared:.2g}" for one in comparison.best_rates)
    else:
        is_tuned = math.isfinite(tuned_rate(runs / size.name / TUNING, rate)[1])
        rates = f"{'tuned' if is_tuned else 'untuned'} {rate:.2g}"
    arms = [finished[name] or [*study.tried.get(name, ())] for name in (size.name, variant.name)]
    hours = [float(np.mean([run.device_hours for run in arm])) if arm else math.nan for arm in arms]
    per_seed = RUNS_AT_BEST if comparison.best_rates else 1
    pairs = paired_seeds(finished[size.name], finished[variant.name]) if not comparison.best_rates else []
    found = SizeResult(
        size=size.name,
        variant=variant.name,
        compute=training_flops(size.experiment),
        comparison=comparison,
        rates=rates,
        is_tuned=is_tuned,
        hours=per_seed * sum(hours),
        parent_hours=hours[0],
        pairs=[(parent, one) for parent, one in pairs if one.seed in comparison.seeds],
    )
    is_one_seed = comparison.difference and not comparison.difference.seeds_counted
    why_not = "one seed does not show how seeds vary" if is_one_seed else comparison.verdict.reason
    return found if found.difference else found._replace(why_not=why_not)


def _without_doubles(results: Sequence[SizeResult]) -> list[SizeResult]:
    """Returns sizes, only one of which counts for each compute."""
    counted = [one for one in results if not one.why_not]
    kept = {one.size: one for one in distinct(counted, lambda one: (one.compute, len(one.comparison.seeds)))}
    found = []
    for one in results:
        if not one.why_not and one.size not in kept:
            other = min(kept.values(), key=lambda each: abs(math.log(each.compute / one.compute)))
            one = one._replace(why_not=f"{other.size} is as large, and counts for both")
        found.append(one)
    return found


def _predict(
    counted: Sequence[SizeResult], compute: float, margin: float
) -> tuple[Prediction, tuple[np.ndarray, Effect]]:
    differences = [one.difference for one in counted if one.difference]
    distances_N = np.array([math.log(one.compute / compute) for one in counted])
    means_N = np.array([one.mean for one in differences])
    items = [(one.item_variance, one.item_degrees_of_freedom) for one in differences]
    parts = *np.array([*map(_own_noise, differences)]).T, *np.array(items).T
    errors_NN = error_covariance(*parts, correlation=_document_correlation(counted))
    # Slightly inside, since the effect is known better at a size than next to it.
    between_L = np.linspace(min(distances_N.min(), 0.0) + 1e-9, max(distances_N.max(), 0.0) - 1e-9, _PLACES)
    at_L = np.concatenate([[distances_N[0], distances_N[-1], 0.0], between_L])
    effect = predict_effect(means_N, errors_NN, distances_N, at_L)
    smallest, largest, target = (Effect._make(float(values[i]) for values in effect) for i in range(3))
    law = compute * np.exp(between_L), Effect._make(values[3:] for values in effect)
    return Prediction(tuple(distances_N.tolist()), smallest, largest, target, margin), law


def _own_noise(found: Difference) -> tuple[float, float]:
    """Returns the variance over seeds, and its degrees of freedom, from one size alone."""
    return found.own or (found.seed_variance, found.seed_degrees_of_freedom)


def _document_correlation(counted: Sequence[SizeResult]) -> float:
    """Returns the correlation of document effects on the difference between sizes validated on the same documents."""
    arms = [one.pairs for one in counted if one.pairs]
    firsts = [run for pairs in arms for run in pairs[0]]
    corpora = [name for name in firsts[0].validation if all(name in run.validation for run in firsts)] if firsts else []
    if len(arms) < 2 or not corpora or not have_same_documents(firsts, corpora):
        return DOCUMENT_CORRELATION
    _, bytes_I, strata_I = stack(firsts[:1], corpora)
    bits = [[stack(runs, corpora)[0] for runs in zip(*pairs, strict=True)] for pairs in arms]
    differences = [variant_SI - parent_SI for parent_SI, variant_SI in bits]
    found = item_correlation(differences, bytes_I, stack_sources(firsts[0], corpora), strata_I=strata_I)
    return found if math.isfinite(found) else DOCUMENT_CORRELATION


def _hours(
    known: Sequence[SizeResult], sizes: Sequence[Resolved], runs: Path, runs_per_seed: int
) -> dict[float, tuple[float, float]]:
    """Returns the device hours of a seed, and of a run of its parent, by operations of a run.

    Measured, or from the parent's own runs.
    """
    if known:
        return {one.compute: (one.hours, one.parent_hours) for one in known}
    seconds = {one.name: each for one in sizes if (each := mean_seconds(runs / one.name))}
    hours = {training_flops(one.experiment): hours_of_a_run(one, seconds) for one in sizes if one.name in seconds}
    return {compute: (runs_per_seed * each, each) for compute, each in hours.items()}


def _options(
    known: Sequence[SizeResult],
    sizes: Sequence[Resolved],
    target: Resolved,
    hours: Mapping[float, tuple[float, float]],
    trained: Mapping[str, int],
) -> list[tuple[str, SizeOption]]:
    """Returns the sizes that a design chooses from, up to the target; compared ones show the noise.

    The others take the noise of the nearest compared size, scaled to their compute.

    Args:
        hours: of a seed, and of a run of its parent, by operations of a run; the nearest counts, scaled by operations.
        trained: finished seeds of each size; the one with the most stands for others of its compute.
    """
    compute, by_name = training_flops(target.experiment), {one.size: one for one in known}
    below = [(training_flops(one.experiment), one.name) for one in sizes if one.name != target.name]
    below = [(flops, name) for flops, name in below if flops < compute]
    below = distinct(below, lambda one: (one[0], math.inf if one[1] in by_name else trained[one[1]]))
    # Compared sizes first, then the largest.
    chosen = sorted(below, key=lambda one: (one[1] not in by_name, -one[0]))[:_MOST_OPTIONS]
    options = []
    for flops, name in [*sorted(chosen), (compute, target.name)]:
        deviation, documents = expected_deviation(flops), EXPECTED_DOCUMENTS
        near = min(known, key=lambda each: abs(math.log(each.compute / flops)), default=None)
        if near and near.difference:
            seed_deviation = math.sqrt(_own_noise(near.difference)[0] * len(near.comparison.seeds))
            deviation *= seed_deviation / expected_deviation(near.compute)
            documents = math.sqrt(near.difference.item_variance)
        nearest = min(hours, key=lambda each: abs(math.log(each / flops)))
        seeds = len(by_name[name].comparison.seeds) if name in by_name else 0
        each, of_parent = (one * flops / nearest for one in hours[nearest])
        distance = math.log(flops / compute)
        options.append((name, SizeOption(distance, each, deviation, documents, seeds, of_parent, trained[name])))
    return options
