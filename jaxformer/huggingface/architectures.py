"""The architectures of Hugging Face transformers that compute what a `ModelConfig` describes, as one table.

All of them are pre-norm decoders that share our conventions: rotary pairs (i, i + K / 2), logits scaled by K ** -0.5,
query head h reading key/value head h // (H / G), a window that counts the token itself, an epsilon under the root.
Biases, if they have them, are zero.

Keys and their defaults are from transformers 4.57 and 5.24.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxformer.config import require
from jaxformer.model import ModelConfig

# transformers' names for our activations; the first is written.
_GATED = {"swiglu": ("silu", "swish")}
_PLAIN = {"gelu": ("gelu_pytorch_tanh", "gelu_new"), "relu2": ("relu2",)}

# Keys of config.json, to fields of `ModelConfig`.
_KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "width",
    "intermediate_size": "feed_forward_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "hidden_act": "activation",
    "rope_theta": "rope_base",
    "tie_word_embeddings": "tied_embeddings",
}
_LLAMA_KEYS = _KEYS | {"head_dim": "head_width", "rms_norm_eps": "norm_epsilon"}
_WINDOW = {"sliding_window": "sliding_window"}

# Modules of transformers, to our parameters, or to columns of one: `parameter/columns`.
_MODULES = {
    "model.embed_tokens": "embedding",
    "model.layers.{}.input_layernorm": "blocks.attention_norm.scale",
    "model.layers.{}.self_attn.q_proj": "blocks.attention.qkv/queries",
    "model.layers.{}.self_attn.k_proj": "blocks.attention.qkv/keys",
    "model.layers.{}.self_attn.v_proj": "blocks.attention.qkv/values",
    "model.layers.{}.self_attn.o_proj": "blocks.attention.out",
    "model.layers.{}.post_attention_layernorm": "blocks.feed_forward_norm.scale",
    "model.norm": "final_norm.scale",
    "lm_head": "unembedding",
}
_GATED_MODULES = _MODULES | {
    "model.layers.{}.mlp.gate_proj": "blocks.feed_forward.up/gate",
    "model.layers.{}.mlp.up_proj": "blocks.feed_forward.up/value",
    "model.layers.{}.mlp.down_proj": "blocks.feed_forward.down",
}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model of transformers, as data."""

    name: str
    model_type: str
    norm: str
    activations: Mapping[str, tuple[str, ...]]
    """Ours, to transformers' names for each."""
    keys: Mapping[str, str]
    """Of its config.json, to fields of `ModelConfig`; it lacks all other options."""
    modules: Mapping[str, str]
    """Its modules with weights, with `{}` for the layer, to our parameters; except GPT-2's, their kernels are
    transposed.
    """
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """transformers' defaults for absent keys, apart from those common to all."""
    required_values: Mapping[str, Any] = field(default_factory=dict)
    """transformers' options with the only value that computes the same as ours."""
    written_only: Mapping[str, Any] = field(default_factory=dict)
    """Values that are written since transformers' defaults differ, but not required when reading, such as dropout:
    biases are checked in the tensors, a partial rotation with the rotary positions.
    """
    has_whole_heads: bool = False
    """Whether its width must be a multiple of its heads, even if the head width is given."""
    is_conv1d: bool = False
    """Whether its kernels are (in, out) as ours, with biases."""

    @property
    def has_qk_norm(self) -> bool:
        """Whether it has norms of queries and keys."""
        return "blocks.attention.q_norm.scale" in self.modules.values()

    def lacks(self, model: ModelConfig) -> list[str]:
        """Returns the options of a model that this architecture lacks, as `model.field = value`."""
        fields = self.keys.values()
        is_divided = model.width % model.heads == 0 or not self.has_whole_heads
        checks = {
            "norm": model.norm == self.norm,
            "activation": model.activation in self.activations,
            "learned_positions": bool(model.learned_positions) == ("learned_positions" in fields),
            "qk_norm": model.qk_norm == self.has_qk_norm,
            "sliding_window": not model.sliding_window or "sliding_window" in fields,
            "key_value_heads": model.heads == model.G or "key_value_heads" in fields,
            "head_width": model.K * model.heads == model.width or ("head_width" in fields and is_divided),
            "logit_soft_cap": not model.logit_soft_cap,
            "window_pattern": all(model.have_window) or not any(model.have_window),
            **{name: getattr(model, name) is None for name in ("attention", "feed_forward", "residual", "scaling")},
        }
        return [f"model.{name} = {getattr(model, name)}" for name, is_there in checks.items() if not is_there]


