"""The open questions of a parent, ranked by the device hours that each is expected to save per hour that it takes.

The expected effect is the one in its file, corrected by how far earlier expectations came true. The cost comes from
finished runs, and the decision is simulated. A kept gain saves the share of the hours to come that the tokens take
which give the same gain, by the slope of the parent's own loss curve.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun, read_runs
from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.open_questions import find_questions, record_of
from jaxformer.ablation.past_expectations import PastExpectations, believe, calibrate_by, kind_of, read_answered
from jaxformer.ablation.question_cost import hours_of_a_run, run_costs, run_to_come
from jaxformer.ablation.records import Record, to_json
from jaxformer.ablation.study import ablate_command, estimate_seconds
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import require
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.lineage import Resolved, changed_settings
from jaxformer.experiment.resolution import resolve
from jaxformer.host.console import show_status
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.question_value import ParentRuns, Question, RunCosts, question_value
from jaxformer.statistics.significance import INTERIM_SEEDS, next_analysis

# Share of the hours to come that each changed field must save before it is worth anything: a quarter of the margin
# within which two models count as equal. A choice, as that margin is.
COMPLEXITY = 0.005

# Standard deviation of one seed's paired difference before any is known, in margins, and its weight beside known ones:
# the median of the first 28 questions whose reports are in `tools/results`.
_NOISE_IN_MARGINS, _NOISE_DF = 2.0, 2.0

# Differences in operations above this share are reported.
_SHOWN = 0.02


class Ranked(NamedTuple):
    """An open question, and its expected outcome."""

    name: str
    """The name of its file."""
    question: str
    kind: str
    expected: tuple[float, float]
    """The interval in its file, bits per byte."""
    effect: float
    """Mean of the effect's distribution, from all that is known."""
    interval: tuple[float, float]
    """80 % interval of the same."""
    kept: float
    """Probability that the change is kept, by KEEP or EQUIVALENT BUT CHEAPER."""
    seeds: float
    """Expected seeds at the end."""
    hours: float
    """Expected device hours of its runs, and of a new parent's if it is kept."""
    saved: float
    """Expected device hours that it saves in the runs to come, less the price of its complexity."""
    why: tuple[str, ...]
    """What the numbers are based on, beside the expectation."""
    command: tuple[str, ...]
    """The command that runs it."""

    @property
    def ratio(self) -> float:
        """Hours that it is expected to save per hour that it takes."""
        return self.saved / max(self.hours, 1e-9)  # If its runs are finished and it will not be kept.


class Ranking(NamedTuple):
    """The question to ask next, and the basis of the ranking."""

    parent: str
    ranked: tuple[Ranked, ...]
    """The best first."""
    past: PastExpectations
    closed: Mapping[str, str]
    """The decisions on the parent's closed questions, by the name of the file."""
    refused: Mapping[str, str]
    """Why others cannot change it, by that name."""
    target: str
    """The runs to come, in words."""
    hours_to_come: float
    """Their device hours with the parent."""
    complexity: float
    """Share of them that each changed field must save before it is worth anything."""
    parent_runs: ParentRuns

    @property
    def best(self) -> Ranked | None:
        """The question to ask; None if none is expected to save its cost."""
        return self.ranked[0] if self.ranked and self.ranked[0].ratio > 1 else None

    def record(self) -> dict:
        """Returns it as plain values for JSON; unknown values are None or empty."""
        calibration, coefficients = self.past.calibration, self.past.calibration.mean_C.tolist()
        values: dict[str, Any] = {
            "parent": self.parent,
            "stop": self.best is None,
            "best": self.best.name if self.best else None,
            "ranked": [{**each._asdict(), "ratio": each.ratio} for each in self.ranked],
            "target": self.target,
            "hours_to_come": self.hours_to_come,
            "complexity": self.complexity,
            "seed_deviation": self.parent_runs.deviation,
            "margin": self.parent_runs.margin,
            "slope": self.parent_runs.slope,
            "calibration": {
                "questions": len(self.past.questions),
                "outcomes": self.past.outcomes(),
                "slope": coefficients[0],
                "shift": coefficients[1],
                "spread": float(calibration.spread),
                "kind_spread": float(calibration.kind_spread),
                "kinds": dict(zip(self.past.kinds, coefficients[2:], strict=True)),
                "answered": self.past.questions,
            },
            "closed": self.closed,
            "refused": self.refused,
        }
        return {name: to_json(value) for name, value in values.items()}


