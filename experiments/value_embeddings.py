"""A table by token id that adds to the values of every other attention."""

from jaxformer.experiment import Variant
from jaxformer.parts.value_embeddings import ValueEmbeddings

EXPERIMENT = Variant(
    parent="baseline",
    question="Does a table of values by token id, which costs parameters and no matmul, lower the loss?",
    change={"model.attention": (None, ValueEmbeddings())},
    expected=(-0.03, 0.0),
    source="modded-nanogpt (Jordan et al. 2024) and nanochat (Karpathy 2025); Zhou et al. 2024, arXiv 2410.17897",
)
