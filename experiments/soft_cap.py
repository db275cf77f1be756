"""Logits that saturate."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does a soft cap of the logits change what is learned?",
    change={"model.logit_soft_cap": 30.0},
    expected=(-0.003, 0.003),
    source="Gemma Team 2024, arXiv 2408.00118: for stability, not for quality",
)
