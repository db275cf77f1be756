"""Cross-entropy in nats, as sums and a weight, without holding all logits.

Logits are N x V: at a vocabulary of 32,768 they outweigh every other activation. Here they are made chunk by chunk of
tokens. When a gradient is wanted it is computed while a chunk's logits are alive, in the forward pass, so that
nothing is stored and nothing recomputed: three matmuls in all, as with full logits (the idea of Liger Kernel, Hsu et
al. 2024, arXiv 2410.10989). Logits, softmax and sums are float32; the unembedding's gradient is summed in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers import unembed


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


def token_scores(
    features_ND, unembedding_VD, targets_N, *, count=None, logit_soft_cap=0.0, token_count=None, chunk_tokens=0
) -> TokenScores:
    """Returns the scores of the first `count` targets, or of all; for evaluation.

    Args:
        count: how many of the targets are wanted; the work grows with it, and it may differ from call to call of one
            compiled function. What stands behind them is not to be read.
        logit_soft_cap, token_count: as of `unembed`.
    """
    N = targets_N.shape[0]
    chunk_tokens = chunk_tokens or _default_chunk(unembedding_VD.shape[0])
    if count is not None:  # Whole chunks are computed.
        chunk_tokens = min(chunk_tokens, -(-N // 8))
    features_XCD, targets_XC = map(jnp.asarray, _chunks((features_ND, targets_N), chunk_tokens))
    X, C = targets_XC.shape

    def add(chunk, scores):
        logits_CV = unembed(features_XCD[chunk], unembedding_VD, logit_soft_cap, token_count)
        target_logits_C = jnp.take_along_axis(logits_CV, targets_XC[chunk][:, None], axis=1)[:, 0]
        nats_C = jax.nn.logsumexp(logits_CV, axis=1) - target_logits_C
        return TokenScores(
            scores.nats_N.at[chunk].set(nats_C),
            scores.is_likeliest_N.at[chunk].set(target_logits_C >= logits_CV.max(axis=1)),
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
) -> LossSums:
    """Returns the sums of `weights_N`-weighted cross-entropy in nats; differentiable in features and unembedding.

    Args:
        targets_N: int32 ids in [0, V), below `token_count`.
        weights_N: float32; 0 excludes a token.
        logit_soft_cap, token_count: as of `unembed`.
        chunk_tokens: tokens whose logits exist at once; 0 chooses for the device.
    """
    chunk_tokens = chunk_tokens or _default_chunk(unembedding_VD.shape[0])
    options = (logit_soft_cap, token_count, z_loss_coefficient, chunk_tokens)
    sums = _cross_entropy(features_ND, unembedding_VD, targets_N, weights_N, *options)
    return LossSums(sums.objective, jax.lax.stop_gradient(sums.nats), jax.lax.stop_gradient(sums.weight), {})


def _sums(features_ND, unembedding_VD, targets_N, weights_N, cap, token_count, z_coefficient, chunk_tokens):
    def accumulate(sums, chunk):
        return _add(sums, _chunk_sums(chunk, unembedding_VD, cap, token_count, z_coefficient)[0]), None

    sums, _ = jax.lax.scan(accumulate, _zero_sums(), _chunks((features_ND, targets_N, weights_N), chunk_tokens))
    return sums


def _forward(features_ND, unembedding_VD, targets_N, weights_N, cap, token_count, z_coefficient, chunk_tokens):
    """Returns the sums, and as residual the gradients of `objective` by features and unembedding."""
    V = unembedding_VD.shape[0]

    def accumulate(carry, chunk):
        sums, gradient_DV = carry
        features_CD, targets_C, weights_C = chunk
        chunk_sums, (logits_CV, log_partition_C) = _chunk_sums(chunk, unembedding_VD, cap, token_count, z_coefficient)
        probabilities_CV = jnp.exp(logits_CV - log_partition_C[:, None])
        is_target_CV = targets_C[:, None] == jnp.arange(V)[None, :]
        slope_C1 = (weights_C * (1.0 + 2.0 * z_coefficient * log_partition_C))[:, None]
        d_logits_CV = probabilities_CV * slope_C1 - jnp.where(is_target_CV, weights_C[:, None], 0.0)
        if cap:  # Clipped, as MASKED squared is infinite; the gradient there is 0.
            d_logits_CV = d_logits_CV * (1.0 - jnp.square(jnp.maximum(logits_CV / cap, -1.0)))
        d_logits_CV = d_logits_CV.astype(features_CD.dtype)
        d_features_CD = d_logits_CV @ unembedding_VD
        # A CPU's matmul turns its left operand round, and features are smaller than logits: a fifth less time.
        d_unembedding_DV = jnp.einsum("CD,CV->DV", features_CD, d_logits_CV, preferred_element_type=jnp.float32)
        return (_add(sums, chunk_sums), gradient_DV + d_unembedding_DV), d_features_CD

    zero_DV = jnp.zeros(unembedding_VD.shape[::-1], jnp.float32)
    chunks = _chunks((features_ND, targets_N, weights_N), chunk_tokens)
    (sums, gradient_DV), gradients = jax.lax.scan(accumulate, (_zero_sums(), zero_DV), chunks)
    gradient_ND = gradients.reshape(-1, features_ND.shape[1])[: features_ND.shape[0]]
    return sums, (gradient_ND, gradient_DV.T.astype(unembedding_VD.dtype))


def _backward(cap, token_count, z_coefficient, chunk_tokens, residual, cotangent: LossSums):
    gradient_ND, gradient_VD = residual
    scale = cotangent.objective
    return gradient_ND * scale.astype(gradient_ND.dtype), gradient_VD * scale.astype(gradient_VD.dtype), None, None


_cross_entropy = jax.custom_vjp(_sums, nondiff_argnums=(4, 5, 6, 7))
_cross_entropy.defvjp(_forward, _backward)


def _chunk_sums(chunk, unembedding_VD, cap, token_count, z_coefficient):
    """Returns the sums of (features_CD, targets_C, weights_C) and, for its gradient, (logits_CV, log_partition_C)."""
    features_CD, targets_C, weights_C = chunk
    logits_CV = unembed(features_CD, unembedding_VD, cap, token_count)
    log_partition_C = jax.nn.logsumexp(logits_CV, axis=1)
    target_logits_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
    nats = jnp.sum(weights_C * (log_partition_C - target_logits_C))
    penalty = jnp.sum(weights_C * z_loss(log_partition_C, z_coefficient))
    return LossSums(nats + penalty, nats, jnp.sum(weights_C), {}), (logits_CV, log_partition_C)


def _zero_sums() -> LossSums:
    return LossSums(jnp.float32(0), jnp.float32(0), jnp.float32(0), {})


def _add(a: LossSums, b: LossSums) -> LossSums:
    return jax.tree.map(jnp.add, a, b)


def default_chunk_tokens(vocabulary_size: int, platform: str) -> int:
    """Returns the tokens whose logits take 1 GB; on a CPU 64 MB, and no more than 512 tokens.

    Each chunk reads and writes the unembedding's gradient once: with 32 tokens of a vocabulary of 32,768 that took as
    long as the matmuls.
    """
    if platform == "cpu":
        return max(1, min(512, (1 << 24) // vocabulary_size))
    return max(1, (1 << 28) // vocabulary_size)


def _default_chunk(vocabulary_size: int) -> int:
    return default_chunk_tokens(vocabulary_size, jax.default_backend())


def _chunks(arrays: tuple, chunk_tokens: int) -> tuple:
    """Returns the arrays with their first axis N as (chunks, chunk_tokens), padded with zeros (weight 0)."""
    N = arrays[0].shape[0]
    count = -(-N // chunk_tokens)
    size = -(-N // count)
    padding = count * size - N

    def chunked(x):
        padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) if padding else x
        return padded.reshape(count, size, *x.shape[1:])

    return tuple(chunked(x) for x in arrays)
