"""The parameters of a model as the tensors of its form of transformers, and back, by one table.

Kernels are (in, out) here and (out, in) there, GPT-2's apart; queries, keys and values are one kernel here, and so are
the gate and the value of SwiGLU; the layers are stacked here. Nothing is permuted within a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxformer.config import UserError, require
from jaxformer.huggingface.forms import Form
from jaxformer.model import ModelConfig, Transformer

EMBEDDING, UNEMBEDDING = "embedding", "unembedding"
# Computed from the configuration and stored by old versions of transformers.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_ALL = slice(None)


class Part(NamedTuple):
    """Where a parameter, or columns of it, lies in transformers' model.

    Attributes:
        parameter: our dotted path.
        module: their dotted path, with `{}` for the layer of a stacked parameter.
        columns: of our last axis.
        is_transposed: whether theirs is (out, in).
        has_bias: whether their module has a bias.
    """

    parameter: str
    module: str
    columns: slice = _ALL
    is_transposed: bool = False
    has_bias: bool = False

    def names(self, depth: int) -> list[tuple[str, int | None]]:
        """Returns the name of their module for each layer, or the one without a layer."""
        if "{}" not in self.module:
            return [(self.module, None)]
        return [(self.module.format(layer), layer) for layer in range(depth)]

    def view(self, parameter: np.ndarray, layer: int | None) -> np.ndarray:
        """Returns what a tensor of theirs holds, as a view of our parameter: to be read, or written."""
        matrix = (parameter if layer is None else parameter[layer])[..., self.columns]
        return matrix.T if self.is_transposed else matrix


def parts(form: Form, model: ModelConfig) -> list[Part]:
    """Returns the table of a model in one of the forms."""
    found = _gpt2_parts() if form.model_type == "gpt2" else _llama_parts(form, model)
    return found if model.tied_embeddings else [*found, Part(UNEMBEDDING, "lm_head")]


def _gpt2_parts() -> list[Part]:
    layer = "transformer.h.{}."
    biased = [
        ("final_norm.scale", "transformer.ln_f"),
        ("blocks.attention_norm.scale", layer + "ln_1"),
        ("blocks.feed_forward_norm.scale", layer + "ln_2"),
        ("blocks.qkv", layer + "attn.c_attn"),
        ("blocks.attention_out", layer + "attn.c_proj"),
        ("blocks.up", layer + "mlp.c_fc"),
        ("blocks.down", layer + "mlp.c_proj"),
    ]
    return [
        Part(EMBEDDING, "transformer.wte"),
        Part("position_embedding", "transformer.wpe"),
        *(Part(ours, theirs, has_bias=True) for ours, theirs in biased),
    ]


def _llama_parts(form: Form, model: ModelConfig) -> list[Part]:
    H, G, K, F = model.heads, model.G, model.K, model.F
    layer, attention, mlp = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    kernels = [
        ("blocks.qkv", attention + "q_proj", slice(0, H * K)),
        ("blocks.qkv", attention + "k_proj", slice(H * K, (H + G) * K)),
        ("blocks.qkv", attention + "v_proj", slice((H + G) * K, (H + 2 * G) * K)),
        ("blocks.attention_out", attention + "o_proj", _ALL),
    ]
    if model.activation == "swiglu":
        kernels += [
            ("blocks.up", mlp + "gate_proj", slice(0, F)),
            ("blocks.up", mlp + "up_proj", slice(F, 2 * F)),
            ("blocks.down", mlp + "down_proj", _ALL),
        ]
    else:
        up, down = ("c_fc", "c_proj") if form.model_type == "starcoder2" else ("up_proj", "down_proj")
        kernels += [("blocks.up", mlp + up, _ALL), ("blocks.down", mlp + down, _ALL)]
    norms = [
        ("final_norm.scale", "model.norm"),
        ("blocks.attention_norm.scale", layer + "input_layernorm"),
        ("blocks.feed_forward_norm.scale", layer + "post_attention_layernorm"),
    ]
    qk_norms = [(f"blocks.{each}_norm.scale", attention + f"{each}_norm") for each in "qk" if model.qk_norm]
    return [
        Part(EMBEDDING, "model.embed_tokens"),
        *(Part(ours, theirs, has_bias=form.has_biases) for ours, theirs in norms),
        *(Part(ours, theirs) for ours, theirs in qk_norms),
        *(Part(ours, theirs, columns, is_transposed=True) for ours, theirs, columns in kernels),
    ]


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model by its dotted path, as of `flat_parameters`."""
    params = nnx.eval_shape(lambda: nnx.state(Transformer(model, rngs=nnx.Rngs(params=0)), nnx.Param))
    return {name: leaf.shape for name, leaf in _leaves(params)}


