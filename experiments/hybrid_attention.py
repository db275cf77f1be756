"""A short window and compressed groups of tokens in place of all tokens."""

from jaxformer.experiment import SolvedFeedForwardWidth, Variant
from jaxformer.parts.hybrid_attention import CompressedSparse, HeavilyCompressed

EXPERIMENT = Variant(
    parent="baseline",
    question="What does it cost that a token sees 32 tokens, and of all before them only compressed groups?",
    change={
        "model.attention": (
            CompressedSparse(window=32, group=4, top_k=16, index_heads=4, index_width=16),
            HeavilyCompressed(window=32, group=32),
        )
    },
    consequences=(SolvedFeedForwardWidth(),),
    expected=(0.0, 0.03),
    source="DeepSeek-AI 2026, DeepSeek-V4: attention for contexts a thousand times as long as these rows",
)
