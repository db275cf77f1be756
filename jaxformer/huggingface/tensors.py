"""The parameters of a model as the tensors of its architecture in transformers, and back.

Kernels are (in, out) here and (out, in) there, except GPT-2's. Queries, keys and values are one kernel here, as are the
gate and the value of SwiGLU; the layers are stacked here. Nothing is permuted within a head.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxformer.config import require
from jaxformer.huggingface.architectures import Architecture
from jaxformer.model import VOCABULARY_TABLES, ModelConfig, abstract_model

# Values of one parameter beyond which numpy cannot even describe it.
_SIZE_LIMIT = 2**60
# Computed from the configuration and stored by old versions of transformers.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def by_path(params: nnx.State) -> dict[str, jax.Array]:
    """Returns parameters by dotted path: 'blocks.attention.qkv'."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(params)}


def flat_parameters(params: nnx.State) -> dict[str, np.ndarray]:
    """Returns parameters on the host, by dotted path."""
    return {name: np.asarray(jax.device_get(leaf)) for name, leaf in by_path(params).items()}


def as_state(params: Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct], like: nnx.State) -> nnx.State:
    """Returns parameters by dotted path, which may be abstract, as the state of a model like another."""
    leaves = [(path, variable.replace(params[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(like)]
    return nnx.from_flat_state(leaves)


def with_vocabulary(params: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Returns parameters by dotted path with so many rows of the tables: the first ones, then zeros."""
    return {name: _first_rows(value, rows) if name in VOCABULARY_TABLES else value for name, value in params.items()}


def _first_rows(table: np.ndarray, rows: int) -> np.ndarray:
    missing = max(0, rows - len(table))
    return np.pad(table, ((0, missing), (0, 0))) if missing else table[:rows]


def to_tensors(
    architecture: Architecture, model: ModelConfig, params: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the tensors of a model's architecture, contiguous, in the dtype of the parameters.

    Args:
        architecture: of the model.
        model: the configuration.
        params: by dotted path.
    """
    tensors = {}
    for module, view, has_bias in _views(architecture, model, params):
        tensors[f"{module}.weight"] = np.ascontiguousarray(view)
        if has_bias:
            tensors[f"{module}.bias"] = np.zeros(view.shape[-1], view.dtype)
    return tensors


def from_tensors(
    architecture: Architecture, model: ModelConfig, tensors: Mapping[str, StoredTensor], source: Path
) -> dict[str, np.ndarray]:
    """Returns the float32 parameters of a model by dotted path, the inverse of `to_tensors`.

    Args:
        architecture: of the model.
        model: the configuration.
        tensors: by name; read one by one, so that not all are in memory at once. If no name has the architecture's
            prefix ('transformer.'), as in a model saved without its head, it is added.
        source: the folder, for errors.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or not finite, or a bias is not 0.
    """
    tensors = _with_prefix(architecture, tensors)
    params = _empty_parameters(architecture, model, tensors, source)
    views = {module: view for module, view, _ in _views(architecture, model, params)}
    known = {f"{module}.{kind}" for module in views for kind in ("weight", "bias")} | {"lm_head.weight"}
    unknown = [name for name in tensors if name not in known and not name.endswith(_BUFFERS)]
    what = f"jaxformer has no parameter for {_first(unknown, ' and')}, a tensor of {architecture.name}"
    require(not unknown, f"{source}: {what}")
    for module, view in views.items():
        name, bias = f"{module}.weight", f"{module}.bias"
        view[...] = tensors[name].read()
        require(bool(np.isfinite(view).all()), f"{source}: {name} has values that are not finite")
        is_without = bias not in tensors or not np.any(tensors[bias].read())
        require(is_without, f"{source}: {bias} is not 0: jaxformer has no biases")
    if model.tied_embeddings and "lm_head.weight" in tensors:
        is_same = np.array_equal(tensors["lm_head.weight"].read().astype(np.float32), params["embedding"])
        require(is_same, f"{source}: lm_head.weight is not the embedding, to which tie_word_embeddings ties it")
    return params


def _with_prefix(architecture: Architecture, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Returns tensors by their names in a model with its head."""
    prefix = next(iter(architecture.modules)).partition(".")[0] + "."
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in tensors.items()}


def _empty_parameters(
    architecture: Architecture, model: ModelConfig, tensors: Mapping[str, StoredTensor], source: Path
) -> dict[str, np.ndarray]:
    """Returns zeros for the parameters of a model, after checking the shapes of its tensors.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    shapes = {name: leaf.shape for name, leaf in by_path(nnx.state(abstract_model(model))).items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    what = f"its config.json describes {largest} of {sizes[largest]:,} values, more than any memory holds"
    require(sizes[largest] < _SIZE_LIMIT, f"{source}: {what}")
    without_memory = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    for module, view, _ in _views(architecture, model, without_memory):
        name = f"{module}.weight"
        require(name in tensors, f"{source}: it has no tensor {name}")
        shape = tensors[name].shape
        require(
            shape == view.shape,
            f"{source}: {name} has shape {_shape(shape)}, not {_shape(view.shape)} as its config.json says",
        )
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _views(
    architecture: Architecture, model: ModelConfig, params: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields each module of an architecture, its weight as a view of our parameters, and whether it has a bias."""
    H, G, K, F = model.heads, model.G, model.K, model.F
    columns = {
        "": slice(None),
        "queries": slice(0, H * K),
        "keys": slice(H * K, (H + G) * K),
        "values": slice((H + G) * K, None),
        "gate": slice(0, F),
        "value": slice(F, None),
    }
    for module, place in architecture.modules.items():
        name, _, part = place.partition("/")
        if name not in params:  # The unembedding of a tied model.
            continue
        stacked, is_layer = params[name][..., columns[part]], "{}" in module
        is_layer_norm = name.endswith(".scale") and architecture.norm == "layernorm"
        has_bias = is_layer_norm or (is_layer and architecture.is_conv1d)
        if not is_layer:
            yield module, stacked, has_bias
            continue
        for layer, view in enumerate(stacked):
            yield module.format(layer), view if architecture.is_conv1d else view.T, has_bias


def _first(names: list[str], word: str) -> str:
    """Returns the first of some names, and how many more there are."""
    return f"{''.join(names[:1])}{f'{word} {len(names) - 1} more' if len(names) > 1 else ''}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"
