"""CompleteP: the baseline's numbers at twice its width and depth."""

from jaxformer.experiment import Variant
from jaxformer.parts.complete_p import CompleteP, CompletePResidual, CompletePScaling

EXPERIMENT = Variant(
    parent="double_size",
    question="Does the baseline's learning rate suit twice its width and depth better where CompleteP scales?",
    change={
        "model.scaling": CompletePScaling(base_width=128, base_depth=4),
        "model.residual": CompletePResidual(base_depth=4),
        "optimizer.name": CompleteP(base_width=128, base_depth=4),
    },
    bundle="one rule, by which initial values, residuals, logits and the optimizer are scaled",
    retune="off",
    expected=(-0.05, 0.01),
    source="Dey et al. 2025, arXiv 2505.01618: rates tuned at a base stay the best at any width and depth",
)
