"""Which model of Hugging Face transformers computes what a `ModelConfig` describes, and its config.json, both ways.

All of them are pre-norm decoders that share our conventions: rotary pairs (i, i + K / 2), logits scaled by K ** -0.5,
query head h reading key/value head h // (H / G), a window that counts the token itself, an epsilon under the root.
Biases, where a model has them, are zero.

    norm       positions  feed-forward   options               model_type
    rmsnorm    rotary     swiglu         G, K                  llama
    rmsnorm    rotary     swiglu         G, K, window          mistral
    rmsnorm    rotary     swiglu         G, K, window          qwen3, with QK-norm
    rmsnorm    rotary     gelu, relu2    G, K                  arcee
    layernorm  rotary     gelu, relu2    G, window             starcoder2
    layernorm  rotary     swiglu         G                     stablelm
    layernorm  learned    gelu, relu2                          gpt2

Keys and their defaults are those of transformers 4.57 and 5.24.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxformer.config import UserError, require
from jaxformer.model import ModelConfig

# The names that transformers has for our activations; the first is the one written.
GATED = {"swiglu": ("silu", "swish")}
PLAIN = {"gelu": ("gelu_pytorch_tanh", "gelu_new"), "relu2": ("relu2",)}

_SIZES = {
    "hidden_size": "width",
    "intermediate_size": "feed_forward_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
}
_HEAD_SIZES = _SIZES | {"head_dim": "head_width"}
# A null of theirs, or a key that is absent and has no other default, is a 0 of ours: derived from the others.
_DERIVED = ("num_key_value_heads", "head_dim", "n_inner")

# What some code beside transformers reads of a config.json and would compute otherwise.
_NEVER = ("quantization_config", "auto_map", "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True, eq=False)
class Form:
    """A model of transformers, as data: the options of ours that it has, and the keys of its config.json."""

    model_type: str
    architecture: str
    norm: str
    activations: Mapping[str, tuple[str, ...]]
    epsilon: str
    """Key of the norms' epsilon."""
    activation: str = "hidden_act"
    """Key of the activation."""
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)
    """Their keys, to fields of `ModelConfig`."""
    has_rotary_positions: bool = True
    has_qk_norm: bool = False
    has_window: bool = False
    has_whole_heads: bool = True
    """Whether it takes no width that is no multiple of its heads, even where their width is given."""
    has_biases: bool = False
    """Whether its norms have biases, and GPT-2's kernels too."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes where a key is absent, apart from those of all forms."""
    rope: Mapping[str, Any] = field(default_factory=dict)
    """What is written of the rotary positions beside their base."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options of theirs with the only value that computes ours, which is transformers' default too."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """What is written beside them and not looked at when read: tensors show whether there are biases."""

    def lacks(self, model: ModelConfig) -> list[str]:
        """Returns the options of a model that this form does not have, as `model.field = value`."""
        is_plain_width = model.K * model.heads == model.width
        has_head_width = "head_dim" in self.sizes and (model.width % model.heads == 0 or not self.has_whole_heads)
        checks = {
            "norm": model.norm == self.norm,
            "activation": model.activation in self.activations,
            "learned_positions": bool(model.learned_positions) != self.has_rotary_positions,
            "qk_norm": model.qk_norm == self.has_qk_norm,
            "sliding_window": not model.sliding_window or self.has_window,
            "key_value_heads": model.heads == model.G or "num_key_value_heads" in self.sizes,
            "head_width": is_plain_width or has_head_width,
            "logit_soft_cap": not model.logit_soft_cap,
        }
        return [f"model.{name} = {getattr(model, name)}" for name, is_there in checks.items() if not is_there]


_LLAMA_WRITTEN = {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}

# Of two that fit, the first is taken: the plainer one.
FORMS = (
    Form(
        "llama",
        "LlamaForCausalLM",
        norm="rmsnorm",
        activations=GATED,
        epsilon="rms_norm_eps",
        sizes=_HEAD_SIZES,
        written=_LLAMA_WRITTEN,
    ),
    Form(
        "mistral",
        "MistralForCausalLM",
        norm="rmsnorm",
        activations=GATED,
        epsilon="rms_norm_eps",
        sizes=_HEAD_SIZES,
        has_window=True,
        has_whole_heads=False,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
        written={"attention_dropout": 0.0},
    ),
    Form(
        "qwen3",
        "Qwen3ForCausalLM",
        norm="rmsnorm",
        activations=GATED,
        epsilon="rms_norm_eps",
        sizes=_HEAD_SIZES,
        has_qk_norm=True,
        has_window=True,
        has_whole_heads=False,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        written={"attention_bias": False, "attention_dropout": 0.0},
    ),
    Form(
        "arcee",
        "ArceeForCausalLM",
        norm="rmsnorm",
        activations=PLAIN,
        epsilon="rms_norm_eps",
        sizes=_HEAD_SIZES,
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
        written=_LLAMA_WRITTEN,
    ),
    Form(
        "starcoder2",
        "Starcoder2ForCausalLM",
        norm="layernorm",
        activations=PLAIN,
        epsilon="norm_epsilon",
        has_window=True,
        has_biases=True,
        defaults={
            "num_key_value_heads": 2,
            "norm_epsilon": 1e-5,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        written={"use_bias": False, "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    ),
    Form(
        "stablelm",
        "StableLmForCausalLM",
        norm="layernorm",
        activations=GATED,
        epsilon="layer_norm_eps",
        has_biases=True,
        defaults={"num_key_value_heads": 32, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        fixed={"qk_layernorm": False, "use_parallel_residual": False},
        rope={"partial_rotary_factor": 1.0},
        written={"use_qkv_bias": False, "attention_dropout": 0.0, "hidden_dropout": 0.0},
    ),
    Form(
        "gpt2",
        "GPT2LMHeadModel",
        norm="layernorm",
        activations={"gelu": ("gelu_new", "gelu_pytorch_tanh"), "relu2": ("relu2",)},
        epsilon="layer_norm_epsilon",
        activation="activation_function",
        sizes={
            "n_embd": "width",
            "n_inner": "feed_forward_width",
            "n_layer": "depth",
            "n_head": "heads",
            "n_positions": "learned_positions",
        },
        has_rotary_positions=False,
        has_biases=True,
        defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        written={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
)
BY_TYPE = {form.model_type: form for form in FORMS}
# Where a key is absent; a key that is neither here nor in a form's own is required.
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "max_window_layers": 28,
    **dict.fromkeys(_DERIVED),
}


def form_of(model: ModelConfig) -> Form:
    """Returns the form that computes what a model does.

    Raises:
        UserError: there is none; it names the options that the nearest lack.
    """
    missing = {form: form.lacks(model) for form in FORMS}
    nearest = min(FORMS, key=lambda form: len(missing[form]))
    near = [form for form in FORMS if len(missing[form]) == len(missing[nearest])]
    what = "; ".join(f"{form.architecture}, but for {' and '.join(missing[form])}" for form in near)
    require(not missing[nearest], f"Hugging Face transformers has no model like this one; the nearest: {what}")
    return nearest


def config_json(
    model: ModelConfig,
    *,
    vocabulary_size: int,
    row_length: int,
    bos_id: int,
    eos_id: int,
    dtype: str,
) -> dict[str, Any]:
    """Returns the config.json of a model.

    Args:
        model: the configuration.
        vocabulary_size: rows of the tables, which may be fewer than the model's.
        row_length: tokens of a row in training, which transformers takes for the longest text; rotary positions know
            no limit.
        bos_id, eos_id: the tokenizer's.
        dtype: of the tensors: 'float32', 'bfloat16' or 'float16'.

    Raises:
        UserError: transformers has no such model.
    """
    form = form_of(model)
    config = {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        "vocab_size": vocabulary_size,
        **{key: getattr(model.effective(), name) for key, name in form.sizes.items()},
        form.activation: form.activations[model.activation][0],
        form.epsilon: model.norm_epsilon,
        "tie_word_embeddings": model.tied_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # Transformers before 5, and other readers.
        "use_cache": True,
        **form.fixed,
        **form.written,
    }
    if form.has_rotary_positions:
        rope = {"rope_theta": model.rope_base, **form.rope}
        config |= {"max_position_embeddings": row_length, "rope_parameters": {"rope_type": "default", **rope}}
        config |= rope  # Transformers before 5, and other readers.
    if form.has_window:
        config |= _window_keys(form, model)
    return config


def _window_keys(form: Form, model: ModelConfig) -> dict[str, Any]:
    """Returns the keys of a window, which is that of all layers."""
    window = model.sliding_window or None
    if form.model_type != "qwen3":
        return {"sliding_window": window}
    return {
        "sliding_window": window,
        "use_sliding_window": bool(window),
        "max_window_layers": 0,
        "layer_types": ["sliding_attention" if window else "full_attention"] * model.depth,
    }


def read_config_json(config: Mapping[str, Any], source: Path) -> tuple[Form, ModelConfig]:
    """Returns the form of a config.json, and the model that it describes.

    What the model leaves open (z-loss, and all that is execution) has its default.

    Args:
        config: the content.
        source: its file, for errors.

    Raises:
        UserError: it describes what is not one of ours; it names the key and its value.
    """

    def refuse(key: str, value: Any, why: str) -> UserError:
        return UserError(f"{source}: {key} = {value!r}: {why}")

    model_type = str(config.get("model_type"))
    if model_type not in BY_TYPE:
        # Without a hint: a type that looks alike is another model, and no misspelling to be put right.
        raise refuse("model_type", model_type, f"not a model that jaxformer has; it has {', '.join(BY_TYPE)}")
    form = BY_TYPE[model_type]
    architectures = config.get("architectures") or [form.architecture]
    if architectures != [form.architecture]:
        raise refuse("architectures", architectures, f"must be {[form.architecture]}")
    for key in _NEVER:
        if config.get(key):
            raise refuse(key, config[key], "jaxformer has no such option")
    values = {**_DEFAULTS, **form.defaults, **form.fixed, **config}
    for key, value in form.fixed.items():
        if values[key] != value:
            raise refuse(key, values[key], f"jaxformer has {value} only")
    names = {theirs: ours for ours, all_theirs in form.activations.items() for theirs in all_theirs}
    activation = str(values[form.activation])
    if activation not in names:
        raise refuse(form.activation, activation, f"jaxformer has {', '.join(names)} there")
    fields: dict[str, Any] = {"vocabulary_size": _number(values, "vocab_size", source)}
    for key, name in form.sizes.items():
        is_derived = key in _DERIVED and values.get(key) is None
        fields[name] = 0 if is_derived else _number(values, key, source)
    if form.has_rotary_positions:
        fields["rope_base"] = _rope_base(values, source)
    if form.has_window:
        fields["sliding_window"] = _window(form, values, fields["depth"], source)
    return form, ModelConfig(
        **fields,
        activation=names[activation],
        norm=form.norm,
        norm_epsilon=float(_number(values, form.epsilon, source, (int, float))),
        qk_norm=form.has_qk_norm,
        tied_embeddings=bool(values["tie_word_embeddings"]),
    ).effective()


def _number(values: Mapping[str, Any], key: str, source: Path, kinds: type | tuple[type, ...] = int) -> Any:
    require(key in values, f"{source}: no {key}")
    value = values[key]
    if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{source}: {key} = {value!r}: must be a number above 0")
    return value


def _rope_base(values: Mapping[str, Any], source: Path) -> float:
    """Returns the base of the rotary wavelengths, which all of a head's features have, unscaled."""
    # Since version 5 under one key; before, beside each other.
    name = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    parameters = values.get(name) or {}
    require(isinstance(parameters, dict), f"{source}: {name} = {parameters!r}: must be an object")
    parameters = dict(parameters)
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    parameters.pop("type", None)
    require(kind == "default", f"{source}: {name}.rope_type = {kind!r}: jaxformer scales no rotary positions")
    factor = parameters.pop("partial_rotary_factor", values["partial_rotary_factor"])
    require(
        factor == 1, f"{source}: partial_rotary_factor = {factor!r}: jaxformer rotates all features of a head, 1.0 only"
    )
    base = parameters.pop("rope_theta", values["rope_theta"])
    require(not parameters, f"{source}: {name}.{next(iter(parameters), '')}: jaxformer scales no rotary positions")
    return float(_number({"rope_theta": base}, "rope_theta", source, (int, float)))


def _window(form: Form, values: Mapping[str, Any], depth: int, source: Path) -> int:
    """Returns the window that all layers have, 0 for none."""
    window = values["sliding_window"]
    if form.model_type == "qwen3":
        window = window if values.get("use_sliding_window") else None
        kinds = values.get("layer_types")
        if kinds is None:
            full = values["max_window_layers"] if window else depth
            kinds = ["full_attention" if layer < full else "sliding_attention" for layer in range(depth)]
        require(
            kinds in ([kind] * depth for kind in ("full_attention", "sliding_attention")),
            f"{source}: layer_types = {kinds}: jaxformer has one kind of attention, in all {depth} layers",
        )
        window = window if kinds[0] == "sliding_attention" else None
    return 0 if window is None else _number({"sliding_window": window}, "sliding_window", source)
