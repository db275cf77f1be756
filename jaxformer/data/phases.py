"""Phases of a run: the steps at which its batches change, and what each phase reads.

In rows of one length no text is read twice before all of it has been read once, for any phases:

- Rows of one length are read in one order by all phases. In each part of a mixture, a phase continues where those
  before it stopped.
- With rows of several lengths, each document is assigned to one length, at random, in proportion to the tokens that are
  trained on at that length. So no document is seen at two lengths. A run that does not finish its corpus finishes no
  length either, except for space that the packing leaves unfilled. A run of several epochs repeats the documents of its
  first phases before it reads others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from jaxformer.config import Bounds, NonNegativeFloat, NonNegativeInt32, check_fields, require

# A part of a mixture with so many times the weight of another would be all of it.
_MOST_TIMES = 1_000_000


@dataclass(frozen=True)
class Phase:
    """Batches from a step until the next phase; omitted fields are as configured, not as in the phase before."""

    start: Annotated[float, Bounds(at_least=0, below=1)]
    """Share of the steps before it."""
    weights: tuple[NonNegativeFloat, ...] = ()
    """Of the parts of a mixture, in place of their `weight`; 0 leaves a part out; () keeps `weight`."""
    rows_per_step: NonNegativeInt32 = 0
    """Rows of a batch; 0 for `training.rows_per_step`."""
    row_length: Annotated[int, Bounds(at_least=0, at_most=1 << 24)] = 0
    """Tokens of a row; 0 for `packing.row_length`, which validation and tasks always have."""

    def __post_init__(self):
        check_fields(self, "training.phases")
        require(self.row_length != 1, f"training.phases.row_length ({self.row_length}) must be 0, or at least 2")


class Span(NamedTuple):
    """Consecutive steps with one kind of batches: all of a run, or of one of its phases."""

    first_step: int
    """Steps before it."""
    steps: int
    rows_per_step: int
    row_length: int
    weights: tuple[float, ...]
    """Of each corpus; its share of the rows is in proportion."""

    def __str__(self) -> str:
        shares = ", ".join(f"{weight / sum(self.weights):.0%}" for weight in self.weights)
        return self.size + (f", of the corpora {shares} of the rows" if len(self.weights) > 1 else "")

    @property
    def size(self) -> str:
        """The size of a batch, in words."""
        return f"{self.rows_per_step} rows x {self.row_length} = {self.tokens_per_step:,} tokens"

    @property
    def tokens_per_step(self) -> int:
        """The tokens of a batch, padding included."""
        return self.rows_per_step * self.row_length

    @property
    def rows_by_corpus(self) -> list[int]:
        """How many of all its rows each corpus gives."""
        return deal_rows(self.steps * self.rows_per_step, self.weights)


def make_spans(phases: Sequence[Phase], configured: Span) -> tuple[Span, ...]:
    """Returns the spans of a run in their order; `configured` is its only one where it has no phases.

    Raises:
        UserError: a phase has no steps or changes nothing, or its weights do not fit the corpora.
    """
    spans, steps, parts = [configured], configured.steps, len(configured.weights)
    for number, phase in enumerate(phases):
        name, before, first = f"training.phases.{number}", spans[-1], round(phase.start * steps)
        require(
            len(phase.weights) in (0, parts) and (parts > 1 or not phase.weights),
            f"{name} has {len(phase.weights)} weights, which a mixture of as many parts needs: the corpus has {parts}",
        )
        span = Span(
            first,
            steps - first,
            phase.rows_per_step or configured.rows_per_step,
            phase.row_length or configured.row_length,
            phase.weights or configured.weights,
        )
        if number or first:  # A first phase from step 0 on leaves none to what is configured.
            require(
                before.first_step < first < steps,
                f"{name} begins at step {first} of {steps}, and the one before it at step {before.first_step}: each "
                "must have at least one step",
            )
            require(span[2:] != before[2:], f"{name} changes nothing: it has the same batches as before it")
            spans[-1] = before._replace(steps=first - before.first_step)
        else:
            spans.pop()
        spans.append(span)
    _check_weights(spans, parts)
    return tuple(spans)


def _check_weights(spans: Sequence[Span], parts: int) -> None:
    """Raises `UserError` if no corpus gives rows to a span, or one gives none to any."""
    for span in spans:
        require(
            any(span.weights),
            f"the weights {span.weights} of the corpora from step {span.first_step} on must not all be 0",
        )
        least, most = min(filter(None, span.weights)), max(span.weights)
        require(
            most <= _MOST_TIMES * least,
            f"the weights of the corpora from step {span.first_step} on ({least:g} and {most:g}) must lie within a "
            f"factor of {_MOST_TIMES:,}; 0 leaves a part out",
        )
    for part in range(parts):
        name = f"corpus.parts.{part}.weight" if parts > 1 else "corpus.weight"
        require(any(span.weights[part] for span in spans), f"{name} (0.0) must be above 0, here or in a phase")


def span_at(spans: Sequence[Span], step: int) -> Span:
    """Returns the span of a step, counted from 0."""
    return next(span for span in reversed(spans) if span.first_step <= step)


def deal_rows(rows: int, weights: Sequence[float]) -> list[int]:
    """Returns how many of the first rows of a mixture each part gives, as `grain.MapDataset.mix` assigns them.

    It takes whole numbers in proportion to the weights. Of the rows left by the parts before, each part gets its share,
    the last fraction rounded up.
    """
    scale, counts = 100 / min(weight for weight in weights if weight), []
    proportions = [int(weight * scale) for weight in weights]
    remaining = sum(proportions)
    for proportion in proportions:
        left = rows * (remaining - proportion) // remaining if remaining else 0
        counts.append(rows - left)
        rows, remaining = left, remaining - proportion
    return counts


def deal_documents(
    document_tokens: np.ndarray, documents: np.ndarray, shares: Mapping[int, float], *, seed: int
) -> dict[int, np.ndarray]:
    """Returns, by row length, the documents that are read in such rows, int64, ascending; each in one of them.

    Args:
        document_tokens: of all documents of a corpus.
        documents: indices of the documents to assign, ascending.
        shares: relative shares of the tokens, by row length.
    """
    if len(shares) == 1 or not any(shares.values()):
        return {length: documents if i == 0 else documents[:0] for i, length in enumerate(shares)}
    order = np.random.default_rng([seed, len(documents), len(shares)]).permutation(len(documents))
    sizes = document_tokens[documents[order]].astype(np.int64) + 1
    begins = np.cumsum(sizes) - sizes
    borders = np.cumsum(list(shares.values())) / sum(shares.values()) * sizes.sum()
    length_of = np.searchsorted(borders[:-1], begins, side="right")
    return {length: np.sort(documents[order[length_of == i]]) for i, length in enumerate(shares)}
