"""Rows of twice the length, half as many."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="baseline",
    question="Does longer context help at equal tokens in a step?",
    change={"packing.row_length": times(2), "training.rows_per_step": times(0.5)},
    bundle="row length at equal tokens in a step",
    expected=(-0.03, 0.0),
    source="Press et al. 2020, arXiv 2012.15832",
)
