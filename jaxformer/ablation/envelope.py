"""A variant and its parent, each at its best learning rate: what both can do, beside what one rate does to them.

Each arm is trained as `tuning.missing_runs` has it, so that three rates half an octave apart surround its best one on
all seeds. The parabola through their means is lowest at some rate, and there each seed's run is interpolated, document
by document, by the same weights for all. These runs are compared like any others. The seeds' scatter is then that of
all three rates, and that of the place counts for nothing to first order (the envelope theorem).

Two errors are left. Curves are no parabolas: `reading_variance` counts by how much the lowest value is read wrong, so
that of equals whose best rates differ, on a curve that is steep above them, 1.8 % are kept and 1.5 % reverted, which
were 3.1 % and 2.8 % without. And the lowest of three noisy values is too low by curvature x Var(place). For arms that
scatter alike that is the same. A variant that scatters nine times as much above its best rate is so 0.005 bits per byte
too good after three seeds, and 1.8 % of such equals are kept; one that scatters three times as much at all rates, 0.007
and 2.8 %. A jackknife over seeds takes that away, but where the curve is flat beside the noise it calls 5 % of equals
different at 0.5 %, and weights that are fitted on the other seeds revert 11 %. `tools/simulated_rule.py` counts.
"""

import collections
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.clock import read_clock
from jaxformer.ablation.comparability import check_comparable
from jaxformer.ablation.comparison import BestRate, Comparison, compare_runs
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.study import Study, is_retuned
from jaxformer.ablation.tuning import TUNING, Tuning, bits_of, fit, missing_runs, runs_to_come
from jaxformer.ablation.verdict import Rule, Verdict, Word
from jaxformer.config import UserError
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.files import read_json_or_empty
from jaxformer.statistics.optimum import interpolation_weights
from jaxformer.statistics.significance import INTERIM_SEEDS

# Standard deviation of the error of a lowest value that is read off a parabola through rates half an octave apart, as a
# share of its curvature, bits per byte for an octave from the best, over where the three lie: 0.014 by a spline through
# the laptop study's parent at four rates, and 0.013 on a curve three times as steep above its best as below.
_MISREAD = 0.015

# (octave, seed) -> the run, None where it diverged: as of `RateSearch.read`.
Trained = Mapping[tuple[float, int], FinishedRun | None]


class Arm(NamedTuple):
    """An experiment at the three learning rates that surround its best one, on some seeds."""

    tuning: Tuning
    runs: tuple[list[FinishedRun], ...]
    """Its runs at each of the three rates, by seed, as if they were of its own rate; fewer where some diverged."""

    def at_best(self) -> list[FinishedRun]:
        """Returns a run for each seed whose documents are those at the best rate, and all else of the best one tried.

        The documents of all its runs must be the same.
        """
        weights_P, runs = weights_at_best(self.tuning), self.runs
        if self.tuning.mean is None:
            return runs[1]
        return [_interpolated(three, weights_P) for three in zip(*runs, strict=True)]

    def summary(self) -> BestRate:
        """Returns where it is best."""
        tuning = self.tuning
        rates = tuple(tuning.learning_rate * 2.0**octave for octave in tuning.bracket)
        means = tuple(
            float(np.mean([bits for (tried, _), bits in tuning.trials.items() if tried == octave]))
            for octave in tuning.bracket
        )
        costs = tuning.excess, tuning.excess_error
        return BestRate(tuning.learning_rate, tuning.lowest, tuning.recommended, rates, means, *costs)


def weights_at_best(tuning: Tuning) -> np.ndarray:
    """Returns the weights (P,) of the three rates around the best one there; all on the middle one if none bends."""
    if tuning.mean is None:
        return np.array([0.0, 1.0, 0.0])
    return interpolation_weights(np.array(tuning.bracket), tuning.place)


def reading_variance(*tunings: Tuning) -> float:
    """Returns the variance of a difference of lowest values, (bits per byte)^2, by what parabolas read wrong."""
    return sum((_MISREAD * tuning.mean.curvature) ** 2 for tuning in tunings if tuning.mean)


def _interpolated(runs: Sequence[FinishedRun], weights_P: np.ndarray) -> FinishedRun:
    validation = {
        name: one._replace(bits=weights_P @ np.stack([run.validation[name].bits for run in runs]))
        for name, one in runs[1].validation.items()
    }
    return runs[1]._replace(validation=validation)


