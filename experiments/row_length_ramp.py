"""Rows of a quarter of the length for the first third of the steps, four times as many."""

from jaxformer.experiment import Phase, Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does a run that begins with short rows learn as much from as many tokens, in less time?",
    change={
        "training.phases": lambda _, parent: (
            Phase(0.0, row_length=parent.packing.row_length // 4, rows_per_step=4 * parent.training.rows_per_step),
            Phase(1 / 3),
        )
    },
    expected=(-0.01, 0.01),
    source="Press et al. 2020, arXiv 2012.15832: a first stage of short rows trains faster, and not to a worse end",
)