def flat_parameters(params: nnx.State) -> dict[str, np.ndarray]:
    """Returns the parameters of a `TrainState` on the host, by dotted path: 'blocks.qkv'."""
    return {name: np.asarray(jax.device_get(leaf)) for name, leaf in _leaves(params)}


def as_state(abstract: nnx.State, params: Mapping[str, np.ndarray]) -> nnx.State:
    """Returns parameters by dotted path as the state of a model, given that with shapes or values of its own."""
    leaves = [(path, variable.replace(params[_name(path)])) for path, variable in nnx.to_flat_state(abstract)]
    return nnx.from_flat_state(leaves)


def _leaves(params: nnx.State) -> Iterator[tuple[str, jax.Array]]:
    for path, variable in nnx.to_flat_state(params):
        yield _name(path), variable.get_value()


def _name(path: Sequence) -> str:
    return ".".join(map(str, path))


def to_tensors(
    form: Form, model: ModelConfig, params: Mapping[str, np.ndarray], vocabulary_size: int
) -> dict[str, np.ndarray]:
    """Returns the tensors of a form, contiguous, in the dtype of the parameters.

    Args:
        form: of the model.
        model: the configuration.
        params: by dotted path.
        vocabulary_size: rows of the tables that are taken, those of the first ids.
    """
    tensors = {}
    for part in parts(form, model):
        for module, layer in part.names(model.depth):
            view = part.view(params[part.parameter], layer)
            is_table = part.parameter in (EMBEDDING, UNEMBEDDING)
            tensors[f"{module}.weight"] = np.ascontiguousarray(view[:vocabulary_size] if is_table else view)
            if part.has_bias:
                tensors[f"{module}.bias"] = np.zeros(view.shape[-1], view.dtype)
    return tensors


def from_tensors(
    form: Form, model: ModelConfig, tensors: Mapping[str, np.ndarray], vocabulary_size: int, source: Path
) -> dict[str, np.ndarray]:
    """Returns the float32 parameters of a model by dotted path, the inverse of `to_tensors`.

    Rows of the tables beyond those of the tensors, the ids that no tokenizer has, are 0.

    Args:
        form: of the model.
        model: the configuration.
        tensors: float, by name; each is read once, so they may be loaded when they are taken.
        vocabulary_size: rows of their tables.
        source: the folder, for errors.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or not finite, or a bias is not 0.
    """
    table = parts(form, model)
    _check_names(form, model, table, tensors, source)
    params = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(model).items()}
    for part in table:
        for module, layer in part.names(model.depth):
            name, view = f"{module}.weight", part.view(params[part.parameter], layer)
            tensor = tensors[name]
            if part.parameter in (EMBEDDING, UNEMBEDDING):
                view = view[:vocabulary_size]
            require(
                tensor.shape == view.shape,
                f"{source}: {name} has shape {_shape(tensor)}, not {_shape(view)} as its config.json says",
            )
            view[...] = tensor
            require(bool(np.isfinite(view).all()), f"{source}: {name} has values that are not finite")
            if (bias := f"{module}.bias") in tensors:
                require(not np.any(tensors[bias]), f"{source}: {bias} is not 0: jaxformer has no biases")
    if model.tied_embeddings and "lm_head.weight" in tensors:
        head = tensors["lm_head.weight"].astype(np.float32)
        is_same = np.array_equal(head, params[EMBEDDING][:vocabulary_size])
        require(is_same, f"{source}: lm_head.weight is not the embedding, to which tie_word_embeddings ties it")
    return params


def _check_names(
    form: Form, model: ModelConfig, table: list[Part], tensors: Mapping[str, np.ndarray], source: Path
) -> None:
    """Raises `UserError` where a tensor is missing or unknown."""
    modules = [module for part in table for module, _ in part.names(model.depth)]
    missing = [name for module in modules if (name := f"{module}.weight") not in tensors]
    if missing:
        more = f", nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source}: it has no tensor {missing[0]}{more}")
    known = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | {"lm_head.weight"}
    unknown = [name for name in tensors if name not in known and not name.endswith(_BUFFERS)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"{source}: jaxformer has no parameter for {unknown[0]}{more}, a tensor of {form.architecture}")


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "()"
