"""Half the learning rate."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="baseline",
    question="Is the baseline's learning rate near its best?",
    change={"optimizer.learning_rate": times(0.5)},
    expected=(-0.01, 0.02),
    source="a guess: the loss is flat near the best rate, and the baseline's was found by hand",
)
