"""Multi-token prediction."""

from jaxformer.experiment import Variant
from jaxformer.parts.multi_token_prediction import MultiTokenPrediction

EXPERIMENT = Variant(
    parent="baseline",
    question="Does predicting the token after the next one too teach more about the next one?",
    change={"model.auxiliary_loss": MultiTokenPrediction(further=1, weight=0.3)},
    expected=(-0.01, 0.02),
    source="Gloeckle et al. 2024, arXiv 2404.19737",
)
