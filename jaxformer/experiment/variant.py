"""Questions: an experiment as one change of another, checked to change nothing else.

A file in `experiments/` assigns an `Experiment`, which stands alone; a `Variant`, a change of a parent; a `Merge` of
variants; or a `Promoted` variant, which was kept and is the next parent. The links to the parents are the edges of the
graph of ablations.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from jaxformer.config import Bounds, OneOf, check_fields, require
from jaxformer.experiment.best_rate import RETUNE
from jaxformer.experiment.experiment import Experiment

# Between the names of a variant and of another parent than its own.
OF = "@"

# Between the names of variants of one parent that are joined without a file, as in a `Merge`.
JOIN = "+"

# Between the names of a promoted experiment and of a change that is left out of it.
WITHOUT = "_without_"

# Before the mark of an experiment with scientific fields set on the command line.
AD_HOC = "~"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same as its parent but for one change."""

    parent: str
    """The experiment that is changed."""
    question: str
    """The question that the change answers."""
    change: Mapping[str, Any]
    """New values by dotted path, or functions of (the parent's value, the parent), such as `times(2)`. A section's path
    takes a whole configuration.
    """
    bundle: str = ""
    """Why several fields are one idea; '' for a change of one field."""
    consequences: tuple[Callable[[Experiment, Experiment], dict[str, Any]], ...] = ()
    """What is solved, in order, to keep the comparison fair, such as `SolvedFeedForwardWidth()`."""
    expected: tuple[float, float]
    """The expected interval of the change in validation bits per byte, written down before it is measured; negative is
    better.
    """
    source: str
    """The source of the expectation."""
    retune: Annotated[str, OneOf(*RETUNE)] = "auto"
    """'learning_rate' compares the variant and its parent each at its best learning rate, found by runs at three rates
    or more; 'off' compares them at the parent's; 'auto' retunes if the change moves the best rate (`best_rate.py`).
    """

    def __post_init__(self):
        check_fields(self)
        require(bool(self.parent), "a variant must name its parent")
        is_mapping = isinstance(self.change, Mapping) and all(isinstance(path, str) for path in self.change)
        require(is_mapping, f"change ({self.change!r}) must be values by dotted path")
        require(bool(self.change), "a variant must change something")
        for each in self.consequences:
            require(
                callable(each) and hasattr(each, "paths") and not isinstance(each, type),
                f"consequence {each!r} is chosen, not solved; use one of jaxformer.experiment.consequences, such as "
                "SolvedFeedForwardWidth(), or declare it in the change",
            )
        _check_expectation(self)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Two variants or more with an ancestor in common, joined: the only experiment with more than one change."""

    parents: tuple[str, ...]
    """The variants; it is compared with the first, and shows how the changes interact."""
    question: str
    expected: tuple[float, float]
    source: str
    retune: Annotated[str, OneOf(*RETUNE)] = "auto"
    """`question`, `expected`, `source` and `retune`: as of a `Variant`, against the first parent."""

    def __post_init__(self):
        check_fields(self)
        are_different = len(set(self.parents)) == len(self.parents) >= 2
        require(are_different, f"a merge needs two different parents or more, not {self.parents!r}")
        _check_expectation(self)


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A variant that was kept, as the parent of the next questions."""

    variant: str
    """Its name, without its parent's."""
    parent: str
    """The experiment that it changes: its parent; of a merge, the nearest ancestor of all parts."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path that were tuned for the variant, such as its learning rate; only of the optimizer."""
    evidence: str
    """The hexadecimal SHA-256 of the comparison that decided to keep it."""
    verdict: str
    """The decision, and its numbers."""
    first_seed: Annotated[int, Bounds(at_least=1)]
    """The first of its seeds, and of its variants': none of the seeds that chose it."""

    def __post_init__(self):
        check_fields(self)
        require(bool(self.parent), "a promoted variant must name the parent that it changes")
        require(OF not in self.variant, f"variant ({self.variant}) must be the name of a file; its parent has a field")
        require(
            re.fullmatch("[0-9a-f]{64}", self.evidence) is not None,
            f"evidence ({self.evidence}) must be the SHA-256 of a comparison, 64 hexadecimal digits",
        )
        for path in self.change:
            require(
                isinstance(path, str) and path.startswith("optimizer."),
                f"the change of {path} is more than tuning: a promoted variant may only set fields of the optimizer; "
                "put other changes into a variant of it",
            )


def _check_expectation(question: Variant | Merge) -> None:
    require(bool(question.question.strip()), "a variant must ask a question")
    require(bool(question.source.strip()), "a variant must say where its expectation comes from: source")
    low, high = question.expected
    require(low < high, f"expected ({low}, {high}) must be an interval (low, high) of bits per byte")
