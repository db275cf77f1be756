"""Muon for the matrices of the blocks."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does Muon learn more than AdamW in the same steps?",
    change={"optimizer.name": "muon"},
    expected=(-0.06, -0.01),
    source="Liu et al. 2025, arXiv 2502.16982, who treat queries, keys and values as matrices of their own",
)