def make_arm(one: Resolved, trained: Trained, seeds: int) -> Arm:
    """Returns an experiment at its best rates on the first seeds, on which no run may be missing (`missing_runs`).

    Raises:
        UserError: as of `tuning.fit`.
    """
    name, learning_rate = one.name, one.experiment.optimizer.learning_rate
    ours = {trial: run for trial, run in trained.items() if trial[1] < seeds}
    tuning = fit(name, learning_rate, bits_of(ours), seeds)
    by_rate = [[ours[octave, seed] for seed in range(seeds)] for octave in tuning.bracket]
    return Arm(tuning, tuple([run_at_own_rate(run, name, learning_rate) for run in runs if run] for runs in by_rate))


def run_at_own_rate(run: FinishedRun, name: str, learning_rate: float) -> FinishedRun:
    """Returns a run as if it had been trained at the experiment's own rate, where it differs by the rate alone."""
    lineage, identity = run.record["lineage"], run.record["identity"]
    if set(lineage["overrides"]) != {RATE}:
        return run
    record = {"experiment": name, "lineage": lineage | {"overrides": {}}, "identity": identity | {RATE: learning_rate}}
    return run._replace(record=run.record | record)


def shared_seeds(arms: Collection[Trained]) -> int:
    """Returns on how many seeds all arms have their best rate between two others: of an interim analysis, if any."""
    most = max((seed + 1 for trained in arms for _, seed in trained), default=0)
    bits = [bits_of(trained) for trained in arms]
    complete = [seeds for seeds in range(1, most + 1) if not any(missing_runs(trials, seeds) for trials in bits)]
    return max([seeds for seeds in complete if seeds in INTERIM_SEEDS] or complete, default=0)


def compare_retuned(
    study: Study, variants: Sequence[Resolved], trained: Mapping[str, Trained], allow: Collection[str] = ()
) -> tuple[dict[str, Comparison], dict[str, str], dict[str, int]]:
    """Returns the comparisons of what is retuned, why others whose change moves the best rate are not, and what lacks.

    All by name; the last is how many runs at other rates must be trained before what is retuned can be compared.
    """
    arms, why_not, to_train = collections.defaultdict(dict), {}, {}
    for one in variants:
        if not is_retuned(study, one):
            if one.moves_best_rate:
                why_not[one.name] = "the change moves the best one, but retune is off"
            continue
        pair = [(each, trained[each.name]) for each in (one.parents[0], one)]
        if not (seeds := shared_seeds([theirs for _, theirs in pair])):
            to_train[one.name] = sum(len(runs_to_come(bits_of(theirs), study.seeds)) for _, theirs in pair)
            continue
        try:
            parent, variant = (make_arm(each, theirs, seeds) for each, theirs in pair)
        except UserError as error:
            why_not[one.name] = str(error)
        else:
            arms[one.parents[0].name][one.name] = parent, variant
    compared = [compare_all_at_best(ours, rule=study.rule, allow=allow) for ours in arms.values()]
    return {name: one for ours in compared for name, one in ours.items()}, why_not, to_train


def compare_all_at_best(
    arms: Mapping[str, tuple[Arm, Arm]], *, rule: Rule | None = None, allow: Collection[str] = ()
) -> dict[str, Comparison]:
    """Returns the comparisons of one parent's variants by name, each given by (the parent's arm, the variant's).

    Their variances make each other's prior, and that of no other comparison: seeds scatter otherwise at other rates.
    """
    alone = {name: compare_at_best(*pair, rule=rule, allow=allow) for name, pair in arms.items()}
    known = {name: (one.seed_variance, len(one.seeds) - 1) for name, one in alone.items() if len(one.seeds) > 1}
    return {name: compare_at_best(*pair, rule=rule, variances=known, allow=allow) for name, pair in arms.items()}


