"""A small model of each architecture that transformers has."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from jaxformer.model import ModelConfig, Transformer

BASE = ModelConfig(97, 24, 2, 4, feed_forward_width=20, rope_base=500.0, norm_epsilon=2e-5)
_LAYERNORM = {"norm": "layernorm"}
MODELS = {
    name: dataclasses.replace(BASE, **options)
    for name, options in {
        "llama": {"activation": "swiglu", "key_value_heads": 2, "head_width": 10, "tied_embeddings": False},
        "mistral": {"activation": "swiglu", "key_value_heads": 2, "sliding_window": 5},
        "qwen3": {"activation": "swiglu", "key_value_heads": 1, "sliding_window": 5, "qk_norm": True, "head_width": 10},
        "arcee": {},
        "arcee relu2": {"activation": "relu2", "key_value_heads": 2},
        "starcoder2": _LAYERNORM | {"key_value_heads": 2, "sliding_window": 5},
        "stablelm": _LAYERNORM | {"activation": "swiglu", "key_value_heads": 2},
        "gpt2": _LAYERNORM | {"learned_positions": 64, "tied_embeddings": False, "rope_base": 10_000.0},
    }.items()
}


def random_parameters(model, scale=0.25):
    """Returns the graph definition and parameters that are so large that each shows in the logits; no gain is 1."""
    graphdef, params = nnx.split(Transformer(model, rngs=nnx.Rngs(params=3)))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(lambda x: x + scale * rng.standard_normal(x.shape).astype(np.float32), params)
