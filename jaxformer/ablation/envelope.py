"""A variant and its parent, each at its best learning rate, so that one shared rate favours neither.

Each arm is trained as `tuning.missing_runs` says, so that three rates half an octave apart surround its best one on all
seeds. The parabola through their means has its minimum at some rate; there each seed's run is interpolated, document by
document, with the same weights for all. These runs are compared like any others. Their scatter over seeds comes from
all three rates; the uncertainty of the minimum's place has no effect to first order (the envelope theorem).

Two errors remain. First, curves are no parabolas: `reading_variance` is the error of the minimum that this causes. With
it, of equals whose best rates differ, on a curve that is steep above them, 1.8 % are kept and 1.5 % reverted; without
it 3.1 % and 2.8 %. Second, the minimum of three noisy values is too low by curvature x Var(place). Arms with equal
scatter share this bias. A variant that scatters nine times as much above its best rate seems 0.005 bits per byte too
good after three seeds, and 1.8 % of such equals are kept; with three times the scatter at all rates, 0.007 and 2.8 %. A
jackknife over seeds would remove the bias. But where the curve is flat compared with the noise it calls 5 % of equals
different at 0.5 %, and weights fitted on the other seeds revert 11 %. Counted by `tools/simulated_rule.py`.
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

# Standard deviation, over positions of the three rates, of the error of the minimum of a parabola through rates half an
# octave apart, as a share of its curvature (bits per byte for an octave from the best): 0.014 by a spline through the
# laptop study's parent at four rates, and 0.013 on a curve three times as steep above its best as below.
_MISREAD = 0.015

# (octave, seed) -> the run, None if it diverged: as of `RateSearch.read`.
Trained = Mapping[tuple[float, int], FinishedRun | None]


class Arm(NamedTuple):
    """An experiment at the three learning rates around its best one, on some seeds."""

    tuning: Tuning
    runs: tuple[list[FinishedRun], ...]
    """Its runs at each of the three rates, by seed, as if at its own rate; fewer if some diverged."""

    def at_best(self) -> list[FinishedRun]:
        """Returns a run for each seed with the document losses at the best rate, and all else from the best rate tried.

        All its runs must have the same documents.
        """
        weights_P, runs = weights_at_best(self.tuning), self.runs
        if self.tuning.mean is None:
            return runs[1]
        return [_interpolated(three, weights_P) for three in zip(*runs, strict=True)]

    def summary(self) -> BestRate:
        """Returns its best rate."""
        tuning = self.tuning
        rates = tuple(tuning.learning_rate * 2.0**octave for octave in tuning.bracket)
        means = tuple(
            float(np.mean([bits for (tried, _), bits in tuning.trials.items() if tried == octave]))
            for octave in tuning.bracket
        )
        costs = tuning.excess, tuning.excess_error
        return BestRate(tuning.learning_rate, tuning.lowest, tuning.recommended, rates, means, *costs)


def weights_at_best(tuning: Tuning) -> np.ndarray:
    """Returns the weights (P,) of the three rates around the best one; all on the middle one without a minimum."""
    if tuning.mean is None:
        return np.array([0.0, 1.0, 0.0])
    return interpolation_weights(np.array(tuning.bracket), tuning.place)


def reading_variance(*tunings: Tuning) -> float:
    """Returns the variance of a difference of minima, (bits per byte)^2, from the errors of parabolas."""
    return sum((_MISREAD * tuning.mean.curvature) ** 2 for tuning in tunings if tuning.mean)


def _interpolated(runs: Sequence[FinishedRun], weights_P: np.ndarray) -> FinishedRun:
    validation = {
        name: one._replace(bits=weights_P @ np.stack([run.validation[name].bits for run in runs]))
        for name, one in runs[1].validation.items()
    }
    return runs[1]._replace(validation=validation)


def make_arm(one: Resolved, trained: Trained, seeds: int) -> Arm:
    """Returns an experiment at its best rates on the first seeds, where no run may be missing (`missing_runs`).

    Raises:
        UserError: as of `tuning.fit`.
    """
    name, learning_rate = one.name, one.experiment.optimizer.learning_rate
    ours = {trial: run for trial, run in trained.items() if trial[1] < seeds}
    tuning = fit(name, learning_rate, bits_of(ours), seeds)
    by_rate = [[ours[octave, seed] for seed in range(seeds)] for octave in tuning.bracket]
    return Arm(tuning, tuple([run_at_own_rate(run, name, learning_rate) for run in runs if run] for runs in by_rate))


def run_at_own_rate(run: FinishedRun, name: str, learning_rate: float) -> FinishedRun:
    """Returns a run as if trained at the experiment's own rate, if it differs only in the rate."""
    lineage, identity = run.record["lineage"], run.record["identity"]
    if set(lineage["overrides"]) != {RATE}:
        return run
    record = {"experiment": name, "lineage": lineage | {"overrides": {}}, "identity": identity | {RATE: learning_rate}}
    return run._replace(record=run.record | record)


