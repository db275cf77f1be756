"""Query heads that share keys and values in pairs."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="What does it cost that two query heads share keys and values?",
    change={"model.key_value_heads": lambda _, parent: parent.model.heads // 2},
    expected=(0.0, 0.01),
    source="Ainslie et al. 2023, arXiv 2305.13245: nearly nothing, and a cache of half the size",
)