# If two fit, the first is taken: the simpler one.
ARCHITECTURES = (
    Architecture(
        "LlamaForCausalLM",
        "llama",
        norm="rmsnorm",
        activations=_GATED,
        keys=_LLAMA_KEYS,
        modules=_GATED_MODULES,
        has_whole_heads=True,
    ),
    Architecture(
        "MistralForCausalLM",
        "mistral",
        norm="rmsnorm",
        activations=_GATED,
        keys=_LLAMA_KEYS | _WINDOW,
        modules=_GATED_MODULES,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        norm="rmsnorm",
        activations=_GATED,
        keys=_LLAMA_KEYS | _WINDOW,
        modules=_GATED_MODULES
        | {f"model.layers.{{}}.self_attn.{each}_norm": f"blocks.attention.{each}_norm.scale" for each in "qk"},
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    Architecture(
        "ArceeForCausalLM",
        "arcee",
        norm="rmsnorm",
        activations=_PLAIN,
        keys=_LLAMA_KEYS,
        modules=_MODULES
        | {
            "model.layers.{}.mlp.up_proj": "blocks.feed_forward.up",
            "model.layers.{}.mlp.down_proj": "blocks.feed_forward.down",
        },
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
        has_whole_heads=True,
    ),
    Architecture(
        "Starcoder2ForCausalLM",
        "starcoder2",
        norm="layernorm",
        activations=_PLAIN,
        keys=_KEYS | _WINDOW | {"norm_epsilon": "norm_epsilon"},
        modules=_MODULES
        | {
            "model.layers.{}.mlp.c_fc": "blocks.feed_forward.up",
            "model.layers.{}.mlp.c_proj": "blocks.feed_forward.down",
        },
        defaults={
            "num_key_value_heads": 2,
            "norm_epsilon": 1e-5,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        written_only={"use_bias": False},
    ),
    Architecture(
        "StableLmForCausalLM",
        "stablelm",
        norm="layernorm",
        activations=_GATED,
        keys=_KEYS | {"layer_norm_eps": "norm_epsilon"},
        modules=_GATED_MODULES,
        defaults={"num_key_value_heads": 32, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        required_values={"qk_layernorm": False, "use_parallel_residual": False},
        written_only={"partial_rotary_factor": 1.0},
    ),
    Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        norm="layernorm",
        activations=_PLAIN | {"gelu": ("gelu_new", "gelu_pytorch_tanh")},
        keys={
            "vocab_size": "vocabulary_size",
            "n_embd": "width",
            "n_inner": "feed_forward_width",
            "n_layer": "depth",
            "n_head": "heads",
            "n_positions": "learned_positions",
            "activation_function": "activation",
            "layer_norm_epsilon": "norm_epsilon",
            "tie_word_embeddings": "tied_embeddings",
        },
        modules={
            "transformer.wte": "embedding",
            "transformer.wpe": "position_embedding",
            "transformer.h.{}.ln_1": "blocks.attention_norm.scale",
            "transformer.h.{}.attn.c_attn": "blocks.attention.qkv",
            "transformer.h.{}.attn.c_proj": "blocks.attention.out",
            "transformer.h.{}.ln_2": "blocks.feed_forward_norm.scale",
            "transformer.h.{}.mlp.c_fc": "blocks.feed_forward.up",
            "transformer.h.{}.mlp.c_proj": "blocks.feed_forward.down",
            "transformer.ln_f": "final_norm.scale",
            "lm_head": "unembedding",
        },
        defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
        required_values={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        written_only={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        is_conv1d=True,
    ),
)


def architecture_of(model: ModelConfig) -> Architecture:
    """Returns the architecture that computes the same as a model.

    Raises:
        UserError: there is none; with the options that the nearest ones lack.
    """
    missing = {each: each.lacks(model) for each in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda each: len(missing[each]))
    near = [each for each in ARCHITECTURES if len(missing[each]) == len(missing[nearest])]
    what = "; ".join(f"{each.name}, except for {' and '.join(missing[each])}" for each in near)
    require(not missing[nearest], f"Hugging Face transformers has no model like this one; the nearest: {what}")
    return nearest
