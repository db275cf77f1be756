"""The exponential of kernels in Pallas-Triton."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton


def make_exp2(interpret: bool) -> Callable:
    """Returns the function of `(logits, scale, shift)` to 2 ** (logits * scale - shift), float32.

    Args:
        interpret: whether the kernel is run as XLA operations.
    """
    if interpret:
        return lambda logits, scale, shift: jnp.exp2(logits * scale - shift)

    # Two instructions. The library's exp2 takes three more, to be right for results below 2 ** -126.
    def exp2(logits, scale, shift):
        (out,) = triton.elementwise_inline_asm(
            "{ .reg .f32 x; neg.f32 x, $3; fma.rn.ftz.f32 x, $1, $2, x; ex2.approx.ftz.f32 $0, x; }",
            args=[logits, jnp.full_like(logits, scale), jnp.broadcast_to(shift, logits.shape)],
            constraints="=f,f,f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(logits.shape, jnp.float32)],
        )
        return out

    return exp2
