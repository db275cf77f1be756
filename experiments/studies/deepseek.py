"""The stack of DeepSeek-V4, one step at a time: each change is tried on what was kept of those before it.

`jaxformer ablate --study=deepseek` runs it on the embedded corpus. Muon is compared with AdamW each at its best rate.
"""

from jaxformer import Chain

STUDY = Chain(
    parent="first",
    variants=("muon", "hyper_connections", "mixture_of_experts", "hybrid_attention", "multi_token_prediction"),
)
