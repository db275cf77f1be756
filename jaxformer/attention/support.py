"""Which implementations of attention can run on a device with a step's shapes, and why others cannot."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.devices.device import compute_capability

IMPLEMENTATIONS = ("xla", "pallas", "cudnn_packed")


class AttentionShape(NamedTuple):
    """The shapes that decide which implementations can run."""

    rows: int
    row_length: int
    heads: int
    key_value_heads: int
    head_width: int
    """`rows`, `row_length`, `heads`, `key_value_heads` and `head_width`: B, T, H, G, K."""
    dtype: Any
    """Dtype of queries, keys and values."""
    documents_per_row: int = 0
    """The most documents, or pieces of one, that the packer puts in a row; 0 for no bound."""
    window: int = 0
    """The most tokens that a token sees; 0 for all of its document's."""


def why_not(name: str, shape: AttentionShape, device: jax.Device) -> str:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Returns why an implementation cannot run on a device and these shapes, or '' if it can."""
    if name == "xla":
        return ""
    dtype = jnp.dtype(shape.dtype).name
    capability = compute_capability(device)
    if device.platform != "gpu" or capability is None:
        return f"needs an NVIDIA GPU, and this is a {device.device_kind}"
    if dtype not in ("bfloat16", "float16"):
        return f"needs bfloat16 or float16, and matmuls are {dtype}"
    required = 9.0 if name == "cudnn_packed" else 8.0
    if capability < required:
        return f"needs compute capability {required}, and this device has {capability}"
    if name == "pallas":
        return "" if shape.head_width in (32, 64, 128) else f"needs heads of 32, 64 or 128, not {shape.head_width}"
    if shape.head_width % 8 or shape.head_width > 128:
        return f"needs a head width that 8 divides, up to 128, not {shape.head_width}"
    if shape.window:
        return "has no sliding window"
    if not shape.documents_per_row:
        return "needs a bound on the documents in a row: packing.documents_per_row"
    if shape.rows * shape.row_length * shape.heads * shape.head_width >= 2**31:
        return "counts positions in 32 bits: fewer rows at once"
    if shape.heads != shape.key_value_heads and jax.__version_info__ < (0, 11):
        return "is wrong for grouped queries before JAX 0.11"
    return ""
