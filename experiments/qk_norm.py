"""Queries and keys normalised per head."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Do normalised queries and keys learn better at the baseline's learning rate?",
    change={"model.qk_norm": True},
    expected=(-0.02, 0.005),
    source="Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442",
)
