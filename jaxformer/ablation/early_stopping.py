"""Ending a variant that is clearly worse, before its last step: what it would cost is better spent on another question.

Variant and parent of one seed see the same batches, so the difference of their training losses is far less noisy than
either curve. A variant is never accepted early, and changes that may win late are left to the end: a higher learning
rate, a larger batch, another schedule, more blocks or a penalty all look worse at first (see Choshen et al. 2024, arXiv
2410.11840, on how curves cross).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

# Changes of these may be ahead only at the end, or move the data, whose batches then cannot be paired.
EXEMPT = (
    "optimizer.",
    "training.",
    "corpus.",
    "tokenizer.",
    "packing.",
    "model.depth",
    "model.width",
    "model.z_loss",
    "model.logit_soft_cap",
)

# Share of the steps before which nothing is stopped, and share that each of the two windows takes that are compared.
EARLIEST = 0.4
WINDOW = 0.05

# How many standard errors of the paired difference within a window it must exceed, in both windows.
STANDARD_ERRORS = 6.0

# And at which one-sided level, by the t distribution, what two runs differ by that do not even share the seed.
LEVEL = 1e-3

# Finished runs of the parent, by which that is known.
FEWEST_SEEDS = 3

_BLOCKS = 8


class Behind(NamedTuple):
    """By how much a variant is behind, nats per target, in the newest window, and what it had to exceed."""

    step: int
    difference: float
    threshold: float

    def __str__(self) -> str:
        above = f"its training loss is {self.difference:.3f} nats above its parent's"
        return f"{above} on the same batches, more than {self.threshold:.3f}"


def may_stop(changed_paths: Iterable[str]) -> bool:
    """Returns whether a change of these fields may be judged before its end."""
    return not any(path.startswith(EXEMPT) for path in changed_paths)


def clearly_worse(
    variant_losses: np.ndarray, parent_losses: np.ndarray, parent_ends: Sequence[float], steps: int
) -> Behind | None:
    """Returns by how much a variant is behind if it is clearly worse by now, else None.

    Args:
        variant_losses: training losses so far, nats per target by step from 0.
        parent_losses: of the parent's finished run of the same seed.
        parent_ends: the last validation loss, nats per target, of each finished run of the parent: their spread is what
            a seed does.
        steps: of the whole run.
    """
    window = max(_BLOCKS, int(WINDOW * steps))
    done, seeds = min(len(variant_losses), len(parent_losses)), len(parent_ends)
    if done < max(EARLIEST * steps, 2 * window) or seeds < FEWEST_SEEDS:
        return None
    between_runs = math.sqrt(2) * float(np.std(parent_ends, ddof=1))
    found = []
    for last in (done - window, done):
        difference = variant_losses[last - window : last] - parent_losses[last - window : last]
        blocks = np.array([block.mean() for block in np.array_split(difference, _BLOCKS)])
        error = blocks.std(ddof=1) / math.sqrt(_BLOCKS)
        threshold = max(STANDARD_ERRORS * error, -stdtrit(seeds - 1, LEVEL) * between_runs)
        # What is not finite is for the guard of the step to judge.
        if not difference.mean() > threshold:
            return None
        found.append(Behind(done, float(difference.mean()), threshold))
    return found[-1]
