"""What a screening can find, before it is run, and what it found, as text for a terminal."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxformer.ablation.screening import Screen
from jaxformer.ablation.study import Screening
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import format_table
from jaxformer.statistics.screening import BEST_SHARE, EXPECTED_FALSE, interaction_weights

# By simulation (docs/screening.md): where real effects are no larger than this multiple of the standard deviation of a
# run over its seeds, and mostly add up, screening finds more at equal hours than one seed of each change first. With
# fewer changes than this a design on two seeds leaves too few hours to confirm.
LARGEST_EFFECT, FEWEST_ON_TWO_SEEDS = 1.0, 11

# Seeds on which survivors are best confirmed, by the same.
CONFIRMED_ON = 11

# P-value below which rows are said to differ by more than the sum of their changes.
_SEEN = 0.05


def describe_plan(screening: Screening, variants: Sequence[Resolved], noise: float) -> list[str]:
    """Returns sentences on what a screening can find, and whether it is the better way.

    Args:
        variants: of the screening.
        noise: standard deviation over seeds of a run of the parent; NaN where it is not known.
    """
    design = screening.design
    R, N = design.on_RN.shape
    sentences = [
        f"{N} changes in {R} runs on {_seeds(screening.seeds)}, about half of them in each run. Each effect is "
        f"the mean of {R // 2 * screening.seeds} runs with the change, less that of as many without it.",
        describe_aliases(screening),
    ]
    if screening.seeds == 1:
        sentences.append("One seed does not show how much of an effect is chance.")
    elif R - 1 == N:
        sentences.append("No run is left over, so interactions will not be seen, and the errors will not count them.")
    error = 2 * noise / math.sqrt(R * screening.seeds)
    if math.isfinite(noise):
        sentences.append(
            f"A run of {screening.parent} has a standard deviation of {noise:.4f} over its seeds, so an effect has a "
            f"standard error of at most about {error:.4f} bits per byte."
        )
    if screening.seeds > 1 and N < FEWEST_ON_TWO_SEEDS:
        sentences.append("One seed leaves more hours to confirm what looks best, and finds more with so few changes.")
    return [*sentences, _recommendation(screening, variants, noise)]


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"each of {number} seeds"


def describe_aliases(screening: Screening) -> str:
    """Returns in a sentence what interactions do to the effects of a design."""
    design = screening.design
    weights_NP, pairs = interaction_weights(design)
    own = f"half of its interaction with each of the {design.on_RN.shape[1] - 1} others"
    if design.resolution == 4:
        return f"Resolution IV: an effect includes {own}, and nothing of what other pairs do together."
    is_own_NP = np.array([[n in pair for pair in pairs] for n in range(len(weights_NP))])
    others_NP = np.where(is_own_NP, 0, np.abs(weights_NP)).round(3)
    shares = Counter(others_NP[others_NP.sum(1).argmax()].tolist())
    texts = [f"{share:.2g} of those of {count} pairs" for share, count in sorted(shares.items()) if share]
    return f"Resolution III: an effect includes {own}, and up to {' and '.join(texts)} of other changes."


def _recommendation(screening: Screening, variants: Sequence[Resolved], noise: float) -> str:
    gains = [-one.lineage.expected[0] for one in variants if one.lineage.expected and one.lineage.expected[0] < 0]
    one_by_one = (
        "take one seed of each change first, and confirm what looks best (`jaxformer ablate "
        f"--parent={screening.parent} --variants=... --seeds=1`)"
    )
    if not math.isfinite(noise):
        return (
            f"Whether this is the better way depends on the noise of {screening.parent}, of which fewer than two runs "
            f"are finished. It is where improvements are expected to be about {LARGEST_EFFECT:g} standard deviation of "
            f"a run or less; else {one_by_one}."
        )
    typical = float(np.median(gains)) / noise if gains else 0.0
    expected = f"half of the improvements are expected to be of {typical:.1f} standard deviations of a run or less"
    if typical > LARGEST_EFFECT:
        return (
            f"Not the better way, since improvements of {typical:.1f} standard deviations of a run are expected, "
            f"which one run of each shows: {one_by_one}."
        )
    return (
        f"The better way, since {expected}, where changes mostly add up. Where many pairs do together what they do not "
        f"do alone, {one_by_one}."
    )


def screening_table(found: Screen) -> list[str]:
    """Returns the lines of a table with the effect of each change, with errors if known, those that look best first."""
    effects = found.found.effects
    columns = ["±", "degrees of freedom", "p, not below 0"] if effects[0].seeds_counted else []
    rows = [["change", "effect", *columns, ""]]
    for n in sorted(range(len(effects)), key=lambda n: effects[n].mean):
        one = effects[n]
        mark = "survives" if n in found.found.survivors else ""
        numbers = [f"{one.standard_error:.4f}", f"{one.degrees_of_freedom:.0f}", f"{one.p_value_below:.3f}"]
        rows.append([found.screening.variants[n], f"{one.mean:+.4f}", *(numbers if columns else []), mark])
    return format_table(rows, left=(0, len(rows[0]) - 1))


def describe_screen(found: Screen) -> list[str]:
    """Returns sentences on what was found, and last the command that confirms it."""
    screening, p_value = found.screening, found.found.interactions_p
    sentences = [
        f"Bits per byte, the mean of the runs with a change minus that without it; {screening.parent} has "
        f"{found.parent_bits_per_byte:.4f}." + " Errors count seeds and runs, not documents." * (screening.seeds > 1),
        describe_aliases(screening),
    ]
    if screening.seeds == 1:
        sentences.append("One seed does not show how much of an effect is chance, or whether changes add up.")
    elif math.isnan(p_value):
        sentences.append("No run was left over to show whether changes add up.")
    elif p_value < _SEEN:
        sentences.append(
            f"Changes do not just add up (p = {p_value:.2g}): what one does with the others on need not be what it "
            "does alone."
        )
    else:
        sentences.append(f"Nothing speaks against changes just adding up (p = {p_value:.2g}).")
    share = f"Of changes without any effect, {EXPECTED_FALSE:g} is expected to survive at most, where changes add up."
    if screening.seeds == 1:
        most = math.ceil(BEST_SHARE * len(found.found.effects))
        share = f"The best quarter survives, at most {most} change{'s' * (most > 1)}."
    sentences.append(f"{share} Nothing is decided by this.")
    if not found.survivors:
        return [*sentences, "None survives: no change looks like an improvement of the size that could be seen."]
    names = ",".join(name for name, _ in found.survivors)
    command = f"jaxformer ablate --parent={screening.parent} --variants={names} --seeds={CONFIRMED_ON} "
    return [*sentences, f"Confirm what survives one by one, on other seeds: {command}--parent_seeds={CONFIRMED_ON}"]
