"""Parameters and floating-point operations of a model, counted on the model: on its leaves and its forward pass.

The forward pass is traced and nothing is computed, so that the counts are right whatever the model is made of.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.layers import Kernel, Rows
from jaxformer.model import VOCABULARY_TABLES, ModelConfig, abstract_model


class Operations(NamedTuple):
    """Floating-point operations of the forward pass for one token."""

    matmuls: float
    """Of all matrix products, unembedding included, attention excluded."""
    hidden: float
    """Of the matrix products whose output has the `checkpoint_name` "hidden"."""
    kernels: float
    """Parameters of the kernels that a token is multiplied with; of experts, only those that it is sent to."""
    per_key: tuple[int, ...]
    """Of attention, in each layer, for each key that a token sees."""


def parameter_count(config: ModelConfig) -> int:
    """Returns all parameters: the matrices, the lookups and the gains of the norms."""
    return sum(size for _, size in _sizes(config).values())


def kernel_parameters(config: ModelConfig) -> int:
    """Returns the parameters of the matrices that multiply, without the unembedding."""
    return sum(size for kind, size in _sizes(config).values() if issubclass(kind, Kernel))


def embedding_parameters(config: ModelConfig) -> int:
    """Returns the parameters of the token tables: one if they are tied, else two."""
    return sum(size for path, (_, size) in _sizes(config).items() if path[-1] in VOCABULARY_TABLES)


def active_parameters(config: ModelConfig, row_length: int) -> int:
    """Returns the parameters that a token uses: of experts, for example, only those that it is sent to."""
    return parameter_count(config) - kernel_parameters(config) + round(forward_operations(config, row_length).kernels)


def describe_parameters(config: ModelConfig, row_length: int) -> str:
    """Returns the counts in words, the active ones where they are fewer."""
    total, active = parameter_count(config), active_parameters(config, row_length)
    text = f"{total:,}, {total - embedding_parameters(config):,} without embeddings"
    return f"{text}; a token uses {active:,}" if active < total else text


@functools.cache
def _sizes(config: ModelConfig) -> dict[tuple, tuple[type, int]]:
    """Returns the class and the size of each parameter by its path."""
    params = nnx.to_flat_state(nnx.state(abstract_model(config)))
    return {path: (type(leaf), math.prod(leaf.shape)) for path, leaf in params}


def training_flops_per_token(config: ModelConfig, row_length: int) -> float:
    """Returns the FLOPs of forward and backward pass per token, with causal attention over whole rows.

    The backward pass counts twice the forward pass. Attention counts half of the square that PaLM (Chowdhery et al.
    2022, arXiv 2204.02311) counts, since a causal token sees half of its row on average. Document masks are not
    subtracted, so that the figure can be compared with other libraries'; a sliding window is.
    """
    window = min(config.sliding_window, row_length)
    in_window = window - window**2 / (2 * row_length)  # Keys of a query on average.
    return _training_flops(config, row_length, row_length / 2, in_window)


def document_flops_per_token(config: ModelConfig, positions: np.ndarray) -> float:
    """Returns the FLOPs of forward and backward pass per token that the documents of a batch need.

    Attention counts the keys that a token sees, on average: its position in its document plus one, and no more than a
    sliding window.

    Args:
        positions: of every token in its document; the last axis is a row.
    """
    in_window = np.minimum(positions + 1, config.sliding_window).mean()
    return _training_flops(config, positions.shape[-1], float((positions + 1).mean()), float(in_window))


def _training_flops(config: ModelConfig, row_length: int, keys: float, keys_in_window: float) -> float:
    forward = forward_operations(config, row_length)
    by_layer = zip(forward.per_key, config.have_window, strict=True)
    attention = sum(of_key * (keys_in_window if has_window else keys) for of_key, has_window in by_layer)
    return 3 * (forward.matmuls + attention)


def forward_operations(config: ModelConfig, row_length: int) -> Operations:
    """Returns the operations of the forward pass over rows of a length, for each of their tokens."""
    # How it is computed changes nothing.
    return _forward_operations(dataclasses.replace(config, remat="none", scan_unroll=1), row_length)


@functools.cache
def _forward_operations(config: ModelConfig, row_length: int) -> Operations:
    graphdef, params = nnx.split(abstract_model(config))
    integers_1T = jax.ShapeDtypeStruct((1, row_length), jnp.int32)

    def forward(params, tokens_1T):
        model = nnx.merge(graphdef, params)
        weights_1T = jnp.ones(tokens_1T.shape, jnp.float32)
        rows = Rows(tokens_1T, tokens_1T, tokens_1T, tokens_1T, weights_1T)

        def attention(q_NHK, k_NGK, v_NGK, _, has_window):
            # Queries times keys, and weights times values; here only their shapes matter.
            cost = jnp.zeros((2, q_NHK.shape[1], q_NHK.shape[2] + v_NGK.shape[2]))
            return jnp.zeros((*q_NHK.shape[:2], v_NGK.shape[2]), q_NHK.dtype), cost

        x_ND = model.embed(tokens_1T.reshape(-1), tokens_1T.reshape(-1))
        features_ND, _, costs = model.apply_blocks(x_ND, rows, attention)
        auxiliary = model.auxiliary_loss and model.auxiliary_loss(model, features_ND, rows, tokens_1T)
        return model.logits(features_ND), costs, auxiliary

    jaxpr, (_, costs, _) = jax.make_jaxpr(forward, return_shape=True)(params, integers_1T)
    of_group = [sum(math.prod(cost.shape[1:]) for cost in of_layer) for of_layer in costs]
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    found = _products(jaxpr, [*(isinstance(leaf, Kernel) for leaf in leaves), False], row_length)
    per_key = tuple(of_group) * (config.depth // config.group)
    return Operations(found.flops / row_length, found.hidden / row_length, found.kernels, per_key)


class _Products(NamedTuple):
    """Sums over the products of a program."""

    flops: float = 0
    hidden: float = 0
    """Of `flops`, those whose output is named "hidden"."""
    kernels: float = 0
    """Parameters of kernels that a token is multiplied with, on average over the tokens."""


def _products(jaxpr: Any, is_kernel: Sequence[bool], tokens: int) -> _Products:
    """Returns the products of a program, some of whose inputs are kernels; a `while` loop counts as one iteration."""
    total, flops_of = np.zeros(3), {}
    kernels = {var for var, is_one in zip(jaxpr.invars, is_kernel, strict=True) if is_one}
    for equation in jaxpr.eqns:
        name, options, inputs = equation.primitive.name, equation.params, equation.invars
        inner = [value for value in _flat(options.values()) if hasattr(value, "eqns")]
        if name in _PRODUCTS:
            (contracted, _), _ = _PRODUCTS[name](options)
            output, left = equation.outvars[0], inputs[0].aval
            flops = 2 * math.prod(output.aval.shape) * math.prod(left.shape[axis] for axis in contracted)
            size = min((math.prod(x.aval.shape) for x in inputs[:2] if _is_in(x, kernels)), default=0)
            flops_of[output] = flops
            total += (flops, 0, min(size, flops / 2 / tokens))
        elif name == "name" and options["name"] == "hidden":
            total[1] += flops_of.get(inputs[0], 0)
        elif inner:
            given = [_is_in(x, kernels) for x in inputs][name == "cond" :]
            found = np.array([_products(each, _for_inputs(each, given), tokens) for each in inner])
            if name == "cond":  # The last branch is for any platform: what is meant, not how.
                of_inner = found[-1] if options.get("branches_platforms") else found.max(axis=0)
            else:
                of_inner = options.get("length", 1) * found.sum(axis=0)
            total += of_inner
            flops_of[equation.outvars[0]] = of_inner[0]
        elif name in _SAME_VALUES and _is_in(inputs[0], kernels):
            kernels |= {*equation.outvars}
    return _Products(*total)


def _is_in(x: Any, variables: set) -> bool:
    return not isinstance(x, jax.extend.core.Literal) and x in variables


def _for_inputs(jaxpr: Any, given: list[bool]) -> list[bool]:
    """Returns which inputs of an inner program are kernels, if they are the outer equation's."""
    return given if len(given) == len(jaxpr.invars) else [False] * len(jaxpr.invars)


# Operations whose output is still the kernel.
_SAME_VALUES = {
    "broadcast_in_dim", "convert_element_type", "copy", "gather", "reshape", "slice", "split", "squeeze", "transpose",
}  # fmt: skip

_PRODUCTS = {
    "dot_general": lambda params: params["dimension_numbers"],
    "ragged_dot_general": lambda params: params["ragged_dot_dimension_numbers"].dot_dimension_numbers,
}


def _flat(values: Iterable[Any]) -> list[Any]:
    return [each for value in values for each in (value if isinstance(value, tuple | list) else (value,))]
