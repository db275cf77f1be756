"""How the next token of a text is drawn from the model's logits: temperature, top-k and top-p.

Axes: B row, V vocabulary.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.attention.reference import MASKED
from jaxformer.config import Bounds, NonNegativeInt32, check_fields, require

# The most tokens of a text, prompt included: the keys and values of so many take 21 GB in bfloat16 in a model of 500
# million parameters.
MAX_TOKENS = 1 << 17

# Between these, logits divided by a temperature stay well within float32.
_COLDEST, _HOTTEST = 1e-3, 1e3

_SEEDS = 1 << 32


@dataclass(frozen=True)
class Sampling:
    """How a text is generated; top_p applies after top_k."""

    tokens: Annotated[int, Bounds(at_least=1, at_most=MAX_TOKENS)] = 200
    """The most tokens to generate; a text ends earlier at EOS, or at the model's last learned position."""
    temperature: float = 0.8
    """Divides the logits before a token is drawn; 0 takes the likeliest token."""
    top_k: NonNegativeInt32 = 0
    """Draws among the k likeliest tokens, and those as likely as the last of them; 0 among all."""
    top_p: Annotated[float, Bounds(above=0, at_most=1)] = 1.0
    """Draws among the fewest likeliest tokens whose probabilities sum to p or more, and those as likely as the last of
    them (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751); 1 among all.
    """
    seed: Annotated[int, Bounds(at_least=0, below=_SEEDS)] = 0
    """Of the random draws: the same seed gives the same text."""

    def __post_init__(self):
        check_fields(self)
        require(
            self.temperature == 0 or _COLDEST <= self.temperature <= _HOTTEST,
            f"temperature ({self.temperature}) must be 0, for the likeliest token, or between {_COLDEST} and "
            f"{_HOTTEST:.0f}",
        )

    def arrays(self, first_row: int = 0) -> "SamplingArrays":
        """Returns the options for a compiled function; `first_row` is the number of the first row for a seed."""
        return SamplingArrays(
            np.uint32(self.seed),
            np.float32(self.temperature),
            np.int32(self.top_k),
            np.float32(self.top_p),
            np.int32(first_row),
        )

    def reseeded(self, number: int) -> "Sampling":
        """Returns the same with a seed larger by `number`; 0 follows the largest seed."""
        return dataclasses.replace(self, seed=(self.seed + number) % _SEEDS)


class SamplingArrays(NamedTuple):
    """The options of `Sampling` as arrays, so that other values compile nothing."""

    seed: np.uint32
    temperature: np.float32
    top_k: np.int32
    top_p: np.float32
    first_row: np.int32


def draw(logits_BV: jax.Array, number: jax.Array | int, options: SamplingArrays) -> jax.Array:
    """Returns a token for each row, int32 (B,); only what the options need is computed.

    Each row has its own random key, made from the seed and its number, so that its draws do not depend on other rows.

    Args:
        logits_BV: float32.
        number: tokens of each row drawn before.
        options: of the draw.
    """

    def draw_tokens():
        scaled_BV = logits_BV / options.temperature
        is_truncated = (options.top_k > 0) | (options.top_p < 1)
        scaled_BV = jax.lax.cond(is_truncated, lambda: _truncate(scaled_BV, options), lambda: scaled_BV)
        key, rows_B = jax.random.key(options.seed), options.first_row + jnp.arange(logits_BV.shape[0])
        keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), number))(rows_B)
        return jax.vmap(jax.random.categorical)(keys_B, scaled_BV)

    tokens_B = jax.lax.cond(options.temperature > 0, draw_tokens, lambda: jnp.argmax(logits_BV, axis=1))
    return tokens_B.astype(jnp.int32)


def _truncate(logits_BV, options: SamplingArrays) -> jax.Array:
    """Returns the logits, with those masked that top_k or top_p leaves out."""
    V = logits_BV.shape[1]
    is_kept_BV = _likeliest(logits_BV, jnp.ones_like(logits_BV), jnp.where(options.top_k > 0, options.top_k, V))
    logits_BV = jnp.where(is_kept_BV, logits_BV, MASKED)
    # The bound exceeds any sum of probabilities; otherwise rounding could leave tokens out at 1.
    total = jnp.where(options.top_p < 1, options.top_p, jnp.inf)
    return jnp.where(_likeliest(logits_BV, jax.nn.softmax(logits_BV, axis=1), total), logits_BV, MASKED)


def _likeliest(logits_BV, weights_BV, total) -> jax.Array:
    """Returns a mask of the fewest largest logits of each row whose weights sum to `total` or more, or of all.

    The smallest kept logit is found bit by bit, from the highest bit: 32 sums. Sorting 32,768 logits would take a CPU
    longer than a token of a model of 27 million parameters.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # In numerical order: among negative numbers a larger bit pattern is smaller.
    ordered_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def try_bit(i, threshold_B1):
        larger_B1 = threshold_B1 | (sign >> i.astype(jnp.uint32))
        sum_B1 = jnp.sum(jnp.where(ordered_BV >= larger_B1, weights_BV, 0), axis=1, keepdims=True)
        return jnp.where(sum_B1 >= total, larger_B1, threshold_B1)

    return ordered_BV >= jax.lax.fori_loop(0, 32, try_bit, jnp.zeros_like(ordered_BV[:, :1]))
