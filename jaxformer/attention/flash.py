"""Flash attention that visits only the blocks inside the documents, forward and backward, on Pallas-Triton.

`flash_kernels` has what one program computes; this file lays programs over the arrays, in tiles, and assembles the
gradient, for which only the log-sum-exp is kept. Axes: B row, T position, H query heads, G key/value heads, R = H / G,
K head width.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxformer.attention.flash_kernels import Tile, forward_kernel, keys_kernel, queries_kernel
from jaxformer.devices.device import compute_capability
from jaxformer.devices.exponential import make_exp2

Each = TypeVar("Each")


class PerKernel(NamedTuple, Generic[Each]):
    """One value for each of the three kernels."""

    forward: Each
    queries: Each
    keys: Each


Tiles = PerKernel[Tile]

# Tiles worth timing, the default first, for heads of at most 64 and of more. With JAX 0.11.2 all use wgmma on compute
# capability 9.0 and tcgen05 on 10.0, and none spills a register there or on 8.0 (`tools/kernel_table.py`). The defaults
# take less than 99 KB of shared memory on 8.0 and 9.0.
_NARROW = PerKernel(
    forward=(Tile(128, 64, 8, 3), Tile(128, 64, 4, 3), Tile(128, 128, 8, 2), Tile(64, 128, 4, 2)),
    queries=(Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 32, 8, 2), Tile(128, 32, 4, 2)),
    keys=(Tile(32, 64, 4, 3), Tile(32, 128, 8, 2), Tile(16, 64, 4, 2), Tile(16, 128, 8, 2)),
)
_WIDE = PerKernel(
    forward=(Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(64, 64, 4, 2)),
    queries=(Tile(64, 64, 4, 2), Tile(64, 64, 8, 2), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
    keys=(Tile(32, 64, 8, 2), Tile(32, 64, 8, 3), Tile(16, 64, 8, 2)),
)
# On 9.0 a warpgroup multiplies from shared memory: larger tiles do not spill, and read less.
_NARROW_ON_HOPPER = PerKernel(
    forward=(*_NARROW.forward, Tile(64, 64, 4, 3)),
    queries=(Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(128, 128, 8, 2), Tile(64, 128, 4, 2), Tile(128, 64, 8, 3)),
    keys=(Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(32, 128, 8, 3), Tile(64, 128, 8, 2), Tile(32, 64, 4, 3)),
)
_WIDE_ON_HOPPER = PerKernel(
    forward=(*_WIDE.forward, Tile(128, 128, 8, 2)),
    queries=(Tile(64, 64, 4, 2), Tile(128, 64, 8, 2), Tile(128, 128, 8, 2), Tile(64, 128, 4, 2)),
    keys=(Tile(64, 64, 8, 2), Tile(64, 128, 8, 2), Tile(32, 128, 8, 2), Tile(32, 64, 8, 2)),
)


def candidate_tiles(head_width: int, capability: float | None) -> PerKernel[tuple[Tile, ...]]:
    """Returns, for each kernel, the tiles worth timing on a device of a compute capability; the default is the first.

    Args:
        capability: None where it is unknown.
    """
    narrow, wide = (_NARROW_ON_HOPPER, _WIDE_ON_HOPPER) if capability == 9.0 else (_NARROW, _WIDE)
    return narrow if head_width <= 64 else wide


def default_tiles(head_width: int, capability: float | None) -> Tiles:
    """Returns the tiles to use if nothing was timed."""
    return Tiles(*(candidates[0] for candidates in candidate_tiles(head_width, capability)))


def flash_attention(q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, *, tiles: Tiles | None = None, interpret: bool = False):
    """Returns the attention output (B, T, H, K), in q's dtype; logits, softmax and sums are float32.

    Args:
        q_BTHK, k_BTGK, v_BTGK: of one dtype: bfloat16 or float16, or any if interpreted. K is a power of two.
        starts_BT, ends_BT: int32, nondecreasing along T, starts_BT[t] <= t < ends_BT[t]; query t sees the keys in
            [starts_BT[t], t], and key s is seen by the queries in [s, ends_BT[s]).
        tiles: None for `default_tiles` of the device at hand.
        interpret: run the kernels as XLA operations, on any device and slowly.

    Raises:
        ValueError: G does not divide H, K is not a power of two, or the dtypes differ.
    """
    H, G, K = q_BTHK.shape[2], k_BTGK.shape[2], q_BTHK.shape[3]
    # On a GPU either would read past the end of an array.
    if H % G or K & (K - 1):
        raise ValueError(f"key/value heads ({G}) must divide heads ({H}), and the head width ({K}) be a power of two")
    if not q_BTHK.dtype == k_BTGK.dtype == v_BTGK.dtype:
        raise ValueError(f"queries, keys and values differ in dtype: {q_BTHK.dtype}, {k_BTGK.dtype}, {v_BTGK.dtype}")
    T = q_BTHK.shape[1]
    tiles = tiles or default_tiles(K, compute_capability(jax.devices()[0]))
    filled = fill_blocks((q_BTHK, k_BTGK, v_BTGK), starts_BT, ends_BT, tiles)
    return _flash(*filled, tiles, interpret)[:, :T]


def fill_blocks(arrays_BTXK, starts_BT, ends_BT, tiles):
    """Returns all with rows padded to whole blocks by tokens that see only themselves: one block of the diagonal."""
    B, T = starts_BT.shape
    padding = -T % max(max(tile.queries, tile.keys) for tile in tiles)
    if not padding:
        return *arrays_BTXK, starts_BT, ends_BT
    tail_BP = jnp.broadcast_to(jnp.arange(T, T + padding, dtype=jnp.int32)[None, :], (B, padding))
    return (
        *(jnp.pad(x_BTXK, ((0, 0), (0, padding), (0, 0), (0, 0))) for x_BTXK in arrays_BTXK),
        jnp.concatenate([starts_BT, tail_BP], axis=1),
        jnp.concatenate([ends_BT, tail_BP + 1], axis=1),
    )


def _flash_output(q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, tiles, interpret):
    return forward(q_BTHK, k_BTGK, v_BTGK, starts_BT, tiles.forward, interpret)[0]


def _flash_forward(q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, tiles, interpret):
    out_BTHK, lse_BHT = forward(q_BTHK, k_BTGK, v_BTGK, starts_BT, tiles.forward, interpret)
    out_BTHK, lse_BHT = checkpoint_name(out_BTHK, "attended"), checkpoint_name(lse_BHT, "log_sum_exp")
    return out_BTHK, (q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, out_BTHK, lse_BHT)


def _flash_backward(tiles, interpret, residuals, do_BTHK):
    q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, out_BTHK, lse_BHT = residuals
    inputs = (q_BTHK, k_BTGK, v_BTGK, do_BTHK)
    dq_BTHK, delta_BHT = backward_queries(*inputs, out_BTHK, lse_BHT, starts_BT, tiles.queries, interpret)
    dk_BTGK, dv_BTGK = backward_keys(*inputs, lse_BHT, delta_BHT, ends_BT, tiles.keys, interpret)
    return dq_BTHK, dk_BTGK, dv_BTGK, None, None


_flash = jax.custom_vjp(_flash_output, nondiff_argnums=(5, 6))
_flash.defvjp(_flash_forward, _flash_backward)


# A program for each tile, head and row; tiles vary fastest, so that programs that run together read the same keys or
# queries from the cache.


def forward(q_BTHK, k_BTGK, v_BTGK, starts_BT, tile: Tile, interpret: bool = False):
    """Returns `(out_BTHK, lse_BHT)`: the output, and each query's log-sum-exp of its logits to base 2, float32."""
    return _call_over_queries(
        forward_kernel,
        (q_BTHK, k_BTGK, v_BTGK, starts_BT),
        ("tile", "row", "row", "bounds"),
        tile,
        interpret,
        name="document_flash_forward",
    )


