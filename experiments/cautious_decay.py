"""Weight decay where the optimizer shrinks a number anyway."""

from jaxformer.experiment import Variant
from jaxformer.parts.cautious_decay import CautiousDecay

EXPERIMENT = Variant(
    parent="baseline",
    question="Is decay better left out where it works against the update?",
    change={"optimizer.decay": lambda decay, parent: CautiousDecay(decay)},
    expected=(-0.01, 0.002),
    source="Chen et al. 2025, arXiv 2510.12402: lower losses at 338 million to 2 billion parameters",
)
