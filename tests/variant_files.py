"""Files of variants as texts, for tests of how they are resolved."""

HEADER = """
import dataclasses
from jaxformer.config import replace
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, times
from jaxformer.experiment import Merge, Promoted, Variant, load_experiment
ABOUT = {"question": "Why?", "expected": (-0.1, 0.1), "source": "a test"}
"""


def variant(change, parent="root", **others):
    more = "".join(f", {name}={value}" for name, value in others.items())
    return f"Variant(parent={parent!r}, change={change}{more}, **ABOUT)"


def promoted(change=None, variant="swiglu", parent="root", evidence="0" * 64, first_seed=1000):
    return (
        f"Promoted(variant={variant!r}, parent={parent!r}, change={change or '{}'}, evidence={evidence!r}, "
        f"verdict='KEEP: -0.03', first_seed={first_seed})"
    )
