"""The open questions of a parent, ranked by the device hours that asking is expected to save for each that it takes.

What is expected of an effect is what its file expects, as far as expectations so far came true. What it costs is known
from finished runs, how the rule would decide is simulated, and a kept gain is worth that share of the hours of the runs
to come which as many tokens take, by the slope of the parent's own loss curve.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import read_runs
from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.open_questions import Answered, find_questions, kind_of, read_answered, record_of
from jaxformer.ablation.records import Record, to_json
from jaxformer.ablation.study import Study, estimate_seconds, make_jobs
from jaxformer.ablation.training_jobs import experiment_of
from jaxformer.ablation.tuning import RUNS_AT_BEST
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.lineage import Resolved, describe_change
from jaxformer.experiment.promoted import kept_changes
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import AD_HOC, OF
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import OVER, state_on_disk
from jaxformer.statistics.expectations import Answers, Belief, Calibration, calibrate
from jaxformer.statistics.question_value import Begun, Noise, Power, Prospect, Stakes, power, prospect
from jaxformer.statistics.significance import INTERIM_SEEDS, next_analysis
from jaxformer.statistics.variance_prior import fit_prior

# Without a target, the run to come is one of ten times the parent's parameters and ten times its tokens.
LARGER = 100.0

# Share of the hours to come that each changed field has to save before it is worth anything: a quarter of the gain
# below which two models count as equal. A choice, as that margin is.
COMPLEXITY = 0.005

# Standard deviation of one seed's paired difference before any is known, in margins, and what that counts for beside
# those that are: the median of the 28 questions whose reports lie in `tools/results`.
_NOISE_IN_MARGINS, _NOISE_DF = 2.0, 2.0

# Share by which operations must differ to be named.
_SHOWN = 0.02


class Ranked(NamedTuple):
    """An open question, and what is expected of it."""

    name: str
    """Of its file."""
    question: str
    kind: str
    expected: tuple[float, float]
    """As its file has it, bits per byte."""
    effect: float
    """Mean of what the effect may be, by all that is known."""
    interval: tuple[float, float]
    """80 % interval of the effect by its expectation, calibrated."""
    kept: float
    """Probability of KEEP."""
    seeds: float
    """Expected seeds at the end."""
    hours: float
    """Expected device hours of the runs that it takes, and of a new parent's if it is kept."""
    saved: float
    """Expected device hours that it saves of the runs to come, less the price of its complexity."""
    why: tuple[str, ...]
    """What the numbers are made of beside the expectation."""
    command: tuple[str, ...]
    """What asks it."""

    @property
    def ratio(self) -> float:
        """Hours that it is expected to save for each that it takes."""
        return self.saved / max(self.hours, 1e-9)  # Where its runs are finished, and none will be kept.


class Ranking(NamedTuple):
    """What to ask next, and by what that was reckoned."""

    parent: str
    ranked: tuple[Ranked, ...]
    """The best first."""
    answered: tuple[Answered, ...]
    """The questions of the ledger, by which expectations are calibrated."""
    kinds: tuple[str, ...]
    calibration: Calibration
    closed: Mapping[str, str]
    """What was decided of those of the parent that are not open any more, by the name of the file."""
    refused: Mapping[str, str]
    """Why others cannot be asked of it, by that name."""
    target: str
    """What the runs to come are, in words."""
    stakes: Stakes
    noise: Noise

    @property
    def best(self) -> Ranked | None:
        """The question to ask; None where none is expected to save what it costs."""
        return self.ranked[0] if self.ranked and self.ranked[0].ratio > 1 else None

    def outcomes(self) -> dict[str, int]:
        """Returns how many expectations came out so, by the words of `beside_expectation`."""
        words = [each.outcome for each in self.answered]
        return {word: words.count(word) for word in sorted(set(words))}

    def record(self) -> dict:
        """Returns it as plain values for JSON; what is not known is None or empty."""
        coefficients = self.calibration.mean_C.tolist()
        calibration = {
            "questions": len(self.answered),
            "outcomes": self.outcomes(),
            "slope": coefficients[0],
            "shift": coefficients[1],
            "spread": float(self.calibration.spread),
            "kind_spread": float(self.calibration.kind_spread),
            "kinds": dict(zip(self.kinds, coefficients[2:], strict=True)),
            "answered": [each._asdict() for each in self.answered],
        }
        values: dict[str, Any] = {
            "parent": self.parent,
            "stop": self.best is None,
            "best": self.best.name if self.best else None,
            "ranked": [{**each._asdict(), "ratio": each.ratio} for each in self.ranked],
            "target": self.target,
            "stakes": self.stakes._asdict(),
            "seed_deviation": self.noise.deviation,
            "margin": self.noise.margin,
            "calibration": calibration,
            "closed": self.closed,
            "refused": self.refused,
        }
        return {name: to_json(value) for name, value in values.items()}