def rank_questions(
    parent: str,
    runs: Path,
    *,
    target: str = "",
    target_hours: float = math.nan,
    runs_to_come: float = 1.0,
    complexity: float = COMPLEXITY,
    most_seeds: int = 8,
) -> Ranking:
    """Returns the open questions of a parent, ranked.

    Args:
        runs: the folder of all run folders, with the ledger.
        target, target_hours: the run to come, as of `run_to_come`.
        runs_to_come: number of such runs.
        complexity: share of their hours that each changed field must save.
        most_seeds: of a question.

    Raises:
        UserError: an experiment is not found, no variant can be applied to the parent, or it has no finished run whose
            loss curve falls.
    """
    base = resolve(parent)
    finished = read_runs(runs, base.name).finished
    train = f"train one: `jaxformer train --experiment={base.name}`"
    require(bool(finished), f"{runs / base.name}: no finished run of {base.name} shows how long a run takes; {train}")
    show_status("reading the questions")
    answered = read_answered(runs)
    found = find_questions(base, answered)
    records = {name: record_of(runs, one) for name, one in found.questions.items()}
    closed = {name: one.word.value for name, one in records.items() if one and not _is_open(one, most_seeds)}
    asked = {name: one for name, one in found.questions.items() if name not in closed}
    parent_runs = _parent_runs(base.name, finished, [one for one in records.values() if one])
    names = {one.name for one in asked.values()}
    # The measurement of an open question counts once, and not for its kind as well.
    others = [each for each in answered if each.parent != base.name or each.variant not in names]
    past = calibrate_by(others, {kind_of(one.lineage.change) for one in asked.values()})
    seconds = estimate_seconds([base, *asked.values()], runs)
    what, each = run_to_come(base, hours_of_a_run(base, seconds), target, target_hours)
    what = f"{runs_to_come:g} x {what}" if runs_to_come != 1 else what
    to_come = what, runs_to_come * each, complexity
    ranking = Ranking(base.name, (), past, closed, found.refused, *to_come, parent_runs)
    ranked = []
    for name, one in asked.items():
        show_status(f"weighing {name}")
        question = _question(base, one, records[name])
        costs = run_costs(base, name, one, runs, seconds, seeds=question.seeds, parent_seeds=len(finished))
        each = _rank(ranking, base, name, one, question, costs, runs, most_seeds)
        record = records[name]
        if record and record.word is Word.NOT_COMPARED:
            each = each._replace(why=(*each.why, f"its runs were not compared: {record.reason}"))
        ranked.append(each)
    show_status()
    ranked.sort(key=lambda each: (-each.ratio, each.name))
    return ranking._replace(ranked=tuple(ranked))


def _is_open(record: Record, most_seeds: int) -> bool:
    """Returns whether a question is unanswered or continues: its next analysis is advised, within the most seeds."""
    if record.word is Word.NOT_COMPARED or (record.word is Word.UNDECIDED and record.difference is None):
        return True  # Nothing has answered it yet.
    later = next_analysis(len(record.seeds))
    return record.word is Word.UNDECIDED and bool(record.more_seeds) and later is not None and later <= most_seeds


def _parent_runs(name: str, finished: Sequence[FinishedRun], records: Sequence[Record]) -> ParentRuns:
    """Returns what the finished runs of a parent, and the comparisons with them so far, show.

    Raises:
        UserError: their loss curves do not fall.
    """
    share = Rule().equal_tokens
    margin = margin_of_tokens(finished, share).bits_per_byte
    require(margin > 0, f"{name}: the loss curves of its runs do not fall, so that the worth of a gain is unknown")
    variances, item_variances = {}, []
    for one in records:
        if one.difference and one.difference.seeds_counted and len(one.seeds) > 1:
            variances[one.variant] = _seed_variance(one.difference, len(one.seeds)), len(one.seeds) - 1
            item_variances.append(one.difference.item_variance)
    variance_N, df_N = np.array([((_NOISE_IN_MARGINS * margin) ** 2, _NOISE_DF), *variances.values()]).T
    return ParentRuns(
        deviation=math.sqrt(np.average(variance_N, weights=df_N)),
        margin=margin,
        slope=margin / math.log1p(share),
        item_variance=float(np.median(item_variances)) if item_variances else 0.0,
        prior=noise_floor(finished)._replace(variances=variances).prior("", INTERIM_SEEDS[0]),
    )


def _seed_variance(difference: Difference, seeds: int) -> float:
    """Returns the variance of one seed's difference, from the seeds of this comparison alone."""
    return (difference.own[0] if difference.own else difference.seed_variance) * seeds


def _question(parent: Resolved, one: Resolved, record: Record | None) -> Question:
    """Returns what is known of a question, from its comparison if there is one; its time follows its operations."""
    ratio = training_flops(one.experiment) / training_flops(parent.experiment)
    if record is None or record.difference is None or len(record.seeds) < INTERIM_SEEDS[0]:
        return Question(ratio)
    seeds, difference = len(record.seeds), record.difference
    return Question(ratio, seeds, difference.mean, _seed_variance(difference, seeds))


def _rank(
    ranking: Ranking,
    parent: Resolved,
    name: str,
    one: Resolved,
    question: Question,
    costs: RunCosts,
    runs: Path,
    most_seeds: int,
) -> Ranked:
    """Returns the expected outcome of a question."""
    change = one.lineage.change
    fields = len(changed_settings(change))
    belief, why = believe(ranking.past, parent, name, one)
    value = question_value(belief, ranking.parent_runs, question, most_seeds, ranking.complexity * fields)
    if question.seeds:
        why.append(f"{question.mean:+.4f} after {question.seeds} seeds, undecided")
    if not costs.until_first:
        why.append("its runs are finished, and the command judges them")
    if one.is_retuned:
        why.append("each arm at its best learning rate")
    if abs(question.time_ratio - 1) > _SHOWN:
        why.append(f"{question.time_ratio:.2f} x the operations")
    if fields > 1:
        why.append(f"{fields} fields")
    return Ranked(
        name=name,
        question=one.experiment.question,
        kind=kind_of(change),
        expected=one.lineage.expected or (math.nan, math.nan),
        effect=float(value.effect[0]),
        interval=(float(value.low[0]), float(value.high[0])),
        kept=float(value.kept[0]),
        seeds=float(value.seeds[0]),
        hours=float(costs.expected_hours(value.ends_NA, value.kept)[0]),
        saved=ranking.hours_to_come * float(value.saved[0]),
        why=tuple(why),
        command=ablate_command(parent.name, [name], int(costs.first_seeds), runs),
    )
