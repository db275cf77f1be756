"""Simulated studies: differences of which the truth is known, and what a rate that is counted on them may be."""

import math

import numpy as np
import pytest


def at_most(rate: float, studies: int) -> float:
    """Returns what a simulated rate stays below if the true one is no higher."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / studies)


def about(rate: float, studies: int):
    return pytest.approx(rate, abs=3 * math.sqrt(rate * (1 - rate) / studies))


def model_SI(rng, S, I, *, seed=0.0, item=0.0, both=0.0, group_I=None):  # noqa: E741
    """Returns differences by the crossed model: each effect's standard deviation; groups share item and interaction."""
    group_I = np.arange(I) if group_I is None else group_I
    G = group_I.max() + 1
    effects_SG = item * rng.normal(size=G) + both * rng.normal(size=(S, G))
    return seed * rng.normal(size=(S, 1)) + effects_SG[:, group_I]


def rates(differences, confidence: float = 0.95) -> tuple[float, float]:
    """Returns how often an interval lies below 0 and above 0."""
    intervals = np.array([difference.interval(confidence) for difference in differences])
    return float((intervals[:, 1] < 0).mean()), float((intervals[:, 0] > 0).mean())
