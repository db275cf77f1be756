"""A screening as text for a terminal: what its design can find, before it runs, and what it found."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxformer.ablation.screening import CONFIRMED_ON, FollowUp, Screening, ScreeningResult
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import format_table
from jaxformer.statistics.screening import BEST_SHARE, EXPECTED_FALSE, interaction_weights

# By simulation (docs/how_to/screening.md): if real effects are no larger than this multiple of a standard deviation of
# runs over seeds, and mostly add up, screening finds more in equal hours than one seed of each change first. With fewer
# changes than this a design on two seeds leaves too few hours to confirm.
LARGEST_EFFECT, FEWEST_ON_TWO_SEEDS = 1.0, 11

# The fewest changes for which it does: with the hours of five seeds of each change and of the parent, the fewest
# simulated; and with the hours of so many seeds or fewer, where 8 find less (0.40 of the improvements against 0.51).
FEWEST, FEW_SEEDS, FEWEST_OF_FEW_SEEDS = 4, 3, 11

# P-value below which effects are reported as not additive.
_NOT_ADDITIVE = 0.05


def describe_plan(
    screening: Screening,
    parent: Resolved,
    variants: Sequence[Resolved],
    noise: float,
    run_hours: float,
    hours: float = math.inf,
) -> list[str]:
    """Returns sentences on what a screening can find, and whether it is the better method.

    Args:
        noise: standard deviation over seeds of a run of the parent, bits per byte; NaN if unknown.
        run_hours: device hours of a run of the parent.
        hours: device hours for the screening and its confirmation; infinite without a limit.
    """
    R, N = screening.design.on_RN.shape
    seeds = "1 seed" if screening.seeds == 1 else f"each of {screening.seeds} seeds"
    sentences = [
        f"{N} changes of {parent.name} in {R} runs on {seeds}, resolution {_resolution(screening)}. About half of the "
        f"changes are on in each run: an effect is the mean of {R // 2 * screening.seeds} runs with the change minus "
        f"that of {R // 2 * screening.seeds} without it.",
        describe_aliases(screening),
    ]
    if screening.seeds == 1:
        sentences.append("One seed gives effects no standard errors.")
    elif R - 1 == N:
        sentences.append("No contrast is left to test whether effects add up; standard errors only count seed noise.")
    if math.isfinite(noise):
        error = 2 * noise / math.sqrt(R * screening.seeds)
        sentences.append(
            f"A run of {parent.name} has a standard deviation of {noise:.4f} over its seeds, so an effect has a "
            f"standard error of at most about {error:.4f} bits per byte."
        )
    if screening.seeds > 1 and N < FEWEST_ON_TWO_SEEDS:
        sentences.append("With so few changes, one seed finds more: it leaves more hours to confirm the best changes.")
    sentences.append(
        f"Screening decides nothing: the best changes are then confirmed one by one on {CONFIRMED_ON} other seeds. "
        f"That takes about {CONFIRMED_ON * run_hours:.2f} device hours for each change, and as many for the parent."
    )
    has_few_hours = hours <= FEW_SEEDS * (N + 1) * run_hours
    return [*sentences, _recommendation(parent.name, variants, noise, has_few_hours)]


def _resolution(screening: Screening) -> str:
    return {3: "III", 4: "IV"}[screening.design.resolution]


def describe_aliases(screening: Screening) -> str:
    """Returns a sentence on the interactions that the effects of a design are aliased with."""
    design = screening.design
    weights_NP, pairs = interaction_weights(design)
    own = f"contains half of its interaction with each of the {design.on_RN.shape[1] - 1} others"
    if design.resolution == 4:
        return f"An effect {own}, but no interaction of two other changes."
    is_own_NP = np.array([[n in pair for pair in pairs] for n in range(len(weights_NP))])
    others_NP = np.where(is_own_NP, 0, np.abs(weights_NP)).round(3)
    shares = Counter(others_NP[others_NP.sum(1).argmax()].tolist())
    texts = [f"{share:.2g} of the interactions of {count} pairs" for share, count in sorted(shares.items()) if share]
    return f"An effect {own}, and is aliased with other changes: up to {' and '.join(texts)}."


def _recommendation(parent: str, variants: Sequence[Resolved], noise: float, has_few_hours: bool) -> str:
    gains = [-one.lineage.expected[0] for one in variants if one.lineage.expected and one.lineage.expected[0] < 0]
    one_by_one = (
        "train one seed of each change first, and confirm the best (`jaxformer ablate "
        f"--parent={parent} --variants=... --seeds=1`)"
    )
    fewest = FEWEST_OF_FEW_SEEDS if has_few_hours else FEWEST
    if len(variants) < fewest:
        hours = f" and hours for at most {FEW_SEEDS} seeds of each" if has_few_hours else ""
        return f"Screening is not the better method with fewer than {fewest} changes{hours}: {one_by_one}."
    if not math.isfinite(noise):
        return (
            f"Whether screening is the better method depends on the seed noise of {parent}, which has fewer than two "
            f"finished runs. It is if you expect improvements of about {LARGEST_EFFECT:g} standard deviation of a run "
            f"or less; else {one_by_one}."
        )
    typical = float(np.median(gains)) / noise if gains else 0.0
    if typical > LARGEST_EFFECT:
        return (
            f"Screening is not the better method, since one run of each change shows the expected improvements, "
            f"{typical:.1f} standard deviations of a run: {one_by_one}."
        )
    return (
        f"Screening is the better method here if effects mostly add up: half of the files expect an improvement of "
        f"{typical:.1f} standard deviations of a run or less. If many changes interact, {one_by_one}."
    )


def effects_table(result: ScreeningResult) -> list[str]:
    """Returns the lines of a table with the effect of each change, with errors if known, the best first."""
    has_errors = next(iter(result.effects.values())).seeds_counted
    columns = ["±", "degrees of freedom", "p, not below 0"] if has_errors else []
    rows = [["change", "effect", *columns, ""]]
    for name, one in sorted(result.effects.items(), key=lambda item: item[1].mean):
        numbers = [f"{one.standard_error:.4f}", f"{one.degrees_of_freedom:.0f}", f"{one.p_value_below:.3f}"]
        mark = "survives" if name in result.survivors else ""
        rows.append([name, f"{one.mean:+.4f}", *(numbers if columns else []), mark])
    return format_table(rows, left=(0, len(rows[0]) - 1))


def describe_result(screening: Screening, parent: str, result: ScreeningResult) -> list[str]:
    """Returns sentences on the result."""
    p_value = result.interactions_p
    errors = " Errors count seeds and runs, not documents." * (screening.seeds > 1)
    sentences = [
        "Bits per byte, the mean of the runs with a change minus the mean without it; "
        f"{parent} has {result.parent_bits_per_byte:.4f}.{errors}",
        f"Resolution {_resolution(screening)}. {describe_aliases(screening)}",
    ]
    if screening.seeds == 1:
        sentences.append("One seed gives no standard errors, and no test of whether effects add up.")
    elif math.isnan(p_value):
        sentences.append("No contrast is left to test whether effects add up.")
    elif p_value < _NOT_ADDITIVE:
        sentences.append(
            f"Effects do not simply add up (p = {p_value:.2g}): a change may have another effect alone than with "
            "others."
        )
    else:
        sentences.append(f"No evidence against effects that add up (p = {p_value:.2g}).")
    share = f"If effects add up, at most {EXPECTED_FALSE:g} change without any effect is expected to survive."
    if screening.seeds == 1:
        most = math.ceil(BEST_SHARE * len(result.effects))
        share = f"The best quarter survives, at most {most} change{'s' * (most > 1)}."
    return [*sentences, f"{share} This decides nothing."]


def describe_follow_up(result: ScreeningResult, follow_up: FollowUp | None, hours: float) -> str:
    """Returns a sentence on what to run next.

    Args:
        hours: device hours left for it; infinite without a limit.
    """
    if not result.survivors:
        return "None survives: no change seems to improve by an amount that could be detected."
    if follow_up is None:
        return f"{hours:.2f} device hours are left, too few to confirm {result.survivors[0]}: give more --hours."
    left_out = result.survivors[len(follow_up.study.variants) :]
    without = f" (there is no time for {', '.join(left_out)})" if left_out else ""
    return (
        f"Confirm the survivors one by one on other seeds, in {follow_up.device_hours:.2f} device hours{without}: "
        f"{follow_up.command}"
    )
