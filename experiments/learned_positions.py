"""A learned table of positions in place of rotary ones."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="What are rotary positions worth against a learned table?",
    change={"model.learned_positions": lambda _, parent: parent.packing.row_length},
    expected=(0.005, 0.06),
    source="Su et al. 2021, arXiv 2104.09864",
)
