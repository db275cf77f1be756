"""Cross-entropy whose logits stay in registers: two kernels in Pallas-Triton.

A program computes the float32 logits of a tile of tokens and ids by a loop over the features. The forward kernel keeps
of them each token's maximum and sum of exponentials, and its target's logit; the gradient kernel makes them again and
writes the loss's gradient by them in the features' dtype. So a fourth matmul takes the place of logits in memory, which
XLA writes once and reads three times. Nothing is rounded but what XLA's way rounds. The maximum is subtracted before
the exponent is scaled, so that logits may be of any size.

None uses atomics: the same inputs give the same bits. Axes: N tokens, V ids, D features; of a tile, C tokens, U ids and
E features at once; X tiles of ids.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxformer.attention.reference import MASKED
from jaxformer.devices.device import compute_capability
from jaxformer.devices.exponential import make_exp2

_LOG2_E = math.log2(math.e)

# Bytes of features whose programs run before those of the next: they stay in the L2 cache while the table passes by.
_GROUP_BYTES = 8 << 20


class Tile(NamedTuple):
    """How a kernel cuts its work: tokens, ids and features at once, warps, and stages of the load pipeline."""

    tokens: int
    ids: int
    features: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


# Tiles of all 255 registers of a thread. Compiled with JAX 0.11.2 they spill some with a soft cap, and on compute
# capability 10.0. The first reads the least from the L2 cache, and takes 144 KB of shared memory, or on 8.0 and 8.9 96
# KB. Of the second, two programs share a multiprocessor: one multiplies while the other takes exponentials.
_LARGE = Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 4, 3)
# These never do (`tools/kernel_table.py`).
_SMALL = Tile(128, 128, 64, 8, 3), Tile(64, 256, 64, 8, 3)

# The kernels' tile by the name in `model.loss`; None for the default of the device. Runs have recorded these names: a
# tile that is dropped makes their records unreadable.
TILES = {"pallas": None, **{f"pallas:{tile}": tile for tile in (*_LARGE, *_SMALL)}}


def candidate_tiles(logit_soft_cap: float, capability: float | None) -> tuple[Tile, ...]:
    """Returns the tiles worth timing on a device of a compute capability, none of which spills; the default first."""
    return _SMALL if logit_soft_cap or (capability or 0.0) >= 10.0 else (*_LARGE, *_SMALL)


def why_not(width: int, dtype: Any, device: jax.Device) -> str:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Returns why the kernels cannot run on a device and features of a width and dtype, or '' where they can."""
    capability, name = compute_capability(device), jnp.dtype(dtype).name
    if device.platform != "gpu" or capability is None:
        return f"needs an NVIDIA GPU, and this is a {device.device_kind}"
    if name not in ("bfloat16", "float16"):
        return f"needs bfloat16 or float16, and matmuls are {name}"
    if capability < 8.0:
        return f"needs compute capability 8.0, and this device has {capability}"
    return "" if width % 16 == 0 else f"needs a width that 16 divides, not {width}"


