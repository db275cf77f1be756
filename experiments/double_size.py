"""Twice the width and the depth, with the baseline's learning rate."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="baseline",
    question="What does a model of twice the width and depth gain in as many steps, at the same learning rate?",
    change={"model.width": times(2), "model.heads": times(2), "model.depth": times(2)},
    bundle="a size, whose heads are as wide as they were",
    retune="off",
    expected=(-0.15, 0.0),
    source="Kaplan et al. 2020, arXiv 2001.08361: larger models learn more from as many tokens",
)
