"""Expectations of answered questions, how they came out, and what follows for an open one."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.ledger import beside_expectation, latest_verdicts, read_ledger
from jaxformer.ablation.records import read_records
from jaxformer.config import UserError
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import kept_changes
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import OF
from jaxformer.statistics.expectations import Belief, Calibration, Expectations, calibrate

# Kinds of changes of the model, each with its fields.
_PARTS = {
    "attention": "attention heads key_value_heads head_width qk_norm rope_base learned_positions sliding_window "
    "window_pattern",
    "feed-forward": "feed_forward feed_forward_width activation",
    "norm and residual": "norm norm_epsilon residual scaling",
    "output": "tied_embeddings logit_soft_cap z_loss auxiliary_loss",
    "size": "width depth vocabulary_size",
}
_KIND_OF_FIELD = {field: kind for kind, fields in _PARTS.items() for field in fields.split()}
_KIND_OF_SECTION = {"training": "optimizer", **dict.fromkeys(("corpus", "tokenizer", "packing"), "data")}


def kind_of(paths: Collection[str]) -> str:
    """Returns the kind of a question, from the first by name of the fields that it changes: its part of the model.

    Else 'optimizer' for the optimizer and the training, 'data' for corpus, tokenizer and packing, or the section.
    """
    section, *fields = min(paths, default="unknown").split(".")
    if section == "model" and fields:
        return _KIND_OF_FIELD.get(fields[0], section)
    return _KIND_OF_SECTION.get(section, section)


class AnsweredQuestion(NamedTuple):
    """An answered question from the ledger, and how its expectation came out."""

    parent: str
    variant: str
    kind: str
    verdict: str
    expected: tuple[float, float]
    effect: float
    """The measured effect, bits per byte."""
    error: float
    """Its standard error."""
    outcome: str
    """As of `beside_expectation`."""


def read_answered(runs: Path) -> list[AnsweredQuestion]:
    """Returns the answered questions of a folder of runs, in order: measured ones that leave no change out."""
    found = []
    for (parent, variant), line in latest_verdicts(read_ledger(runs)).items():
        difference, expected = line.get("difference") or {}, line.get("expected")
        mean, error = difference.get("mean"), difference.get("standard_error")
        if mean is not None and error and expected and not line.get("leaves_out"):
            outcome, kind = beside_expectation(difference, expected), _kind_of_answered(runs, variant)
            measured = line["verdict"], tuple(expected), mean, error, outcome
            found.append(AnsweredQuestion(parent, variant, kind, *measured))
    return found


def _kind_of_answered(runs: Path, variant: str) -> str:
    """Returns the kind of a variant from its recorded comparison, else from its file; 'unknown' without either."""
    for record in read_records(runs / variant):
        if change := record.lineage.get("change"):
            return kind_of(change)
    try:
        return kind_of(resolve(variant).lineage.change)
    except UserError:
        return "unknown"


class PastExpectations(NamedTuple):
    """Answered questions, and what they show about expectations."""

    questions: tuple[AnsweredQuestion, ...]
    kinds: tuple[str, ...]
    """Kinds of these, and of the open ones."""
    calibration: Calibration

    def outcomes(self) -> dict[str, int]:
        """Returns the number of expectations for each word of `beside_expectation`."""
        words = [each.outcome for each in self.questions]
        return {word: words.count(word) for word in sorted(set(words))}


def calibrate_by(questions: Sequence[AnsweredQuestion], open_kinds: Collection[str]) -> PastExpectations:
    """Returns what answered questions show.

    Args:
        open_kinds: kinds of the open questions.
    """
    kinds = sorted({each.kind for each in questions}.union(open_kinds))
    columns = [(*each.expected, kinds.index(each.kind), each.effect, each.error) for each in questions]
    expectations = Expectations(*np.array(columns, np.float64).reshape(-1, 5).T)
    return PastExpectations(tuple(questions), tuple(kinds), calibrate(expectations, len(kinds)))


def believe(past: PastExpectations, parent: Resolved, name: str, one: Resolved) -> tuple[Belief, list[str]]:
    """Returns the belief about a question's effect before it is measured on this parent, and its reasons.

    An answer to the same question about an ancestor counts as much as an expectation, since a verdict belongs to its
    parent: in the published studies, a change's effects on two parents differ by as many half-widths as expectations
    err by.

    Args:
        name: of the question's file.
        one: the question, put to the parent.
    """
    low, high = one.lineage.expected or (math.nan, math.nan)
    kind = kind_of(one.lineage.change)
    index, kept = past.kinds.index(kind), _kept_of_kind(parent, kind)
    belief = past.calibration.belief(np.array([low]), np.array([high]), np.array([index]), float(kept))
    why = [f"{kept} kept of its kind"] if kept else []
    ancestors = [each.name for each in parent.line[1:]]
    earlier = [each for each in past.questions if each.variant.partition(OF)[0] == name and each.parent in ancestors]
    if earlier:
        last = min(earlier, key=lambda each: ancestors.index(each.parent))
        why.append(f"{last.verdict} of {last.parent}, {last.effect:+.4f}")
        other = math.hypot(float(past.calibration.spread) * (high - low) / 2, last.error)
        weight_N = other**2 / (other**2 + belief.scale_N**2)
        mean_N = weight_N * belief.mean_N + (1 - weight_N) * last.effect
        belief = Belief(mean_N, belief.scale_N * np.sqrt(weight_N), belief.left_N)
    return belief, why


def _kept_of_kind(parent: Resolved, kind: str) -> int:
    """Returns how many changes of a kind a promoted parent keeps."""
    try:
        kept = kept_changes(parent)[1] if parent.promoted else []
    except UserError:
        return 0
    return sum(kind_of(each.judged.lineage.change) == kind for each in kept)
