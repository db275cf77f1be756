"""Stops a variant that is clearly worse before its last step, to save its cost for another question.

Variant and parent of one seed see the same batches, so the difference of their training losses is far less noisy than
either curve. A variant is never accepted early. Changes that may win late run to the end: a higher learning rate, a
larger batch, another schedule, more blocks or a penalty are all worse at first (see Choshen et al. 2024, arXiv
2410.11840, on how curves cross).
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxformer.statistics.variance_prior import fit_prior, moderate

# Changes of these may be ahead only at the end, or change the order of the data, so that batches cannot be paired.
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

# Share of the steps before which nothing is stopped, and share of each of the two compared windows.
EARLIEST = 0.4
WINDOW = 0.05

# Standard errors of the paired difference within a window that it must exceed, in both windows.
STANDARD_ERRORS = 6.0

# And the one-sided level, by the t distribution, against the difference of variant and parent on one seed by chance.
LEVEL = 1e-3

_BLOCKS = 8


class Behind(NamedTuple):
    """By how much a variant is behind, nats per target, in the newest window, and the threshold."""

    step: int
    difference: float
    threshold: float

    def __str__(self) -> str:
        above = f"its training loss is {self.difference:.3f} nats above its parent's"
        return f"{above} on the same batches, more than {self.threshold:.3f}"


class Spread(NamedTuple):
    """How much variant and parent differ on one seed by chance, at their ends."""

    standard_deviation: float
    """Nats per target."""
    degrees_of_freedom: float


def spread_of_differences(ends: Mapping[str, Mapping[int, float]], parent: str, variant: str) -> Spread | None:
    """Returns the spread of a variant's differences from its parent, or None if too little is known.

    It is the spread of the paired differences of all variants of the parent with two seeds, if there are three others;
    or of two unpaired runs, from three runs of the parent: whichever has more degrees of freedom.

    Args:
        ends: last validation loss, nats per target, by experiment and seed, of the parent and its variants.
    """
    losses, found = ends.get(parent, {}), []
    if len(losses) > 2:
        found.append(Spread(math.sqrt(2) * float(np.std(list(losses.values()), ddof=1)), len(losses) - 1))
    variances = {}
    for name, theirs in ends.items():
        differences = [loss - losses[seed] for seed, loss in theirs.items() if seed in losses]
        if name != parent and len(differences) > 1:
            variances[name] = float(np.var(differences, ddof=1)), len(differences) - 1
    own = variances.pop(variant, (0.0, 0))
    known = [(variance, df) for variance, df in variances.values() if variance > 0]
    if len(known) > 2:
        prior = fit_prior(*np.array(known).T)
        variance, df = moderate(own[0], own[1], prior)
        found.append(Spread(math.sqrt(variance), df))
    return max(found, key=lambda spread: spread.degrees_of_freedom, default=None)


def may_stop(changed_paths: Iterable[str]) -> bool:
    """Returns whether a change of these fields may be judged before its end."""
    return not any(path.startswith(EXEMPT) for path in changed_paths)


def clearly_worse(variant_losses: np.ndarray, parent_losses: np.ndarray, spread: Spread, steps: int) -> Behind | None:
    """Returns by how much a variant is behind if it is clearly worse so far, else None.

    Args:
        variant_losses: training losses so far, nats per target by step from 0.
        parent_losses: of the parent's finished run of the same seed.
        spread: of their difference on one seed by chance.
        steps: of the whole run.
    """
    window = max(_BLOCKS, int(WINDOW * steps))
    done = min(len(variant_losses), len(parent_losses))
    if done < max(EARLIEST * steps, 2 * window):
        return None
    by_chance = -stdtrit(spread.degrees_of_freedom, LEVEL) * spread.standard_deviation
    found = []
    for last in (done - window, done):
        difference = variant_losses[last - window : last] - parent_losses[last - window : last]
        blocks = np.array([block.mean() for block in np.array_split(difference, _BLOCKS)])
        error = blocks.std(ddof=1) / math.sqrt(_BLOCKS)
        threshold = max(STANDARD_ERRORS * error, by_chance)
        # Non-finite losses are left to the guard of the step.
        if not difference.mean() > threshold:
            return None
        found.append(Behind(done, float(difference.mean()), threshold))
    return found[-1]
