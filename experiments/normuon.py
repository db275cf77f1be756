"""Muon's update normalised neuron by neuron."""

from jaxformer.experiment import Variant
from jaxformer.parts.normuon import NorMuon

EXPERIMENT = Variant(
    parent="muon",
    question="Does Muon learn more if every neuron moves as far as the others?",
    change={"optimizer.name": lambda optimizer, parent: NorMuon(optimizer)},
    expected=(-0.02, 0.002),
    source="Li et al. 2025, arXiv 2510.05491: 11 % fewer steps than Muon at 1.1 billion parameters",
)
