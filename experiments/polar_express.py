"""Muon's matrices orthogonalised by Polar Express."""

from jaxformer.experiment import Variant
from jaxformer.parts.polar_express import PolarExpress

EXPERIMENT = Variant(
    parent="muon",
    question="Does Muon learn more from a closer polar factor, at the same matrix products?",
    change={"optimizer.name": PolarExpress()},
    expected=(-0.01, 0.002),
    source="Amsel et al. 2025, arXiv 2505.16932: GPT-2's loss a little lower, at every learning rate",
)
