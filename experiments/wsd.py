"""Warmup, a constant rate, and a short decay."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Is a constant rate with a short decay as good as the cosine?",
    change={"optimizer.schedule": "wsd"},
    expected=(-0.01, 0.01),
    source="Hägele et al. 2024, arXiv 2405.18392, who decay to 0: equal to the cosine, and it can be prolonged",
)
