"""A mixture of experts of as many active parameters."""

from jaxformer.experiment import Variant
from jaxformer.parts.mixture_of_experts import MixtureOfExperts

EXPERIMENT = Variant(
    parent="baseline",
    question="Do eight experts, two for each token, learn more than a feed-forward of equal active parameters?",
    change={"model.feed_forward": MixtureOfExperts(experts=8, top_k=2)},
    expected=(-0.06, 0.0),
    source="Fedus et al. 2021, arXiv 2101.03961; Dai et al. 2024, arXiv 2401.06066",
)
