"""Attention across the documents of a row."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="What does it cost that a document sees its neighbours in the row?",
    change={"packing.document_mask": False},
    expected=(-0.005, 0.02),
    source="Zhao et al. 2024, arXiv 2402.13991: masks help; at 500M and below often by less than seed noise",
)
