"""Muon that treats the queries, keys and values of each head as separate matrices.

GLM-5's Muon Split (GLM-5 Team 2026, arXiv 2602.15763) does so with the matrices of its latent attention.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import optax
from flax import nnx

from jaxformer.config import OneOf, check_fields, require
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OPTIMIZERS, Optimizer, OptimizerConfig, transform_of

# The kernel (..., in, heads x head width) of all heads' queries, keys and values, by its name in the model.
_KERNEL = "qkv"


@dataclass(frozen=True)
class PerHead(Optimizer):
    """Another optimizer, which gets the kernel of queries, keys and values as one matrix per head."""

    optimizer: Annotated[str, OneOf(*OPTIMIZERS)] | Optimizer = "muon"
    """Name, or part; an elementwise optimizer such as AdamW is not changed."""

    def __post_init__(self):
        check_fields(self, "PerHead")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns the direction of that optimizer, in the original shapes.

        Raises:
            UserError: the model has no such kernel.
        """
        inner = transform_of(self.optimizer, config, model)

        def init(params):
            return inner.init(split_heads(params, model.K))

        def update(updates, state, params=None):
            split = split_heads(updates, model.K)
            split, state = inner.update(split, state, None if params is None else split_heads(params, model.K))
            return jax.tree.map(lambda whole, part: merged(part, whole.shape), updates, split), state

        return optax.GradientTransformation(init, update)


def split_heads(tree: nnx.State, head_width: int) -> nnx.State:
    """Returns a tree in which the kernel (..., in, heads x K) is (..., heads, in, K)."""
    found = []

    def split(path, variable):
        if jax.tree_util.keystr(path[-1:], simple=True) != _KERNEL:
            return variable
        found.append(path)
        x = variable[...]
        return variable.replace(x.reshape(*x.shape[:-1], -1, head_width).swapaxes(-3, -2))

    result = jax.tree_util.tree_map_with_path(split, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    require(bool(found), f"PerHead needs a kernel that is named {_KERNEL}, which this model has not")
    return result


def merged(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns an array in its shape before `split_heads`."""
    return x if x.shape == shape else x.swapaxes(-3, -2).reshape(shape)
