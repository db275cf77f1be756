"""Half of the rows from the second corpus."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="laptop",
    question="Is the second corpus worth half of the rows instead of a quarter?",
    change={"corpus.parts.1.weight": times(3)},
    expected=(-0.02, 0.02),
    source="a guess: what one corpus gains in validation, the other loses",
)
