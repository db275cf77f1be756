"""Consequences that keep the comparison of a change fair: values solved from the parent, never chosen.

A consequence is a function from (parent, child) to new values by dotted path; it may only set `paths`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxformer.config import replace, require
from jaxformer.experiment.experiment import Experiment
from jaxformer.flops import parameter_count

# Share by which a child's parameters may differ from its parent's and still count as equal.
TOLERANCE = 0.02


@dataclass(frozen=True)
class SolvedFeedForwardWidth:
    """The feed-forward width, in steps of `multiple_of`, that brings the child's parameters nearest to its parent's."""

    multiple_of: int = 8
    paths: ClassVar[tuple[str, ...]] = ("model.feed_forward_width",)

    def __call__(self, parent: Experiment, child: Experiment) -> dict[str, Any]:
        """Raises: UserError: no width brings the parameters within `TOLERANCE`."""

        def values(number: int) -> dict[str, Any]:
            return {self.paths[0]: number * self.multiple_of}

        solved = _nearest(parent, child, values)
        ours, theirs = (parameter_count(one.model) for one in (replace(child, solved), parent))
        require(
            abs(ours / theirs - 1) <= TOLERANCE,
            f"no feed-forward width gives the parent's {theirs:,} parameters; {solved[self.paths[0]]} gives {ours:,}",
        )
        return solved


@dataclass(frozen=True)
class SolvedWidth:
    """The width, in heads of the parent's width, that brings the child's parameters nearest to its parent's.

    Whole heads are coarse: let `SolvedFeedForwardWidth` follow, to correct the rest.
    """

    paths: ClassVar[tuple[str, ...]] = ("model.width", "model.heads")

    def __call__(self, parent: Experiment, child: Experiment) -> dict[str, Any]:
        """Returns the width and heads, by dotted path."""
        model = child.model
        step = model.key_value_heads or 1  # A number of heads that groups can share.

        def values(number: int) -> dict[str, Any]:
            return {"model.width": number * step * parent.model.K, "model.heads": number * step}

        return _nearest(parent, child, values)


def times(factor: float) -> Callable[[Any, Experiment], Any]:
    """Returns a change of a number by a factor, so that the same variant can be applied to any parent.

    It raises `UserError` where a whole number would become a fraction.
    """

    def scaled(value: Any, parent: Experiment) -> Any:
        product = value * factor
        if isinstance(value, float):
            return product
        require(float(product).is_integer(), f"{factor:g} times {value} is not a whole number")
        return int(product)

    return scaled


def _nearest(parent: Experiment, child: Experiment, values: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Returns `values(n)` for the n >= 1 with the parameters nearest to the parent's; they must increase with n."""
    wanted = parameter_count(parent.model)

    def count(n: int) -> int:
        return parameter_count(replace(child, values(n)).model)

    def between(a: int, b: int) -> int:
        """Interpolates the wanted count: parameters are nearly linear in n."""
        require(
            count(a) < count(b), f"the parameters do not depend on {', '.join(values(1))}: leave the consequence out"
        )
        return a + math.ceil((wanted - count(a)) * (b - a) / (count(b) - count(a)))

    below, above = 1, 2
    while count(above) < wanted:
        below, above = above, max(above + 1, between(below, above))
    while above - below > 1:
        middle = min(max(between(below, above), below + 1), above - 1)
        below, above = (middle, above) if count(middle) < wanted else (below, middle)
    return values(min(below, above, key=lambda n: abs(count(n) - wanted)))
