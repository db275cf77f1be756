"""A gated feed-forward of equal parameters."""

from jaxformer.experiment import SolvedFeedForwardWidth, Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does a gated feed-forward learn more than GELU at equal parameters?",
    change={"model.activation": "swiglu"},
    consequences=(SolvedFeedForwardWidth(),),
    expected=(-0.02, 0.0),
    source="Shazeer 2020, arXiv 2002.05202",
)
