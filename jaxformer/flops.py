"""Parameters and floating-point operations of a model, by formula."""

import numpy as np

from jaxformer.model import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """Returns all parameters: the matrices, the lookups and the gains of the norms."""
    D = config.width
    lookups = config.learned_positions * D + (0 if config.tied_embeddings else config.vocabulary_size * D)
    block_gains = 2 * D + (2 * config.K if config.qk_norm else 0)
    return matmul_parameters(config) + lookups + config.depth * block_gains + D


def matmul_parameters(config: ModelConfig) -> int:
    """Returns the parameters that multiply every token: all matrices but the lookups, the unembedding among them."""
    D, H, G, K, F = config.width, config.heads, config.G, config.K, config.F
    attention = D * (H + 2 * G) * K + H * K * D
    feed_forward = D * F * (3 if config.activation == "swiglu" else 2)
    return config.depth * (attention + feed_forward) + config.vocabulary_size * D


def training_flops_per_token(config: ModelConfig, row_length: int) -> float:
    """Returns the FLOPs of forward and backward pass per token, with causal attention over whole rows.

    6 per matmul parameter and 6 x L x H x K x T for attention: half of the square that PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311) counts, since a causal token sees half of its row on average. Document masks are not subtracted,
    so that the figure can be compared with other libraries'; a sliding window is.
    """
    window = min(config.sliding_window or row_length, row_length)
    visible = window - window**2 / (2 * row_length)  # keys of a query on average
    return 6 * matmul_parameters(config) + 12 * config.depth * config.heads * config.K * visible


def document_flops_per_token(config: ModelConfig, positions: np.ndarray) -> float:
    """Returns the FLOPs of forward and backward pass per token that the documents of a batch ask for.

    6 per matmul parameter and 12 x L x H x K x the keys that a token sees, on average: its position in its document
    and one, a sliding window at most.

    Args:
        positions: of every token in its document, of any shape.
    """
    visible = np.minimum(positions + 1, config.sliding_window or np.inf).mean()
    return 6 * matmul_parameters(config) + 12 * config.depth * config.heads * config.K * float(visible)


def embedding_parameters(config: ModelConfig) -> int:
    """Returns the parameters of the token tables: one if they are tied, else two."""
    return config.vocabulary_size * config.width * (1 if config.tied_embeddings else 2)
