"""A change that was asked at several sizes: what is known of its effect at one that it was perhaps never trained at."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.envelope import tuned_rate
from jaxformer.ablation.finished_runs import FinishedRun, seed_folders
from jaxformer.ablation.outcome import Outcome, judge_study
from jaxformer.ablation.records import to_json
from jaxformer.ablation.sizes import distinct, find_sizes
from jaxformer.ablation.study import Study
from jaxformer.ablation.tuning import RUNS_AT_BEST, TUNING
from jaxformer.ablation.verdict import Word as Verdict
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.experiment.variant import OF
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.transfer import (
    Effect,
    Transfer,
    Word,
    decide,
    error_covariance,
    predict_effect,
)
from jaxformer.statistics.transfer_design import Design, Designs, SizeOption, cheapest_design

# Sizes among which a design chooses: all combinations of seeds are tried.
_MOST_OPTIONS = 5

# Places along the compute at which the law is drawn.
_PLACES = 60


class Asked(NamedTuple):
    """The question at one size."""

    size: str
    """The experiment that was changed."""
    variant: str
    compute: float
    """Floating-point operations of a run of the parent."""
    comparison: Comparison
    rates: str
    """Learning rates: 'best' of the parent and of the variant, or the one of both, 'tuned' for the parent or not."""
    is_tuned: bool
    """Whether either is so."""
    hours: float
    """Device hours of a seed of both arms, at all rates that it takes."""

    @property
    def why_not(self) -> str:
        """Why it does not count; '' where it does."""
        is_one_seed = self.comparison.difference and not self.comparison.difference.seeds_counted
        reason = "one seed does not show how seeds vary" if is_one_seed else self.comparison.verdict.reason
        return "" if self.difference else reason

    @property
    def difference(self) -> Difference | None:
        """What was found; None where it is not compared, or nothing is known of how its seeds vary."""
        found = self.comparison.difference
        is_compared = self.comparison.verdict.word is not Verdict.NOT_COMPARED
        return found if is_compared and found and found.seeds_counted else None


class Answer(NamedTuple):
    """What is known of a change at the target."""

    variant: str
    target: str
    compute: float
    """Floating-point operations of a run of the target."""
    asked: list[Asked]
    """Sizes at which there are finished runs of both, by compute."""
    found: Transfer | None
    """None with no size that is compared."""
    word: Word
    reason: str
    law: tuple[np.ndarray, Effect] | None
    """Computes (L,) from the smallest size to the target, and the effects there."""
    options: list[tuple[str, SizeOption]]
    """Sizes at which it could be asked, and the target, by compute."""
    effect: float
    """Bits per byte that designs are for: what is expected at the target, or what matters there if that is more."""
    designs: Designs | None
    """What would decide it; None where it is decided, or where nothing tells what an effect or an hour is."""
    unread: tuple[str, ...]
    """A line on each run folder that could not be read."""
    runs: Path
    """The folder of all run folders."""

    @property
    def counted(self) -> list[Asked]:
        """The sizes that count."""
        return _counted(self.asked)

    def commands(self, design: Design) -> list[str]:
        """Returns the commands that train a design."""
        lines = []
        for (size, option), seeds in zip(self.options, design.seeds_N, strict=True):
            if seeds > option.seeds:
                where = [] if self.runs == Path("runs") else [f"--runs={self.runs}"]
                options = [f"--parent={size}", f"--variants={self.variant}", f"--seeds={seeds}", *where]
                lines.append(shlex.join(["jaxformer", "ablate", *options]))
        return lines

    def record(self) -> dict:
        """Returns it as plain values for JSON; what is not known is None or empty."""
        target = self.found.target if self.found else None
        design = self.designs and {
            name: {"power": one.power, "device_hours": one.hours, "commands": self.commands(one)}
            for name, one in self.designs._asdict().items()
            if one
        }
        sizes = [
            {
                "parent": one.size,
                "variant": one.variant,
                "compute": one.compute,
                "seeds": list(one.comparison.seeds),
                "difference": one.difference.mean if one.difference else math.nan,
                "standard_error": one.difference.standard_error if one.difference else math.nan,
                "verdict": one.comparison.verdict.word.value,
                "rates": one.rates,
                "tuned": one.is_tuned,
            }
            for one in self.asked
        ]
        values = {
            "variant": self.variant,
            "target": self.target,
            "compute": self.compute,
            "word": self.word.value,
            "reason": self.reason,
            "effect": target.mean if target else math.nan,
            "interval": [target.low, target.high] if target else [math.nan, math.nan],
            "same_sign": self.found.same_sign if self.found else math.nan,
            "margin": self.found.margin if self.found else math.nan,
            "sizes": sizes,
            "designed_for": self.effect,
            "designs": design or {},
        }
        return {name: to_json(value) for name, value in values.items()}


def ask_transfer(
    variant: str,
    target: str,
    runs: Path,
    *,
    effect: float = math.nan,
    hours: float = math.inf,
    allow: Sequence[str] = (),
) -> Answer:
    """Returns what is known of a variant at a target, from all sizes at which there are finished runs.

    Each size is judged, and recorded, as `jaxformer report --parent=SIZE --variants=VARIANT` does.

    Args:
        effect: the smallest at the target that matters, bits per byte; NaN takes the margin of the largest size.
        hours: device hours to spend on knowing more.
        allow: as of `judge_study`.

    Raises:
        UserError: an experiment is not found, or no size has finished runs.
    """
    require(OF not in variant, f"{variant} is a change at one size: name it alone, {variant.partition(OF)[0]}")
    aim, _ = resolve(target), resolve(variant)
    compute, sizes = training_flops(aim.experiment), find_sizes(aim)
    require(
        any(_has_runs(runs, size, variant) for size in sizes),
        f"{variant} and its parent have finished runs at no size of {target} below {runs}: ask it there by "
        f"`jaxformer ablate --parent=SIZE --variants={variant}`, SIZE being {', '.join(one.name for one in sizes)}",
    )
    outcomes = [_judge(size, variant, runs, allow) for size in sizes if _has_runs(runs, size, variant)]
    asked = [_asked(size, outcome, runs) for size, outcome in outcomes]
    unread = tuple(line for _, outcome in outcomes for line in outcome.unread)
    counted = distinct([one for one in asked if one.difference], lambda one: (one.compute, len(one.comparison.seeds)))
    options = _options(asked, sizes, aim)
    if not counted:
        reason = "at no size can it be compared, with an error that counts seeds"
        return Answer(
            variant, aim.name, compute, asked, None, Word.UNKNOWN, reason, None, options, math.nan, None, unread, runs
        )
    margin = effect if math.isfinite(effect) else counted[-1].comparison.margin
    found, law = _predict(counted, compute, margin)
    word, reason = decide(found)
    expected = max(abs(found.target.mean), 0.0 if math.isnan(margin) else margin)
    wanted, designs = effect if math.isfinite(effect) else expected, None
    if word is Word.UNKNOWN and wanted and options:
        designs = cheapest_design([option for _, option in options], wanted, hours)
    return Answer(variant, aim.name, compute, asked, found, word, reason, law, options, wanted, designs, unread, runs)


def _counted(asked: Sequence[Asked]) -> list[Asked]:
    """Returns the sizes that are compared, one of each compute."""
    return distinct([one for one in asked if one.difference], lambda one: (one.compute, len(one.comparison.seeds)))


def _has_runs(runs: Path, size: Resolved, variant: str) -> bool:
    try:
        one = resolve_variant_of(size, variant)
    except UserError:  # It is no change there, such as of the depth that the size has.
        return False
    return all(any((path / "summary.json").exists() for path in _folders(runs, each.name)) for each in (size, one))


def _folders(runs: Path, name: str) -> list[Path]:
    """Returns the run folders of an experiment, at any learning rate."""
    return [folder for path in (runs / name, *runs.glob(f"{name}~*")) for folder in seed_folders(path)]


def _judge(size: Resolved, variant: str, runs: Path, allow: Sequence[str]) -> tuple[Resolved, Outcome]:
    return size, judge_study(Study(parent=size.name, variants=(variant,)), runs, allow=allow)


def _asked(size: Resolved, outcome: Outcome, runs: Path) -> Asked:
    (comparison,), (variant,) = outcome.comparisons, outcome.experiments[1:]
    rate = size.experiment.optimizer.learning_rate
    if comparison.best_rates:
        is_tuned, rates = True, "best " + ", ".join(f"{one.compared:.2g}" for one in comparison.best_rates)
    else:
        is_tuned = math.isfinite(tuned_rate(runs / size.name / TUNING, rate)[1])
        rates = f"{'tuned' if is_tuned else 'untuned'} {rate:.2g}"
    arms = [outcome.runs[name] or [*outcome.tried.get(name, ())] for name in (size.name, variant.name)]
    per_seed = RUNS_AT_BEST if comparison.best_rates else 1
    hours = per_seed * sum(_mean_hours(arm) for arm in arms)
    return Asked(size.name, variant.name, training_flops(size.experiment), comparison, rates, is_tuned, hours)


def _mean_hours(runs: Sequence[FinishedRun]) -> float:
    return float(np.mean([run.device_hours for run in runs])) if runs else math.nan


def _predict(counted: Sequence[Asked], compute: float, margin: float) -> tuple[Transfer, tuple[np.ndarray, Effect]]:
    differences = [one.difference for one in counted if one.difference]
    distances_N = np.array([math.log(one.compute / compute) for one in counted])
    errors_NN = error_covariance(differences, [len(one.comparison.seeds) for one in counted])
    # A little inside, since the effect is better known at a size itself than beside it.
    between_L = np.linspace(min(distances_N.min(), 0.0) + 1e-9, max(distances_N.max(), 0.0) - 1e-9, _PLACES)
    at_L = np.concatenate([[distances_N[0], distances_N[-1], 0.0], between_L])
    effect = predict_effect(np.array([one.mean for one in differences]), errors_NN, distances_N, at_L)
    smallest, largest, target = (Effect._make(float(values[i]) for values in effect) for i in range(3))
    law = compute * np.exp(between_L), Effect._make(values[3:] for values in effect)
    return Transfer(tuple(distances_N.tolist()), smallest, largest, target, margin), law


def _options(asked: Sequence[Asked], sizes: Sequence[Resolved], target: Resolved) -> list[tuple[str, SizeOption]]:
    """Returns what a design chooses among: sizes up to the target, of which those that were asked tell the noise.

    One that was not has the noise of the nearest that was, and its hours by the operations of a run.
    """
    known = [one for one in asked if one.difference and one.hours > 0 and one.difference.seed_variance > 0]
    if not known:
        return []
    compute, by_name = training_flops(target.experiment), {one.size: one for one in known}
    below = [one for one in sizes if training_flops(one.experiment) < compute and one.name != target.name]
    # The ones that were asked, then the largest.
    chosen = sorted(below, key=lambda one: (one.name not in by_name, -training_flops(one.experiment)))[:_MOST_OPTIONS]
    options = []
    for one in sorted([*chosen, target], key=lambda one: training_flops(one.experiment)):
        flops = training_flops(one.experiment)
        near = by_name.get(one.name) or min(known, key=lambda each: abs(math.log(each.compute / flops)))
        difference, seeds = near.difference, len(near.comparison.seeds)
        if difference is None:
            continue
        deviation, documents = math.sqrt(difference.seed_variance * seeds), math.sqrt(difference.item_variance)
        there = seeds if one.name in by_name else 0
        distance = 0.0 if one is target else math.log(flops / compute)
        hours = near.hours * flops / near.compute
        options.append((one.name, SizeOption(distance, hours, deviation, documents, there)))
    return options
