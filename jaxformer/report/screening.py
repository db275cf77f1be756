"""A screening as text for a terminal: what its design can find, before it is run, and what it found."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxformer.ablation.screening import CONFIRMED_ON, FollowUp, Screening, ScreeningResult
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import format_table
from jaxformer.statistics.screening import BEST_SHARE, EXPECTED_FALSE, interaction_weights

# By simulation (docs/how_to/screening.md): where real effects are no larger than this multiple of a standard deviation
# of runs over seeds, and mostly add up, screening finds more at equal hours than one seed of each change first. With
# fewer changes than this a design on two seeds leaves too few hours to confirm.
LARGEST_EFFECT, FEWEST_ON_TWO_SEEDS = 1.0, 11

# Changes from which on it does with the hours of five seeds of each change and of the parent, the fewest simulated; and
# with those of so many seeds or fewer, where 8 find less (0.40 of the improvements beside 0.51).
FEWEST, FEW_SEEDS, FEWEST_OF_FEW_SEEDS = 4, 3, 11

# P-value below which effects are reported not to be additive.
_NOT_ADDITIVE = 0.05


def describe_plan(
    screening: Screening,
    parent: Resolved,
    variants: Sequence[Resolved],
    noise: float,
    run_hours: float,
    hours: float = math.inf,
) -> list[str]:
    """Returns sentences on what a screening can find, and whether it is the better way.

    Args:
        noise: standard deviation over seeds of a run of the parent, bits per byte; NaN where it is not known.
        run_hours: device hours of a run of the parent.
        hours: device hours for the screening and what confirms it; infinite where no limit was given.
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
        sentences.append("No contrast is left to test whether effects add up, and standard errors are of noise alone.")
    if math.isfinite(noise):
        error = 2 * noise / math.sqrt(R * screening.seeds)
        sentences.append(
            f"A run of {parent.name} has a standard deviation of {noise:.4f} over its seeds, so an effect has a "
            f"standard error of at most about {error:.4f} bits per byte."
        )
    if screening.seeds > 1 and N < FEWEST_ON_TWO_SEEDS:
        sentences.append("One seed leaves more hours to confirm what looks best, and finds more with so few changes.")
    sentences.append(
        f"Nothing is decided by it: what looks best is confirmed one by one on {CONFIRMED_ON} other seeds, which takes "
        f"about {CONFIRMED_ON * run_hours:.2f} device hours for each change, and as many for the parent."
    )
    has_few_hours = hours <= FEW_SEEDS * (N + 1) * run_hours
    return [*sentences, _recommendation(parent.name, variants, noise, has_few_hours)]


def _resolution(screening: Screening) -> str:
    return {3: "III", 4: "IV"}[screening.design.resolution]


def describe_aliases(screening: Screening) -> str:
    """Returns in a sentence with which interactions the effects of a design are aliased."""
    design = screening.design
    weights_NP, pairs = interaction_weights(design)
    own = f"contains half of its interaction with each of the {design.on_RN.shape[1] - 1} others"
    if design.resolution == 4:
        return f"An effect {own}, and nothing of the interactions of two other changes."
    is_own_NP = np.array([[n in pair for pair in pairs] for n in range(len(weights_NP))])
    others_NP = np.where(is_own_NP, 0, np.abs(weights_NP)).round(3)
    shares = Counter(others_NP[others_NP.sum(1).argmax()].tolist())
    texts = [f"{share:.2g} of those of {count} pairs" for share, count in sorted(shares.items()) if share]
    return f"An effect {own}, and is aliased with interactions of other changes: up to {' and '.join(texts)}."