def backward_queries(q_BTHK, k_BTGK, v_BTGK, do_BTHK, out_BTHK, lse_BHT, starts_BT, tile: Tile, interpret=False):
    """Returns `(dq_BTHK, delta_BHT)`: the queries' gradient, and each output times its gradient, float32."""
    return _call_over_queries(
        queries_kernel,
        (q_BTHK, k_BTGK, v_BTGK, do_BTHK, out_BTHK, lse_BHT, starts_BT),
        ("tile", "row", "row", "tile", "tile", "scalars", "bounds"),
        tile,
        interpret,
        name="document_flash_queries",
    )


def backward_keys(q_BTHK, k_BTGK, v_BTGK, do_BTHK, lse_BHT, delta_BHT, ends_BT, tile: Tile, interpret=False):
    """Returns `(dk_BTGK, dv_BTGK)`, the gradients of keys and values, summed over the query heads that share them."""
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    R = H // G

    def kernel(*refs):
        keys_kernel(*refs, tile=tile, first_key=pl.program_id(0) * tile.keys, exp2=make_exp2(interpret))

    keys = pl.BlockSpec((None, tile.keys, None, K), lambda i, g, b: (b, i, g, 0))
    queries = pl.BlockSpec((None, T, R, K), lambda i, g, b: (b, 0, g, 0))
    scalars = pl.BlockSpec((None, R, T), lambda i, g, b: (b, g, 0))
    bounds = pl.BlockSpec((None, tile.keys), lambda i, g, b: (b, i))
    return pl.pallas_call(
        kernel,
        grid=(T // tile.keys, G, B),
        in_specs=[queries, keys, keys, queries, scalars, scalars, bounds],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BTGK, v_BTGK)],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="document_flash_keys",
    )(q_BTHK, k_BTGK, v_BTGK, do_BTHK, lse_BHT, delta_BHT, ends_BT)


def _call_over_queries(body, operands, kinds, tile: Tile, interpret: bool, name: str):
    """Returns `(x_BTHK, x_BHT)`, written by a kernel for each tile of queries; the first operand is q_BTHK, then k."""
    B, T, H, K = operands[0].shape
    R = H // operands[1].shape[2]
    tiles = T // tile.queries

    # In a long document the last queries have the longest walks: started first, they leave no long tail.
    def kernel(*refs):
        first_query = (tiles - 1 - pl.program_id(0)) * tile.queries
        body(*refs, tile=tile, first_query=first_query, exp2=make_exp2(interpret))

    specs = {
        "tile": pl.BlockSpec((None, tile.queries, None, K), lambda i, h, b: (b, tiles - 1 - i, h, 0)),
        "row": pl.BlockSpec((None, T, None, K), lambda i, h, b: (b, 0, h // R, 0)),
        "scalars": pl.BlockSpec((None, None, tile.queries), lambda i, h, b: (b, h, tiles - 1 - i)),
        "bounds": pl.BlockSpec((None, tile.queries), lambda i, h, b: (b, tiles - 1 - i)),
    }
    return pl.pallas_call(
        kernel,
        grid=(tiles, H, B),
        in_specs=[specs[kind] for kind in kinds],
        out_specs=[specs["tile"], specs["scalars"]],
        out_shape=[
            jax.ShapeDtypeStruct((B, T, H, K), operands[0].dtype),
            jax.ShapeDtypeStruct((B, H, T), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=name,
    )(*operands)
