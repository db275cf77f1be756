"""The config.json of a model for Hugging Face transformers, written and read by the table of architectures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.config import UserError, require
from jaxformer.huggingface.architectures import ARCHITECTURES, Architecture, architecture_of
from jaxformer.model import ModelConfig

_BY_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}
# If null or absent without another default, they are derived from the others, as our 0 is.
_DERIVED = ("num_key_value_heads", "head_dim", "n_inner")
# Defaults of absent keys; a key that is neither here nor among an architecture's own is required.
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
# Limits of sizes, and of other numbers; no model has larger ones.
_SIZE_LIMIT, _LIMIT = 2**31, 1e30
# Keys of a config.json that other code than transformers reads, and that would change the result.
_UNSUPPORTED_KEYS = (
    "quantization_config",
    "auto_map",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_soft_cap",
)


def config_json(model: ModelConfig, *, row_length: int, bos_id: int, eos_id: int, dtype: str) -> dict[str, Any]:
    """Returns the config.json of a model.

    Args:
        model: the configuration.
        row_length: tokens of a row in training, which transformers takes for the longest text; rotary positions have
            no limit.
        bos_id, eos_id: the tokenizer's.
        dtype: of the tensors: 'float32', 'bfloat16' or 'float16'.

    Raises:
        UserError: transformers has no such model.
    """
    architecture, model = architecture_of(model), model.effective()
    config = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        **{key: getattr(model, name) for key, name in architecture.keys.items()},
        **architecture.required_values,
        **architecture.written_only,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # Transformers before 5, and other readers.
    }
    activation = next(key for key, name in architecture.keys.items() if name == "activation")
    config[activation] = architecture.activations[str(model.activation)][0]
    if not model.learned_positions:
        # Since version 5 they are here; before, and for other readers, separate.
        rope = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
        config |= {"max_position_embeddings": row_length, "rope_parameters": {"rope_type": "default", **rope}}
    if "sliding_window" in config:
        config["sliding_window"] = model.sliding_window or None
    if architecture.model_type == "qwen3":
        kind = "sliding_attention" if model.sliding_window else "full_attention"
        config |= {"use_sliding_window": bool(model.sliding_window), "max_window_layers": 0}
        config |= {"layer_types": [kind] * model.depth}
    return config


def read_config_json(config: Mapping[str, Any], source: Path) -> tuple[Architecture, ModelConfig]:
    """Returns the architecture of a config.json, and the model that it describes.

    Fields that it does not describe (z-loss, and all execution fields) have their defaults.

    Args:
        config: the content.
        source: its file, for errors.

    Raises:
        UserError: it describes another model than ours; with the key and its value.
    """

    def accept(is_ours: bool, key: str, value: Any, why: str) -> None:
        require(is_ours, f"{source}: {key} = {value!r}: {why}")

    model_type = str(config.get("model_type"))
    # Without a hint: a similar type is another model, and no misspelling.
    types = ", ".join(_BY_TYPE)
    accept(model_type in _BY_TYPE, "model_type", model_type, f"not a model that jaxformer has; it has {types}")
    architecture = _BY_TYPE[model_type]
    names = config.get("architectures") or [architecture.name]
    accept(names == [architecture.name], "architectures", names, f"must be {[architecture.name]}")
    for key in _UNSUPPORTED_KEYS:
        accept(not config.get(key), key, config.get(key), "jaxformer has no such option")
    values = {**_DEFAULTS, **architecture.required_values, **architecture.defaults, **config}
    for key, value in architecture.required_values.items():
        accept(values[key] == value, key, values[key], f"jaxformer has {value} only")
    fields: dict[str, Any] = {}
    for key, name in architecture.keys.items():
        match name:
            case "activation":
                ours = {theirs: ours for ours, all_theirs in architecture.activations.items() for theirs in all_theirs}
                activation = str(values[key])
                accept(activation in ours, key, activation, f"jaxformer has {', '.join(ours)} there")
                fields[name] = ours[activation]
            case "rope_base":
                fields[name] = _rope_base(values, source)
            case "sliding_window":
                fields[name] = _window(values, fields["depth"], source)
            case "tied_embeddings":
                fields[name] = bool(values[key])
            case "norm_epsilon":
                fields[name] = float(_number(values, key, source, (int, float)))
            case _:
                is_derived = key in _DERIVED and values[key] is None
                fields[name] = 0 if is_derived else _number(values, key, source)
    return architecture, ModelConfig(**fields, norm=architecture.norm, qk_norm=architecture.has_qk_norm).effective()


def _number(values: Mapping[str, Any], key: str, source: Path, kinds: type | tuple[type, ...] = int) -> Any:
    require(key in values, f"{source}: no {key}")
    value, limit = values[key], _SIZE_LIMIT if kinds is int else _LIMIT
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < limit:
        raise UserError(f"{source}: {key} = {value!r:.100}: must be a number above 0 and below {limit:,}")
    return value


def _rope_base(values: Mapping[str, Any], source: Path) -> float:
    """Returns the base of the rotary wavelengths, which all of a head's features have, unscaled."""
    name = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    parameters = values.get(name) or {}
    require(isinstance(parameters, dict), f"{source}: {name} = {parameters!r}: must be an object")
    parameters = {key: values[key] for key in ("rope_theta", "partial_rotary_factor")} | parameters
    kind = parameters.pop("type", "default")
    kind = parameters.pop("rope_type", kind)
    require(kind == "default", f"{source}: {name}.rope_type = {kind!r}: jaxformer scales no rotary positions")
    factor, base = parameters.pop("partial_rotary_factor"), parameters.pop("rope_theta")
    require(
        factor == 1, f"{source}: partial_rotary_factor = {factor!r}: jaxformer rotates all features of a head, 1.0 only"
    )
    require(not parameters, f"{source}: {name}.{next(iter(parameters), '')}: jaxformer scales no rotary positions")
    return float(_number({"rope_theta": base}, "rope_theta", source, (int, float)))


def _window(values: Mapping[str, Any], depth: int, source: Path) -> int:
    """Returns the window that all layers have, 0 for none."""
    window, why = values["sliding_window"], f"jaxformer has one kind of attention, in all {depth} layers"
    if values["model_type"] == "qwen3":
        window = window if values.get("use_sliding_window") else None
        kinds = values.get("layer_types")
        if kinds is None:
            # Layers from this one on have the window.
            first = values["max_window_layers"] if window else depth
            is_all_or_none = isinstance(first, int) and (first == 0 or first >= depth)
            require(
                is_all_or_none, f"{source}: max_window_layers = {first!r:.100}: must be 0, or {depth} or more: {why}"
            )
            return _number(values, "sliding_window", source) if first == 0 else 0
        is_one_kind = isinstance(kinds, list) and len(kinds) == depth and kinds == kinds[:1] * depth
        is_known = is_one_kind and kinds[0] in ("full_attention", "sliding_attention")
        require(is_known, f"{source}: layer_types = {kinds}: {why}")
        window = window if kinds[0] == "sliding_attention" else None
    return 0 if window is None else _number({"sliding_window": window}, "sliding_window", source)