def _recommendation(parent: str, variants: Sequence[Resolved], noise: float, has_few_hours: bool) -> str:
    gains = [-one.lineage.expected[0] for one in variants if one.lineage.expected and one.lineage.expected[0] < 0]
    one_by_one = (
        "take one seed of each change first, and confirm what looks best (`jaxformer ablate "
        f"--parent={parent} --variants=... --seeds=1`)"
    )
    fewest = FEWEST_OF_FEW_SEEDS if has_few_hours else FEWEST
    if len(variants) < fewest:
        hours = f" and hours for no more than {FEW_SEEDS} seeds of each" if has_few_hours else ""
        return f"Screening is not the better way with fewer than {fewest} changes{hours}: {one_by_one}."
    if not math.isfinite(noise):
        return (
            f"Whether this is the better way depends on the noise of {parent}, of which fewer than two runs are "
            f"finished. It is where improvements are expected to be about {LARGEST_EFFECT:g} standard deviation of a "
            f"run or less; else {one_by_one}."
        )
    typical = float(np.median(gains)) / noise if gains else 0.0
    if typical > LARGEST_EFFECT:
        return (
            f"Screening is not the better way, since improvements of {typical:.1f} standard deviations of a run are "
            f"expected, which one run of each shows: {one_by_one}."
        )
    return (
        f"Screening is the better way here if effects mostly add up: half of the files expect an improvement of "
        f"{typical:.1f} standard deviations of a run or less. Where many changes interact, {one_by_one}."
    )


def effects_table(result: ScreeningResult) -> list[str]:
    """Returns the lines of a table with the effect of each change, with errors if known, those that look best first."""
    has_errors = next(iter(result.effects.values())).seeds_counted
    columns = ["±", "degrees of freedom", "p, not below 0"] if has_errors else []
    rows = [["change", "effect", *columns, ""]]
    for name, one in sorted(result.effects.items(), key=lambda item: item[1].mean):
        numbers = [f"{one.standard_error:.4f}", f"{one.degrees_of_freedom:.0f}", f"{one.p_value_below:.3f}"]
        mark = "survives" if name in result.survivors else ""
        rows.append([name, f"{one.mean:+.4f}", *(numbers if columns else []), mark])
    return format_table(rows, left=(0, len(rows[0]) - 1))


def describe_result(screening: Screening, parent: str, result: ScreeningResult) -> list[str]:
    """Returns sentences on what was found."""
    p_value = result.interactions_p
    errors = " Errors count seeds and runs, not documents." * (screening.seeds > 1)
    sentences = [
        "Bits per byte, the mean of the runs with a change minus that without it; "
        f"{parent} has {result.parent_bits_per_byte:.4f}.{errors}",
        f"Resolution {_resolution(screening)}. {describe_aliases(screening)}",
    ]
    if screening.seeds == 1:
        sentences.append("One seed gives no standard errors, and no test of whether effects add up.")
    elif math.isnan(p_value):
        sentences.append("No contrast is left to test whether effects add up.")
    elif p_value < _NOT_ADDITIVE:
        sentences.append(
            f"Effects do not just add up (p = {p_value:.2g}): what a change does with others on need not be what it "
            "does alone."
        )
    else:
        sentences.append(f"No evidence against effects that add up (p = {p_value:.2g}).")
    share = f"Of changes without any effect, {EXPECTED_FALSE:g} is expected to survive at most, where effects add up."
    if screening.seeds == 1:
        most = math.ceil(BEST_SHARE * len(result.effects))
        share = f"The best quarter survives, at most {most} change{'s' * (most > 1)}."
    return [*sentences, f"{share} Nothing is decided by this."]


def describe_follow_up(result: ScreeningResult, follow_up: FollowUp | None, hours: float) -> str:
    """Returns in a sentence what to run next.

    Args:
        hours: device hours that are left for it; infinite where no limit was given.
    """
    if not result.survivors:
        return "None survives: no change looks like an improvement of the size that could be seen."
    if follow_up is None:
        return f"{hours:.2f} device hours are left, too few to confirm {result.survivors[0]}: give more --hours."
    left_out = result.survivors[len(follow_up.study.variants) :]
    without = f" (there is no time for {', '.join(left_out)})" if left_out else ""
    return (
        f"Confirm what survives one by one on other seeds, in {follow_up.device_hours:.2f} device hours{without}: "
        f"{follow_up.command}"
    )
