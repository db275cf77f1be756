"""Twice the batch in half the steps."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="baseline",
    question="What do half as many steps of twice the batch lose at equal tokens?",
    change={
        "training.rows_per_step": times(2),
        "training.steps": times(0.5),
        "optimizer.learning_rate": times(2**0.5),
        "optimizer.warmup_steps": times(0.5),
    },
    bundle="batch size at equal tokens, with the learning rate that belongs to it",
    expected=(0.0, 0.05),
    source="Malladi et al. 2022, arXiv 2205.10287: Adam's rate grows with the root of the batch",
)