class _Known(NamedTuple):
    """What is known of a parent."""

    base: Resolved
    runs: Path
    seeds: int
    """Finished seeds of it."""
    answered: Sequence[Answered]
    kinds: Sequence[str]
    calibration: Calibration
    stakes: Stakes
    noise: Noise
    seconds: Mapping[str, float]
    """Of a run of each experiment, by name."""


class _Asked(NamedTuple):
    """A question, and how it goes on."""

    name: str
    """Of its file."""
    one: Resolved
    begun: Begun
    first: int
    """Seeds at the next analysis."""
    power: Power
    missing: Sequence[Job]
    """Runs of both arms until then."""


def rank_questions(
    parent: str,
    runs: Path,
    *,
    target: str = "",
    hours: float = math.nan,
    runs_to_come: float = 1.0,
    complexity: float = COMPLEXITY,
    most_seeds: int = 8,
) -> Ranking:
    """Returns the open questions of a parent, ranked.

    Args:
        runs: the folder of all run folders, with the ledger.
        target: the experiment of the runs to come; by default one that takes `LARGER` times the parent's operations.
        hours: device hours of one such run, where they are known; else by the parent's hours for each operation.
        runs_to_come: so many such runs.
        complexity: share of their hours that each changed field has to save.
        most_seeds: up to which a question is followed.

    Raises:
        UserError: an experiment is not found, no variant can be applied to the parent, or it has no finished run whose
            loss curve falls.
    """
    base = resolve(parent)
    finished = read_runs(runs, base.name).finished
    train = f"train one: `jaxformer train --experiment={base.name}`"
    require(bool(finished), f"{runs / base.name}: no run of {base.name} is finished to tell what a run takes; {train}")
    share = Rule().equal_tokens
    margin = margin_of_tokens(finished, share).bits_per_byte
    require(margin > 0, f"{base.name}: the loss curves of its runs do not fall, and tell not what a gain is worth")
    answered = read_answered(runs)
    found = find_questions(base, answered)
    records = {name: record_of(runs, one) for name, one in found.questions.items()}
    closed = {name: one.word.value for name, one in records.items() if one and not _is_open(one, most_seeds)}
    asked = {name: one for name, one in found.questions.items() if name not in closed}
    kinds = sorted({each.kind for each in answered} | {kind_of(one.lineage.change) for one in asked.values()})
    seconds = estimate_seconds([base, *asked.values()], runs)
    what, each = _run_to_come(base, seconds[base.name] / 3600, target, hours)
    known = _Known(
        base=base,
        runs=runs,
        seeds=len(finished),
        answered=answered,
        kinds=kinds,
        calibration=calibrate(_as_answers(answered, kinds), len(kinds)),
        stakes=Stakes(runs_to_come * each, margin / math.log1p(share), complexity),
        noise=_noise(margin, [one for one in records.values() if one and one.difference]),
        seconds=seconds,
    )
    ranked = [_rank(known, question) for question in _how_they_go_on(known, asked, records, most_seeds)]
    ranked.sort(key=lambda each: (-each.ratio, each.name))
    what = f"{runs_to_come:g} x {what}" if runs_to_come != 1 else what
    calibrated = tuple(answered), tuple(kinds), known.calibration
    return Ranking(base.name, tuple(ranked), *calibrated, closed, found.refused, what, known.stakes, known.noise)


