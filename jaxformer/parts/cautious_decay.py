"""Cautious weight decay: none against the direction of descent (Chen et al. 2025, arXiv 2510.12402)."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxformer.config import OneOf, check_fields
from jaxformer.optimizer import DECAYS, Decay, decayed


@dataclass(frozen=True)
class CautiousDecay(Decay):
    """Another decay, only of those numbers that the optimizer moves towards zero as well."""

    decay: Annotated[str, OneOf(*DECAYS)] | Decay = "matrices"
    """Name, or part."""

    def __post_init__(self):
        check_fields(self, "CautiousDecay")

    def decayed(self, group: str, parameter: jax.Array, direction: jax.Array) -> jax.Array:
        """Returns what the other decays where parameter and direction have the same sign, or one is zero."""
        return jnp.where(parameter * direction >= 0, decayed(self.decay, group, parameter, direction), 0)