def shared_seeds(arms: Collection[Trained]) -> int:
    """Returns the number of seeds on which all arms have their best rate between two others: of an interim analysis."""
    most = max((seed + 1 for trained in arms for _, seed in trained), default=0)
    bits = [bits_of(trained) for trained in arms]
    complete = [seeds for seeds in range(1, most + 1) if not any(missing_runs(trials, seeds) for trials in bits)]
    return max([seeds for seeds in complete if seeds in INTERIM_SEEDS] or complete, default=0)


def compare_retuned(
    study: Study, variants: Sequence[Resolved], trained: Mapping[str, Trained], allow: Collection[str] = ()
) -> tuple[dict[str, Comparison], dict[str, str], dict[str, int]]:
    """Returns the comparisons of retuned variants, why others are not retuned, and the number of missing runs.

    All by name. The others are those whose change moves the best rate; the missing runs, at other rates, must be
    trained before a retuned variant can be compared.
    """
    arms, why_not, to_train = collections.defaultdict(dict), {}, {}
    for one in variants:
        if not is_retuned(study, one):
            if one.moves_best_rate:
                why_not[one.name] = "the change moves the best rate, but retune is off"
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

    Their variances serve as a prior only for each other: the seed noise differs at other rates.
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
    """Returns the comparison of two arms, each at its best rate: as of `compare_runs`, with the rates.

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
            why = "a neighbouring rate diverged, or the three show no minimum"
            notes.append(f"{tuning.experiment} is taken at {one.compared:.2g}, the best rate tried: {why}")
    return found._replace(best_rates=best, notes=(*notes, *found.notes))


def check_arms(parent: Arm, variant: Arm, allow: Collection[str]) -> tuple[str, ...]:
    """Returns why runs of two arms cannot be compared; they may only differ by the declared change and the rates."""
    pairs = [(theirs, ours) for theirs, ours in zip(parent.runs, variant.runs, strict=True) if theirs and ours]
    # All with each other, since one run for each seed then stands for its arm.
    everything = [[run for runs in arm.runs for run in runs] for arm in (parent, variant)]
    found = [check_comparable(theirs, ours, allow=allow)[0] for theirs, ours in (*pairs, everything)]
    return tuple(dict.fromkeys(flag for flags in found for flag in flags))


def _describe(tuning: Tuning, best: BestRate) -> str:
    error = f" ± {best.excess_error:.4f}" if math.isfinite(best.excess_error) else ""
    costs = f"costs {best.excess:.4f}{error} more" if math.isfinite(best.excess) else "diverges"
    return f"{tuning.experiment} at {best.compared:.2g} (its own, {best.own:.3g}, {costs})"


def flag_untuned(comparisons: Sequence[Comparison], variants: Sequence[Resolved], runs: Path) -> list[Comparison]:
    """Returns comparisons with a note on each that is kept at a learning rate not known to suit the parent.

    The evidence is a comparison at the parent's best rate, else the record of `jaxformer tune` beside its runs.
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
            note, alone = "", "the gain may hold only at this rate"
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
    """Returns the cost of a rate from its tuning record, bits per byte, and the best rate; NaN without a record."""
    record = read_json_or_empty(path)
    own, excess, best = (record.get(name) for name in ("learning_rate", "excess", "recommended"))
    if own != learning_rate or not (isinstance(excess, int | float) and isinstance(best, int | float)):
        return math.nan, math.nan
    return float(excess), float(best)
