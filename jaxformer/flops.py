"""Parameters and floating-point operations by formula, and what devices have: their peaks and memories."""

import re

import numpy as np

from jaxformer.model import ModelConfig

# Dense bfloat16 (V100, T4: float16) matmul peaks in TFLOP/s, from the makers' data sheets, by a part of JAX's name of
# the device; the first that fits counts.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}

# Memory in GB (10^9 bytes) from the same data sheets; of what was sold in two sizes, the smaller.
MEMORY_GB = {
    "H200": 141.0,
    "H100 PCIe": 80.0,
    "H100 NVL": 94.0,
    "H100": 80.0,
    "A100 80GB": 80.0,
    "A100": 40.0,
    "L40S": 48.0,
    "L40": 48.0,
    "L4": 24.0,
    "A10G": 24.0,
    "A10": 24.0,
    "RTX 4090": 24.0,
    "RTX 3090": 24.0,
    "V100 32GB": 32.0,
    "V100": 16.0,
    "T4": 16.0,
}


def peak_tflops(device_kind: str) -> float | None:
    """Returns the peak of a device in TFLOP/s, or None where it is not known."""
    return _of_device(PEAK_TFLOPS, device_kind)


def memory_gigabytes(device_kind: str) -> float | None:
    """Returns the memory of a device in GB, or None where it is not known."""
    return _of_device(MEMORY_GB, device_kind)


def _of_device(table: dict[str, float], device_kind: str) -> float | None:
    return next((value for name, value in table.items() if re.search(rf"\b{name}\b", device_kind)), None)


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
