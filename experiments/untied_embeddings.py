"""An unembedding of its own."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Is an unembedding of its own worth its parameters?",
    change={"model.tied_embeddings": False},
    expected=(-0.02, 0.02),
    source="Press & Wolf 2016, arXiv 1608.05859: tying helps where the table is a large share of the model",
)
