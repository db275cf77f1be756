"""A residual stream of four lanes with learned connections."""

from jaxformer.experiment import Variant
from jaxformer.parts.hyper_connections import HyperConnections

EXPERIMENT = Variant(
    parent="baseline",
    question="Do four lanes of the residual stream, read and written by learned weights, learn more than one?",
    change={"model.residual": HyperConnections(lanes=4)},
    expected=(-0.02, 0.0),
    source="Zhu et al. 2024, arXiv 2409.19606",
)
