"""NorMuon: orthogonal updates in which each neuron moves as far as another (Li et al. 2025, arXiv 2510.05491)."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from jaxformer.config import Bounds, OneOf, PositiveFloat, check_fields
from jaxformer.model import ModelConfig
from jaxformer.optimizer import GROUPS, MUON_RMS, OPTIMIZERS, Optimizer, OptimizerConfig, groups_of, transform_of


@dataclass(frozen=True)
class NorMuon(Optimizer):
    """Another optimizer, Muon by default, whose direction of a kernel is divided by a second moment of each neuron.

    The result is then scaled to a root mean square of 0.2, as for Muon here and as in the paper; the authors' code
    restores the scale before the division instead. Momentum is the other optimizer's: Muon's is Nesterov's, as in their
    code, not the paper's plain one. A neuron is an output of a kernel (..., in, out).
    """

    optimizer: Annotated[str, OneOf(*OPTIMIZERS)] | Optimizer = "muon"
    """Name, or part."""
    b2: Annotated[float, Bounds(at_least=0, below=1)] = 0.95
    """Decay of the second moment, per step. It starts at 0; its bias is a common factor, removed by the scaling."""
    epsilon: PositiveFloat = 1e-10
    """Added to the root of the second moment."""

    def __post_init__(self):
        check_fields(self, "NorMuon")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns the direction; only kernels differ from the other optimizer's."""
        by_group: dict[Hashable, optax.GradientTransformation] = {
            group: self._normalise() if group == "matrix" else optax.identity() for group in GROUPS
        }
        return optax.chain(transform_of(self.optimizer, config, model), optax.partition(by_group, groups_of))

    def _normalise(self) -> optax.GradientTransformation:
        def init(params):
            return jax.tree.map(lambda x: jnp.zeros((*x.shape[:-2], 1, x.shape[-1]), jnp.float32), params)

        def moment(direction, second):
            return self.b2 * second + (1 - self.b2) * jnp.mean(jnp.square(direction), axis=-2, keepdims=True)

        def scaled(direction, second):
            normalised = direction / (jnp.sqrt(second) + self.epsilon)
            rms = jnp.sqrt(jnp.mean(jnp.square(normalised), axis=(-2, -1), keepdims=True))
            return MUON_RMS * normalised / (rms + self.epsilon)

        def update(updates, state, params=None):
            del params
            state = jax.tree.map(moment, updates, state)
            return jax.tree.map(scaled, updates, state), state

        return optax.GradientTransformation(init, update)