def compare_at_best(
    parent: Arm,
    variant: Arm,
    *,
    rule: Rule | None = None,
    variances: Mapping[str, tuple[float, int]] | None = None,
    allow: Collection[str] = (),
) -> Comparison:
    """Returns the comparison of two arms, each at its best rate: as of `compare_runs`, with what the rates are.

    Args:
        variances: as of a `NoiseFloor`, of comparisons of the same parent at its best rate.
    """
    best = parent.summary(), variant.summary()
    if flags := check_arms(parent, variant, allow):
        name, lineage, question = (variant.runs[1][0].record[key] for key in ("experiment", "lineage", "question"))
        verdict = Verdict(Word.NOT_COMPARED, "; ".join(flags))
        known = {"question": question, "flags": flags, "best_rates": best}
        return Comparison(parent.tuning.experiment, name, verdict, math.nan, lineage, **known)
    parents, variants = parent.at_best(), variant.at_best()
    floor = noise_floor(parents)._replace(variances=variances or {})
    options = {"runs_per_seed": 3, "further_variance": reading_variance(parent.tuning, variant.tuning)}
    clock = read_clock(parents, variants)
    found = compare_runs(parents, variants, rule=rule, floor=floor, clock=clock, allow=allow, **options)
    arms = ((parent.tuning, best[0]), (variant.tuning, best[1]))
    notes = ["each at its best learning rate: " + "; ".join(_describe(tuning, one) for tuning, one in arms)]
    for tuning, one in arms:
        if tuning.mean is None:
            why = "a neighbour diverged, or the three do not bend"
            notes.append(f"{tuning.experiment} is taken at {one.compared:.2g}, the best rate tried: {why}")
    return found._replace(best_rates=best, notes=(*notes, *found.notes))


def check_arms(parent: Arm, variant: Arm, allow: Collection[str]) -> tuple[str, ...]:
    """Returns why runs of two arms cannot be compared; they may differ by the declared change and the rates alone."""
    pairs = [(theirs, ours) for theirs, ours in zip(parent.runs, variant.runs, strict=True) if theirs and ours]
    # And all with one another: a run for each seed stands for its arm then.
    everything = [[run for runs in arm.runs for run in runs] for arm in (parent, variant)]
    found = [check_comparable(theirs, ours, allow=allow)[0] for theirs, ours in (*pairs, everything)]
    return tuple(dict.fromkeys(flag for flags in found for flag in flags))


def _describe(tuning: Tuning, best: BestRate) -> str:
    error = f" ± {best.excess_error:.4f}" if math.isfinite(best.excess_error) else ""
    costs = f"costs {best.excess:.4f}{error} more" if math.isfinite(best.excess) else "diverges"
    return f"{tuning.experiment} at {best.compared:.2g} (its own, {best.own:.3g}, {costs})"


def flag_untuned(comparisons: Sequence[Comparison], variants: Sequence[Resolved], runs: Path) -> list[Comparison]:
    """Returns comparisons with a note on each that is kept at a learning rate that is not known to suit the parent.

    By what a comparison at best rates found of the parent, else by the record of `jaxformer tune` beside its runs.
    """
    known = {one.parent: one.best_rates[0] for one in comparisons if one.best_rates}
    parents, flagged = {one.name: one.parents[0] for one in variants}, []
    for one in comparisons:
        if one.verdict.word is Word.KEEP and not one.best_rates:
            parent, best = parents[one.variant], known.get(one.parent)
            rate = parent.experiment.optimizer.learning_rate
            excess, recommended = (
                (best.excess, best.recommended) if best else tuned_rate(runs / one.parent / TUNING, rate)
            )
            note, alone = "", "the gain may hold at this rate only"
            if math.isnan(recommended) and RATE not in parent.tuned:
                command = f"`jaxformer tune --experiment={one.parent}`"
                note = f"no tuning of {one.parent} at {rate:.3g} is recorded in {runs}: {alone}; see {command}"
            elif math.isfinite(recommended) and not excess <= (0.0 if math.isnan(one.margin) else one.margin):
                costs = f"costs {excess:.4f} bits per byte beside its best, {recommended:.2g}"
                note = f"the learning rate of {one.parent}, {rate:.3g}, {costs}: {alone}"
            one = one._replace(notes=(*one.notes, *([note] if note else [])))
        flagged.append(one)
    return flagged


def tuned_rate(path: Path, learning_rate: float) -> tuple[float, float]:
    """Returns what a rate costs by the record of its tuning, bits per byte, and the best one; NaN without a record."""
    record = read_json_or_empty(path)
    own, excess, best = (record.get(name) for name in ("learning_rate", "excess", "recommended"))
    if own != learning_rate or not (isinstance(excess, int | float) and isinstance(best, int | float)):
        return math.nan, math.nan
    return float(excess), float(best)
