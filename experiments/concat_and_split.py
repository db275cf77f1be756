"""Documents cut where rows end."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="What does it cost to cut documents at the ends of rows?",
    change={"packing.method": "concat_and_split"},
    expected=(-0.002, 0.01),
    source="Ding et al. 2024, arXiv 2404.10830",
)
