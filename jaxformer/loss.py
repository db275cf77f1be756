"""Cross-entropy in nats, as sums and a weight, without holding all logits.

Logits are N x V: at a vocabulary of 32,768 they outweigh every other activation. Here they are made chunk by chunk of
tokens. When a gradient is wanted it is computed while a chunk's logits are alive, in the forward pass, so that
nothing is stored and nothing recomputed: three matmuls in all, as with full logits (the idea of Liger Kernel, Hsu et
al. 2024, arXiv 2410.10989). Logits, softmax and sums are float32; the unembedding's gradient is summed in float32.

There are two implementations: `xla`, on any device, and `pallas`, whose logits never reach a GPU's memory
(`loss_kernels.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.devices.device import compute_capability
from jaxformer.layers import unembed
from jaxformer.loss_kernels import TILES, Kernels, Partition, candidate_tiles, why_not


class LossSums(NamedTuple):
    """Sums over tokens; divide once, at the end, by `weight`."""

    objective: jax.Array
    """What is minimised: weighted nats and z-loss. Gradients flow from this field only."""
    nats: jax.Array
    """Weighted cross-entropy."""
    weight: jax.Array
    reported: dict[str, jax.Array]
    """What the layers report, by name: sums by layer, of which some are part of the objective; here none."""


def z_loss(log_partition_N: jax.Array, coefficient: float) -> jax.Array:
    """Returns `coefficient * log_partition ** 2` per token, which holds log Z near 0 (PaLM, arXiv 2204.02311)."""
    return coefficient * jnp.square(log_partition_N)


class TokenScores(NamedTuple):
    """What a model makes of each target."""

    nats_N: jax.Array
    """float32, cross-entropy: the negative log-likelihood."""
    is_likeliest_N: jax.Array
    """Whether no other token is likelier."""


def find_kernels(implementation: str | Kernels, width: int, dtype: Any, logit_soft_cap: float = 0.0) -> Kernels | None:
    """Returns the kernels that an implementation is, or None where it is `xla`.

    Args:
        implementation: kernels, a name in `TILES`, 'xla', or 'auto': `pallas` where the device at hand can run it.
        width, dtype: of the features.
        logit_soft_cap: as of `unembed`.
    """
    if not isinstance(implementation, str):
        return implementation
    if implementation == "auto":
        implementation = "xla" if why_not(width, dtype, jax.devices()[0]) else "pallas"
    if implementation == "xla":
        return None
    capability = compute_capability(jax.devices()[0])
    return Kernels(TILES[implementation] or candidate_tiles(logit_soft_cap, capability)[0])


class _Options(NamedTuple):
    """What is static about a loss; the first two as of `unembed`."""

    logit_soft_cap: float
    token_count: int | None
    z_loss_coefficient: float
    chunk_tokens: int
    kernels: Kernels | None

    @property
    def of_logits(self) -> dict:
        return {"logit_soft_cap": self.logit_soft_cap, "token_count": self.token_count}


def token_scores(
    features_ND,
    unembedding_VD,
    targets_N,
    *,
    count=None,
    logit_soft_cap=0.0,
    token_count=None,
    chunk_tokens=0,
    implementation: str | Kernels = "auto",
) -> TokenScores:
    """Returns the scores of the first `count` targets, or of all; for evaluation.

    Args:
        count: how many of the targets are wanted; the work grows with it, and it may differ from call to call of one
            compiled function. What stands behind them is not to be read.
        logit_soft_cap, token_count: as of `unembed`.
        implementation: as of `find_kernels`.
    """
    N = targets_N.shape[0]
    chunk_tokens = chunk_tokens or _default_chunk(unembedding_VD.shape[0])
    if count is not None:  # Whole chunks are computed.
        chunk_tokens = min(chunk_tokens, -(-N // 8))
    kernels = find_kernels(implementation, features_ND.shape[1], features_ND.dtype, logit_soft_cap)
    options = _Options(logit_soft_cap, token_count, 0.0, chunk_tokens, kernels)
    chunks = _chunks((features_ND, targets_N), unembedding_VD.shape[0], options)
    features_XCD, targets_XC = map(jnp.asarray, chunks)
    X, C = targets_XC.shape

    def add(chunk, scores):
        partition, _ = _partition(features_XCD[chunk], unembedding_VD, targets_XC[chunk], options)
        return TokenScores(
            scores.nats_N.at[chunk].set(partition.log_partition_N - partition.target_logits_N),
            scores.is_likeliest_N.at[chunk].set(partition.target_logits_N >= partition.max_N),
        )

    chunks = X if count is None else (count + C - 1) // C
    none = TokenScores(jnp.zeros((X, C), jnp.float32), jnp.zeros((X, C), bool))
    scores = jax.lax.fori_loop(0, chunks, add, none)
    return TokenScores(*(x.reshape(-1)[:N] for x in scores))


@jax.named_scope("loss")
def cross_entropy(
    features_ND: jax.Array,
    unembedding_VD: jax.Array,
    targets_N: jax.Array | np.ndarray,
    weights_N: jax.Array | np.ndarray,
    *,
    logit_soft_cap: float = 0.0,
    token_count: int | None = None,
    z_loss_coefficient: float = 0.0,
    chunk_tokens: int = 0,
    implementation: str | Kernels = "auto",
) -> LossSums:
    """Returns the sums of `weights_N`-weighted cross-entropy in nats; differentiable in features and unembedding.

    Args:
        targets_N: int32 ids in [0, V), below `token_count`.
        weights_N: float32; 0 excludes a token.
        logit_soft_cap, token_count: as of `unembed`.
        chunk_tokens: tokens whose logits, or their gradient, exist at once; 0 chooses for the device.
        implementation: as of `find_kernels`.
    """
    chunk_tokens = chunk_tokens or _default_chunk(unembedding_VD.shape[0])
    kernels = find_kernels(implementation, features_ND.shape[1], features_ND.dtype, logit_soft_cap)
    options = _Options(logit_soft_cap, token_count, z_loss_coefficient, chunk_tokens, kernels)
    sums = _cross_entropy(features_ND, unembedding_VD, targets_N, weights_N, options)
    return LossSums(sums.objective, jax.lax.stop_gradient(sums.nats), jax.lax.stop_gradient(sums.weight), {})


def _sums(features_ND, unembedding_VD, targets_N, weights_N, options: _Options):
    def accumulate(sums, chunk):
        return _add(sums, _chunk_sums(chunk, unembedding_VD, options)[0]), None

    chunks = _chunks((features_ND, targets_N, weights_N), unembedding_VD.shape[0], options)
    sums, _ = jax.lax.scan(accumulate, _zero_sums(), chunks)
    return sums


def _forward(features_ND, unembedding_VD, targets_N, weights_N, options: _Options):
    """Returns the sums, and as residual the gradients of `objective` by features and unembedding."""

    def accumulate(carry, chunk):
        sums, gradient_DV = carry
        features_CD = chunk[0]
        chunk_sums, (logits_CV, log_partition_C) = _chunk_sums(chunk, unembedding_VD, options)
        d_logits_CV = _logits_gradient(chunk, unembedding_VD, logits_CV, log_partition_C, options)
        d_features_CD = d_logits_CV @ unembedding_VD
        # A CPU's matmul turns its left operand round, and features are smaller than logits: a fifth less time.
        d_unembedding_DV = jnp.einsum("CD,CV->DV", features_CD, d_logits_CV, preferred_element_type=jnp.float32)
        return (_add(sums, chunk_sums), gradient_DV + d_unembedding_DV), d_features_CD

    zero_DV = jnp.zeros(unembedding_VD.shape[::-1], jnp.float32)
    chunks = _chunks((features_ND, targets_N, weights_N), unembedding_VD.shape[0], options)
    (sums, gradient_DV), gradients = jax.lax.scan(accumulate, (_zero_sums(), zero_DV), chunks)
    gradient_ND = gradients.reshape(-1, features_ND.shape[1])[: features_ND.shape[0]]
    return sums, (gradient_ND, gradient_DV.T.astype(unembedding_VD.dtype))


def _backward(options: _Options, residual, cotangent: LossSums):
    gradient_ND, gradient_VD = residual
    scale = cotangent.objective
    return gradient_ND * scale.astype(gradient_ND.dtype), gradient_VD * scale.astype(gradient_VD.dtype), None, None


_cross_entropy = jax.custom_vjp(_sums, nondiff_argnums=(4,))
_cross_entropy.defvjp(_forward, _backward)


def _chunk_sums(chunk, unembedding_VD, options: _Options):
    """Returns the sums of (features_CD, targets_C, weights_C) and, for its gradient, (logits_CV, log_partition_C)."""
    features_CD, targets_C, weights_C = chunk
    (log_partition_C, target_logits_C, _), logits_CV = _partition(features_CD, unembedding_VD, targets_C, options)
    nats = jnp.sum(weights_C * (log_partition_C - target_logits_C))
    penalty = jnp.sum(weights_C * z_loss(log_partition_C, options.z_loss_coefficient))
    return LossSums(nats + penalty, nats, jnp.sum(weights_C), {}), (logits_CV, log_partition_C)


def _partition(features_CD, unembedding_VD, targets_C, options: _Options) -> tuple[Partition, jax.Array | None]:
    """Returns what is left of the logits of each token, and, where they were in memory, `logits_CV`."""
    if options.kernels:
        return options.kernels.partition(features_CD, unembedding_VD, targets_C, **options.of_logits), None
    logits_CV = unembed(features_CD, unembedding_VD, options.logit_soft_cap, options.token_count)
    log_partition_C = jax.nn.logsumexp(logits_CV, axis=1)
    target_logits_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
    return Partition(log_partition_C, target_logits_C, logits_CV.max(axis=1)), logits_CV


def _logits_gradient(chunk, unembedding_VD, logits_CV, log_partition_C, options: _Options) -> jax.Array:
    """Returns the objective's gradient by what the unembedding yields, in the features' dtype."""
    features_CD, targets_C, weights_C = chunk
    slope_C = weights_C * (1.0 + 2.0 * options.z_loss_coefficient * log_partition_C)
    if options.kernels:
        of_tokens = targets_C, log_partition_C, slope_C, weights_C
        return options.kernels.gradient(features_CD, unembedding_VD, *of_tokens, **options.of_logits)
    probabilities_CV = jnp.exp(logits_CV - log_partition_C[:, None])
    is_target_CV = targets_C[:, None] == jnp.arange(unembedding_VD.shape[0])[None, :]
    d_logits_CV = probabilities_CV * slope_C[:, None] - jnp.where(is_target_CV, weights_C[:, None], 0.0)
    if cap := options.logit_soft_cap:  # Clipped, as MASKED squared is infinite; the gradient there is 0.
        d_logits_CV = d_logits_CV * (1.0 - jnp.square(jnp.maximum(logits_CV / cap, -1.0)))
    return d_logits_CV.astype(features_CD.dtype)


def _zero_sums() -> LossSums:
    return LossSums(jnp.float32(0), jnp.float32(0), jnp.float32(0), {})


def _add(a: LossSums, b: LossSums) -> LossSums:
    return jax.tree.map(jnp.add, a, b)


def default_chunk_tokens(vocabulary_size: int, platform: str) -> int:
    """Returns the tokens whose logits take 1 GB; on a CPU 256 MB, and no more than 2,048 tokens.

    Each chunk reads and writes the unembedding's gradient once, and its matmul sums over the chunk's tokens: on a CPU a
    step of 27 million parameters takes 8 % less time with one chunk of 2,048 tokens than with four.
    """
    if platform == "cpu":
        return max(1, min(2048, (1 << 26) // vocabulary_size))
    return max(1, (1 << 28) // vocabulary_size)


def _default_chunk(vocabulary_size: int) -> int:
    return default_chunk_tokens(vocabulary_size, jax.default_backend())


def _chunks(arrays: tuple, V: int, options: _Options) -> tuple:
    """Returns the arrays with their first axis N as (chunks, chunk_tokens), padded with zeros (weight 0)."""
    N, unit, most = arrays[0].shape[0], 1, options.chunk_tokens
    if options.kernels:  # Tokens of a tile; and kernels count the logits of a chunk in 32 bits.
        unit = options.kernels.tile.tokens
        most = max(unit, min(_round_up(most, unit), (2**31 - 1) // V // unit * unit))
    size = _round_up(-(-N // -(-N // most)), unit)
    count = -(-N // size)
    padding = count * size - N

    def chunked(x):
        padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) if padding else x
        return padded.reshape(count, size, *x.shape[1:])

    return tuple(chunked(x) for x in arrays)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
