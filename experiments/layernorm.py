"""LayerNorm in place of RMSNorm."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does subtracting the mean in the norms change anything?",
    change={"model.norm": "layernorm"},
    expected=(-0.005, 0.005),
    source="Zhang & Sennrich 2019, arXiv 1910.07467: no difference in quality",
)
