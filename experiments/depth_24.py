"""Twenty-four blocks at constant parameters."""

from jaxformer.experiment import SolvedFeedForwardWidth, SolvedWidth, Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="How deep should the model be at constant parameters?",
    change={"model.depth": 24},
    consequences=(
        SolvedWidth(),
        SolvedFeedForwardWidth(),
    ),
    expected=(0.0, 0.1),
    source="Kaplan et al. 2020, arXiv 2001.08361: flat over many shapes; Liu et al. 2024, arXiv 2402.14905: deep wins",
)
