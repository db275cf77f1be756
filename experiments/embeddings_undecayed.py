"""No weight decay of embeddings."""

from jaxformer.experiment import Variant
from jaxformer.parts.embeddings_undecayed import EmbeddingsUndecayed

EXPERIMENT = Variant(
    parent="baseline",
    question="Is an embedding better without decay?",
    change={"optimizer.decay": lambda decay, parent: EmbeddingsUndecayed(decay)},
    expected=(-0.005, 0.005),
    source="Team OLMo 2024, arXiv 2501.00656, who left it out for stability; their embeddings are untied",
)
