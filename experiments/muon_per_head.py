"""Queries, keys and values of each head as matrices of their own to Muon."""

from jaxformer.experiment import Variant
from jaxformer.parts.muon_per_head import PerHead

EXPERIMENT = Variant(
    parent="muon",
    question="Should Muon orthogonalise the queries, keys and values of each head by themselves?",
    change={"optimizer.name": lambda optimizer, parent: PerHead(optimizer)},
    expected=(-0.02, 0.005),
    source="GLM-5 Team 2026, arXiv 2602.15763: it made up for what latent attention lost under Muon",
)