def _is_open(record: Record, most_seeds: int) -> bool:
    """Returns whether a question goes on: its next analysis is advised, and within the most seeds."""
    later = next_analysis(len(record.seeds))
    return record.word is Word.UNDECIDED and bool(record.more_seeds) and later is not None and later <= most_seeds


def _as_answers(answered: Sequence[Answered], kinds: Sequence[str]) -> Answers:
    ends = np.array([each.expected for each in answered], np.float64).reshape(-1, 2)
    kind_N = np.array([kinds.index(each.kind) for each in answered], np.int64)
    measured = np.array([(each.effect, each.error) for each in answered], np.float64).reshape(-1, 2)
    return Answers(ends[:, 0], ends[:, 1], kind_N, measured[:, 0], measured[:, 1])


def _run_to_come(base: Resolved, base_hours: float, target: str, hours: float) -> tuple[str, float]:
    """Returns what the run to come is, in words, and its device hours."""
    what, ratio = f"a run of {LARGER:g} times the operations (assumed: name yours by --target or --hours)", LARGER
    if target:
        one = resolve(target).experiment
        what, ratio = f"a run of {one.name}", training_flops(one) / training_flops(base.experiment)
    return (what, base_hours * ratio) if math.isnan(hours) else (what if target else "a run", hours)


def _noise(margin: float, records: Sequence[Record]) -> Noise:
    """Returns what hides an effect, by the comparisons with the parent so far."""
    known = []
    for one in records:
        if one.difference and one.difference.seeds_counted and len(one.seeds) > 1:
            own = one.difference.own[0] if one.difference.own else one.difference.seed_variance
            known.append((own * len(one.seeds), len(one.seeds) - 1.0, one.difference.item_variance))
    variances, df, items = np.array(known, np.float64).reshape(-1, 3).T
    total = (variances * df).sum() + _NOISE_DF * (_NOISE_IN_MARGINS * margin) ** 2
    prior = fit_prior(variances, df) if (variances > 0).sum() >= 3 else None
    item_variance = float(np.median(items)) if len(items) else 0.0
    return Noise(math.sqrt(total / (df.sum() + _NOISE_DF)), margin, item_variance, prior)


def _how_they_go_on(
    known: _Known, asked: Mapping[str, Resolved], records: Mapping[str, Record | None], most_seeds: int
) -> list[_Asked]:
    """Returns the questions, each with the runs that its next analysis takes."""
    new, found = power(known.noise, most_seeds), []
    begun = {name: _begun(records[name]) for name in asked}
    first = {name: next_analysis(one.seeds) or one.seeds for name, one in begun.items()}
    for seeds in sorted(set(first.values())):
        names = tuple(name for name, each in first.items() if each == seeds)
        study = Study(parent=known.base.name, variants=names, seeds=seeds, parent_seeds=seeds)
        jobs = [job for each in make_jobs(study, known.runs, known.seconds) for job in each]
        missing = [job for job in jobs if state_on_disk(job.workdir)[0] not in OVER]
        for name in names:
            one, go_on = asked[name], begun[name]
            of_it = [job for job in missing if experiment_of(job) == one.name]
            # At other rates than its own the parent runs for what is retuned alone.
            parents = [job for job in missing if experiment_of(job) == known.base.name]
            parents = [job for job in parents if one.is_retuned or AD_HOC not in job.workdir.parent.name]
            followed = power(known.noise, most_seeds, go_on) if go_on.seeds else new
            found.append(_Asked(name, one, go_on, seeds, followed, [*of_it, *parents]))
    return found


