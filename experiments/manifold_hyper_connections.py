"""A residual stream of four lanes that are mixed without growing or shrinking."""

from jaxformer.experiment import Variant
from jaxformer.parts.hyper_connections import ManifoldHyperConnections

EXPERIMENT = Variant(
    parent="baseline",
    question="Do four lanes of the residual stream learn more than one if a doubly stochastic matrix mixes them?",
    change={"model.residual": ManifoldHyperConnections(lanes=4)},
    expected=(-0.02, 0.0),
    source="Xie et al. 2025, arXiv 2512.24880",
)
