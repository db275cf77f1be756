"""Squared ReLU in the feed-forward."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does squared ReLU learn more than GELU?",
    change={"model.activation": "relu2"},
    expected=(-0.01, 0.0),
    source="So et al. 2021, arXiv 2109.08668",
)