def _rank(known: _Known, asked: _Asked) -> Ranked:
    """Returns what is expected of a question."""
    one, change = asked.one, asked.one.lineage.change
    fields = len(describe_change(change))  # A part that is put in counts as one.
    belief, why = _belief(known, one, asked.name, kind_of(change))
    if asked.begun.seeds:
        why.append(f"{asked.begun.mean:+.4f} after {asked.begun.seeds} seeds, undecided")
    ratio = training_flops(one.experiment) / training_flops(known.base.experiment)
    found = prospect(belief, asked.power, known.stakes, np.array([ratio]), np.array([float(fields)]))
    if not asked.missing:
        why.append("its runs are finished, and the command judges them")
    if one.is_retuned:
        why.append("each arm at its best learning rate")
    if ratio > 1 + _SHOWN or ratio < 1 - _SHOWN:
        why.append(f"{ratio:.2f} x the operations")
    if fields > 1:
        why.append(f"{fields} fields")
    low, high = belief.quantiles(np.array([0.1, 0.9]))[0].tolist()
    options = [f"--parent={known.base.name}", f"--variants={asked.name}", f"--seeds={asked.first}"]
    options += [f"--runs={known.runs}"] * (known.runs != Path("runs"))
    return Ranked(
        name=asked.name,
        question=one.experiment.question,
        kind=kind_of(change),
        expected=_expected(one),
        effect=float(found.effect[0]),
        interval=(low, high),
        kept=float(found.kept[0]),
        seeds=float(found.seeds[0]),
        hours=_hours(known, asked, found),
        saved=float(found.saved[0]),
        why=tuple(why),
        command=("jaxformer", "ablate", *options),
    )


def _expected(one: Resolved) -> tuple[float, float]:
    return one.lineage.expected or (math.nan, math.nan)


def _belief(known: _Known, one: Resolved, name: str, kind: str) -> tuple[Belief, list[str]]:
    """Returns what the effect of a question may be before it is measured of this parent, and what that is made of.

    An answer to the same question about an ancestor counts as much as an expectation: a verdict belongs to its parent
    (in the published studies, effects of a change on two parents differ by as many half-widths as expectations err by).
    """
    low, high = _expected(one)
    index, kept = np.array([known.kinds.index(kind)]), _kept_of_kind(known.base, kind)
    belief = known.calibration.belief(np.array([low]), np.array([high]), index, np.array([float(kept)]))
    why = [f"{kept} kept of its kind"] if kept else []
    ancestors = [each.name for each in known.base.line[1:]]
    earlier = [each for each in known.answered if each.variant.partition(OF)[0] == name and each.parent in ancestors]
    if earlier:
        last = min(earlier, key=lambda each: ancestors.index(each.parent))
        why.append(f"{last.verdict} of {last.parent}, {last.effect:+.4f}")
        other = math.hypot(float(known.calibration.spread) * (high - low) / 2, last.error)
        weight_N = other**2 / (other**2 + belief.scale_N**2)
        mean_N = weight_N * belief.mean_N + (1 - weight_N) * last.effect
        belief = Belief(mean_N, belief.scale_N * np.sqrt(weight_N), belief.left_N)
    return belief, why


def _kept_of_kind(base: Resolved, kind: str) -> int:
    """Returns how many changes of a kind a promoted parent keeps."""
    try:
        kept = kept_changes(base)[1] if base.promoted else []
    except UserError:
        return 0
    return sum(kind_of(each.judged.lineage.change) == kind for each in kept)


def _begun(record: Record | None) -> Begun:
    """Returns the seeds that a question has, by its comparison."""
    if record is None or record.difference is None or len(record.seeds) < INTERIM_SEEDS[0]:
        return Begun()
    one, seeds = record.difference, len(record.seeds)
    return Begun(seeds, one.mean, (one.own[0] if one.own else one.seed_variance) * seeds)


def _hours(known: _Known, asked: _Asked, found: Prospect) -> float:
    """Returns the expected device hours of a question.

    Of its runs up to the next analysis that are missing, of further seeds as far as they are expected, and of the three
    seeds of a new parent if it is kept.
    """
    hours = sum(job.estimated_seconds * job.devices for job in asked.missing) / 3600
    each, parent = (known.seconds[one.name] * one.experiment.mesh.devices / 3600 for one in (asked.one, known.base))
    seeds, runs = float(found.seeds[0]), RUNS_AT_BEST if asked.one.is_retuned else 1
    further, lacking = max(0.0, seeds - asked.first), max(0.0, seeds - max(asked.first, known.seeds))
    return hours + runs * (further * each + lacking * parent) + float(found.kept[0]) * INTERIM_SEEDS[0] * each