class Partition(NamedTuple):
    """What is left of the logits of each token, float32."""

    log_partition_N: jax.Array
    target_logits_N: jax.Array
    max_N: jax.Array


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The two kernels, and what is static about them."""

    tile: Tile
    interpret: bool = False
    """Run them as XLA operations, on any device and slowly: to test them."""

    def partition(
        self, features_ND, unembedding_VD, targets_N, *, logit_soft_cap: float = 0.0, token_count: int | None = None
    ) -> Partition:
        """Returns the `Partition` of the logits that `unembed` would return.

        Args:
            features_ND: of a number of tokens that the tile's divides, and a width that 16 divides.
            targets_N: int32 ids.
        """
        plan = _Plan(features_ND, unembedding_VD, self, logit_soft_cap, token_count)

        def kernel(features_ref, unembedding_ref, targets_ref, max_ref, sum_ref, target_ref):
            logits_CU, ids_1U = plan.logits(features_ref, unembedding_ref)
            max_C = jnp.max(logits_CU, axis=1)
            max_ref[...] = max_C
            sum_ref[...] = jnp.sum(self.exp(logits_CU - max_C[:, None]), axis=1)
            target_ref[...] = jnp.sum(jnp.where(ids_1U == targets_ref[...][:, None], logits_CU, 0.0), axis=1)

        partial = pl.BlockSpec((None, self.tile.tokens), lambda i: plan.places(i)[::-1])
        shape_XN = jax.ShapeDtypeStruct((plan.tiles_of_ids, features_ND.shape[0]), jnp.float32)
        max_XN, sum_XN, target_XN = self._call(
            kernel, plan, [partial] * 3, [shape_XN] * 3, "cross_entropy_forward", features_ND, unembedding_VD, targets_N
        )
        max_N = jnp.max(max_XN, axis=0)
        sum_N = jnp.sum(sum_XN * jnp.exp(max_XN - max_N[None, :]), axis=0)
        return Partition(max_N + jnp.log(sum_N), jnp.sum(target_XN, axis=0), max_N)

    def gradient(
        self, features_ND, unembedding_VD, targets_N, log_partition_N, slope_N, weights_N, *,
        logit_soft_cap: float = 0.0, token_count: int | None = None,
    ) -> jax.Array:  # fmt: skip
        """Returns the gradient by what the unembedding yields, `d_logits_NV`, in the features' dtype.

        Args:
            features_ND, unembedding_VD, targets_N: as in `partition`, with fewer than 2 ** 31 logits.
            slope_N: the loss's gradient by the log-partition.
            weights_N: the negative of that by the target's logit.
        """
        plan = _Plan(features_ND, unembedding_VD, self, logit_soft_cap, token_count)

        def kernel(features_ref, unembedding_ref, targets_ref, log_partition_ref, slope_ref, weights_ref, out_ref):
            logits_CU, ids_1U = plan.logits(features_ref, unembedding_ref)
            is_target_CU = targets_ref[...][:, None] == ids_1U
            d_logits_CU = self.exp(logits_CU - log_partition_ref[...][:, None]) * slope_ref[...][:, None]
            d_logits_CU = d_logits_CU - jnp.where(is_target_CU, weights_ref[...][:, None], 0.0)
            if logit_soft_cap:  # Clipped, as MASKED squared is infinite; the gradient there is 0.
                d_logits_CU *= 1.0 - jnp.square(jnp.maximum(logits_CU * (1 / logit_soft_cap), -1.0))
            plan.store(out_ref, d_logits_CU.astype(out_ref.dtype), ids_1U)

        out = pl.BlockSpec((self.tile.tokens, self.tile.ids), plan.places)
        shape_NV = jax.ShapeDtypeStruct((features_ND.shape[0], unembedding_VD.shape[0]), features_ND.dtype)
        of_tokens = targets_N, log_partition_N, slope_N, weights_N
        return self._call(
            kernel, plan, out, shape_NV, "cross_entropy_gradient", features_ND, unembedding_VD, *of_tokens
        )

    def exp(self, x_CU, scale: float = 1.0):
        """Returns the exponential of x times a scale."""
        return make_exp2(self.interpret)(x_CU, _LOG2_E * scale, 0.0)

    def _call(self, kernel, plan: "_Plan", out_specs, out_shape, name: str, features_ND, unembedding_VD, *of_tokens):
        tile, D = self.tile, features_ND.shape[1]
        tokens = pl.BlockSpec((tile.tokens,), lambda i: (plan.places(i)[0],))
        return pl.pallas_call(
            kernel,
            grid=(plan.tiles_of_tokens * plan.tiles_of_ids,),
            in_specs=[
                pl.BlockSpec((tile.tokens, D), lambda i: (plan.places(i)[0], 0)),
                pl.BlockSpec((tile.ids, D), lambda i: (plan.places(i)[1], 0)),
                *[tokens] * len(of_tokens),
            ],
            out_specs=out_specs,
            out_shape=out_shape,
            compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
            interpret=self.interpret,
            name=name,
        )(features_ND, unembedding_VD, *of_tokens)


class _Plan:
    """What the kernels share: which program computes which tile, and its logits."""

    def __init__(self, features_ND, unembedding_VD, kernels: Kernels, soft_cap: float, token_count: int | None):
        (N, D), V, tile = features_ND.shape, unembedding_VD.shape[0], kernels.tile
        if N % tile.tokens or D % 16:
            raise ValueError(f"the kernels need tokens ({N}) by {tile.tokens} and a width ({D}) by 16")
        self.tile, self.exp, self.soft_cap, self.V = tile, kernels.exp, soft_cap, V
        self.token_count = V if token_count is None else token_count
        self.step, self.steps = math.gcd(D, tile.features), D // math.gcd(D, tile.features)
        self.tiles_of_tokens, self.tiles_of_ids = N // tile.tokens, pl.cdiv(V, tile.ids)
        groups = pl.cdiv(N * D * features_ND.dtype.itemsize, _GROUP_BYTES)
        self.group = pl.cdiv(self.tiles_of_tokens, groups)

    def places(self, program):
        """Returns the numbers of a program's tiles of tokens and of ids; the tokens of a group vary fastest."""
        of_group = self.group * self.tiles_of_ids
        first = jax.lax.div(program, of_group) * self.group
        size = jnp.minimum(self.tiles_of_tokens - first, self.group)
        within = jax.lax.rem(program, of_group)
        return first + jax.lax.rem(within, size), jax.lax.div(within, size)

    def logits(self, features_ref, unembedding_ref):
        """Returns float32 `logits_CU`, as of `unembed`, and `ids_1U`."""
        tile = self.tile
        ids_1U = (self.places(pl.program_id(0))[1] * tile.ids + jnp.arange(tile.ids, dtype=jnp.int32))[None, :]
        options = {}
        if self.V % tile.ids:  # Past the end of the table there may be anything.
            options = {"mask": jnp.broadcast_to(ids_1U.reshape(-1, 1) < self.V, (tile.ids, self.step)), "other": 0.0}

        def add(i, logits_CU):
            features = pl.ds(i * self.step, self.step)
            unembedding_UE = triton.load(unembedding_ref.at[:, features], **options)
            return logits_CU + jax.lax.dot_general(
                features_ref[:, features], unembedding_UE, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )

        logits_CU = jax.lax.fori_loop(0, self.steps, add, jnp.zeros((tile.tokens, tile.ids), jnp.float32))
        if self.soft_cap:
            # cap * tanh(x / cap) by one exponential: the library's tanh has branches, for which registers spill.
            logits_CU = self.soft_cap - 2 * self.soft_cap / (1.0 + self.exp(logits_CU, 2 / self.soft_cap))
        if self.tiles_of_ids * tile.ids > self.token_count:
            logits_CU = jnp.where(ids_1U < self.token_count, logits_CU, MASKED)
        return logits_CU, ids_1U

    def store(self, out_ref, x_CU, ids_1U):
        """Writes a tile, but for what lies past the last id."""
        if self.V % self.tile.ids:
            triton.store(out_ref, x_CU, mask=jnp.broadcast_to(ids_1U < self.V, x_CU.shape))
        else:
            out_ref[...] = x_CU
