"""No decay of embeddings, as in OLMo 2 (Team OLMo 2024, arXiv 2501.00656).

With decay, the rows of rare words shrink between the few steps that have a gradient for them, and a norm makes large
gradients from small rows.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxformer.config import OneOf, check_fields
from jaxformer.optimizer import DECAYS, Decay, decayed


@dataclass(frozen=True)
class EmbeddingsUndecayed(Decay):
    """Another decay, except of embedding tables: positions included, and a table that also unembeds."""

    decay: Annotated[str, OneOf(*DECAYS)] | Decay = "matrices"
    """Name, or part."""

    def __post_init__(self):
        check_fields(self, "EmbeddingsUndecayed")

    def decayed(self, group: str, parameter: jax.Array, direction: jax.Array) -> jax.Array:
        """Returns what the other decays, and zeros for embeddings."""
        if group == "embedding":
            return jnp.zeros_like(parameter)
        return decayed(self.decay, group, parameter, direction)
