"""What is known about a change at several sizes and at a target size, and the runs that would decide it.

Axes: L place along the compute.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation import verdict
from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.ablation.records import to_json
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.transfer import Effect, Prediction, TransferVerdict
from jaxformer.statistics.transfer_design import POWER, Design, Designs, SizeOption


class SizeResult(NamedTuple):
    """The result of a change at one size."""

    size: str
    """The experiment that was changed."""
    variant: str
    compute: float
    """Floating-point operations of a run of the parent."""
    comparison: Comparison
    rates: str
    """Learning rates: 'best' of parent and variant, or the one of both, 'tuned' for the parent or not."""
    is_tuned: bool
    """Whether they are best or tuned."""
    hours: float
    """Device hours of a seed of both arms, at all rates that it needs."""
    parent_hours: float
    """Device hours of a run of the parent."""
    pairs: Sequence[tuple[FinishedRun, FinishedRun]]
    """The compared runs (parent, variant) of each seed; none if each arm is taken at its best rate."""
    why_not: str = ""
    """Why it does not count; '' if it does."""

    @property
    def difference(self) -> Difference | None:
        """Variant minus parent; None if they are not compared, or the seed noise is unknown."""
        found = self.comparison.difference
        is_compared = self.comparison.verdict.word is not verdict.Word.NOT_COMPARED
        return found if is_compared and found and found.seeds_counted else None


class Proposal(NamedTuple):
    """Runs that would decide a question."""

    options: list[tuple[str, SizeOption]]
    """Sizes that could be trained, and the target, by compute."""
    effect: float
    """Bits per byte that designs should detect: the expected effect at the target, or the smallest that matters if
    that is larger.
    """
    designs: Designs
    budget: float
    """Device hours to spend."""
    has_hours: bool
    """Whether hours are hours; without a run that shows their speed, they are floating-point operations."""
    assumed: tuple[str, ...]
    """Assumptions that no run has shown."""

    def suffices(self, design: Design) -> bool:
        """Returns whether a design has the wanted power within the budget."""
        return design.power >= POWER and design.hours <= self.budget


class TransferResult(NamedTuple):
    """What is known about a change at the target."""

    variant: str
    target: str
    compute: float
    """Floating-point operations of a run of the target."""
    sizes: list[SizeResult]
    """Sizes with finished runs of both arms, by compute."""
    verdict: TransferVerdict
    reason: str
    prediction: Prediction | None
    """None with no size that counts."""
    law: tuple[np.ndarray, Effect] | None
    """Computes (L,) from the smallest size to the target, and the effects there."""
    proposal: Proposal | None
    """None if it is decided, or nothing can be predicted."""
    unread: tuple[str, ...]
    """A line on each run folder that could not be read."""
    runs: Path
    """The folder of all run folders."""

    @property
    def counted(self) -> list[SizeResult]:
        """The sizes that count."""
        return [one for one in self.sizes if not one.why_not]

    def commands(self, design: Design) -> list[str]:
        """Returns the commands that train a design of the proposal."""
        lines = []
        for (size, option), seeds in zip(self.proposal.options if self.proposal else [], design.seeds_N, strict=True):
            if seeds > option.seeds:
                where = [] if self.runs == Path("runs") else [f"--runs={self.runs}"]
                options = [f"--parent={size}", f"--variants={self.variant}", f"--seeds={seeds}", *where]
                lines.append(shlex.join(["jaxformer", "ablate", *options]))
        return lines

    def record(self) -> dict:
        """Returns it as plain values for JSON; unknown values are None or empty."""
        target, proposal = self.prediction and self.prediction.target, self.proposal
        cost = "device_hours" if proposal and proposal.has_hours else "operations"
        designs = {
            name: {
                "power": one.power,
                cost: one.hours,
                "suffices": name != "hint" and proposal.suffices(one),
                "commands": self.commands(one),
            }
            for name, one in (proposal.designs._asdict().items() if proposal else ())
            if proposal and one
        }
        values = {
            **{name: getattr(self, name) for name in ("variant", "target", "compute", "reason")},
            "word": self.verdict.value,
            "effect": target and target.mean,
            "interval": target and [target.low, target.high],
            "same_sign": self.prediction and self.prediction.same_sign,
            "margin": self.prediction and self.prediction.margin,
            "sizes": [_record(one) for one in self.sizes],
            "designed_for": proposal and proposal.effect,
            "assumed": proposal.assumed if proposal else [],
            "unread": self.unread,
            "designs": designs,
        }
        return {name: to_json(value) for name, value in values.items()}


def _record(one: SizeResult) -> dict:
    return {
        **{name: getattr(one, name) for name in ("variant", "compute", "rates", "why_not")},
        "parent": one.size,
        "seeds": one.comparison.seeds,
        "difference": one.difference and one.difference.mean,
        "standard_error": one.difference and one.difference.standard_error,
        "verdict": one.comparison.verdict.word,
        "tuned": one.is_tuned,
    }
