"""Keys and values from a small latent vector, at equal parameters."""

from jaxformer.experiment import SolvedFeedForwardWidth, Variant
from jaxformer.parts.latent_attention import LatentAttention

EXPERIMENT = Variant(
    parent="baseline",
    question="Does attention learn as much from keys and values that come from a latent of a quarter of their size?",
    change={"model.attention": LatentAttention(key_value_rank=64)},
    consequences=(SolvedFeedForwardWidth(),),
    expected=(-0.01, 0.01),
    source="DeepSeek-AI 2024, arXiv 2405.04434: better than plain attention, with a far smaller cache",
)
