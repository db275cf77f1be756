"""Flash attention, interpreted on the CPU, against a float64 oracle; the blocks it visits; how it lowers for CUDA.

That the compiled kernels compute the same takes a GPU to show, and is not claimed here. I and J are axes of the blocks
of queries and of keys.
"""

import collections
import fractions
import functools
import re
from typing import NamedTuple
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.extend.core import jaxprs_in_params

from jaxformer.attention import flash, flash_kernels
from jaxformer.attention.document_mask import document_bounds, limit_window
from jaxformer.attention.flash import Tiles, candidate_tiles, default_tiles, flash_attention
from jaxformer.attention.flash_kernels import Tile

B = 2
# Largest error of the output and of each gradient, relative to the largest value.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def cpu():
    """Where a GPU is at hand too: its float32 matmuls are not float32 by default."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


class Case(NamedTuple):
    """All that a compilation depends on but the dtype."""

    T: int
    H: int
    G: int
    K: int
    tiles: Tiles

    def __str__(self):
        return f"T{self.T}-G{self.G}-K{self.K}"


def make_tiles(forward, queries, keys) -> Tiles:
    return Tiles(*(Tile(*sides, warps=4, stages=2) for sides in (forward, queries, keys)))


# In each kernel, tiles of more queries than keys and of more keys than queries. The rows are not whole blocks of the
# largest tile, but the last.
CASES = (
    Case(83, 4, 1, 32, make_tiles((32, 16), (16, 64), (16, 32))),
    Case(91, 4, 2, 64, make_tiles((16, 32), (64, 16), (32, 16))),
    Case(128, 3, 3, 128, make_tiles((16, 64), (64, 16), (64, 16))),
)
DEFAULTS = tuple(Case(200, 2, 1, K, default_tiles(K, each)) for K in (64, 128) for each in (None, 9.0))
LONGEST = max(case.T for case in CASES + DEFAULTS)

# Where the documents of each row begin, the first aside: anywhere, or at the borders of blocks.
begins = st.one_of(st.integers(1, LONGEST - 1), st.integers(1, (LONGEST - 1) // 16).map(lambda block: 16 * block))
rows = st.frozensets(begins)
packings = st.tuples(*[rows] * B)
seeds = st.integers(0, 2**32 - 1)
ONE_DOCUMENT = frozenset()
ALL_OF_LENGTH_1 = frozenset(range(1, LONGEST))


def make_ids(packing, T):
    """Returns the ids of rows whose documents begin at `packing`; in the last row the last one is padding."""
    positions_T = np.arange(T)
    ids_BT = np.array([1 + np.isin(positions_T, list(begins)).cumsum() for begins in packing], np.int32)
    ids_BT[-1, ids_BT[-1] == ids_BT[-1].max()] = 0
    return ids_BT


def make_bounds(ids_BT, window=None):
    bounds = document_bounds(jnp.asarray(ids_BT))
    return limit_window(*bounds, window) if window else bounds


def visible_pairs(ids_BT, window=None):
    """Returns which key each query sees, by the definition of the mask."""
    t_TS, s_TS = np.indices((ids_BT.shape[1],) * 2)
    is_near_TS = (s_TS <= t_TS) & (t_TS - s_TS < (window or np.inf))
    return is_near_TS[None] & (ids_BT[:, :, None] == ids_BT[:, None, :])


def oracle(q_BTHK, k_BSGK, v_BSGK, do_BTHK, visible_BTS):
    """Returns the output, dq, dk and dv by the definition of attention and the chain rule, in float64."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTHK, do_BTHK = np.float64(q_BTHK), np.float64(do_BTHK)
    k_BSHK, v_BSHK = (np.repeat(np.float64(x), H // G, axis=2) for x in (k_BSGK, v_BSGK))
    # Not by `@`: beside XLA's threads, those of numpy's matmul take up to a hundred times as long on two cores.
    logits_BHTS = np.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK) * K**-0.5
    logits_BHTS = np.where(visible_BTS[:, None], logits_BHTS, -np.inf)
    weights_BHTS = np.exp(logits_BHTS - logits_BHTS.max(axis=3, keepdims=True))
    weights_BHTS /= weights_BHTS.sum(axis=3, keepdims=True)
    dweights_BHTS = np.einsum("BTHK,BSHK->BHTS", do_BTHK, v_BSHK)
    means_BHT1 = np.sum(weights_BHTS * dweights_BHTS, axis=3, keepdims=True)
    dlogits_BHTS = weights_BHTS * (dweights_BHTS - means_BHT1) * K**-0.5
    out_BTHK = np.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)
    dq_BTHK = np.einsum("BHTS,BSHK->BTHK", dlogits_BHTS, k_BSHK)
    dk_BSHK = np.einsum("BHTS,BTHK->BSHK", dlogits_BHTS, q_BTHK)
    dv_BSHK = np.einsum("BHTS,BTHK->BSHK", weights_BHTS, do_BTHK)
    dk_BSGK, dv_BSGK = (x.reshape(B, T, G, H // G, K).sum(axis=3) for x in (dk_BSHK, dv_BSHK))
    return out_BTHK, dq_BTHK, dk_BSGK, dv_BSGK


def make_inputs(case: Case, seed, dtype="float32", scale=1.0, B=B):
    """Returns q, k, v and the output's gradient; the logits are about `scale` squared."""
    rng = np.random.default_rng(seed)
    sizes = ((case.H, scale), (case.G, scale), (case.G, 1.0), (case.H, 1.0))
    return [(x * rng.standard_normal((B, case.T, n, case.K))).astype(jnp.dtype(dtype)) for n, x in sizes]


@functools.cache
def attend_and_grads(tiles: Tiles):
    """Returns the jitted function of `(q, k, v, do, starts, ends)` to the output, dq, dk and dv."""

    @jax.jit
    def run(q, k, v, do, starts, ends):
        out, pull = jax.vjp(
            lambda *inputs: flash_attention(*inputs, starts, ends, tiles=tiles, interpret=True), q, k, v
        )
        return out, *pull(do)

    return run


def assert_equals_oracle(case: Case, packing, seed, window=None, dtype="float32"):
    ids_BT = make_ids(packing, case.T)
    inputs = make_inputs(case, seed, dtype)
    results = attend_and_grads(case.tiles)(*inputs, *make_bounds(ids_BT, window))
    expected = oracle(*inputs, visible_pairs(ids_BT, window))
    for name, result, right in zip(("out", "dq", "dk", "dv"), results, expected, strict=True):
        assert result.dtype == dtype, name
        # The inputs are about 1, and dq and dk are 0 where all documents have one token.
        largest = max(np.abs(right).max(), 1.0)
        error = np.abs(np.float64(result) - right).max() / largest
        assert error <= TOLERANCES[dtype], f"{name} is wrong by {error:.1e} of its largest value"


@pytest.mark.parametrize("case", CASES, ids=str)
@hypothesis.settings(max_examples=15)
@hypothesis.example(packing=(ONE_DOCUMENT, frozenset({70})), seed=0)
@hypothesis.example(packing=(ALL_OF_LENGTH_1, ALL_OF_LENGTH_1), seed=0)
@hypothesis.given(packing=packings, seed=seeds)
def test_output_and_gradients_equal_their_definition(case, packing, seed):
    assert_equals_oracle(case, packing, seed)


@pytest.mark.device_free
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
@hypothesis.settings(max_examples=6)
@hypothesis.example(packing=(ONE_DOCUMENT, frozenset({70, 129, 190})), seed=0)
@hypothesis.given(packing=packings, seed=seeds)
def test_output_and_gradients_in_the_default_tiles_equal_their_definition(case, packing, seed):
    assert_equals_oracle(case, packing, seed)


@pytest.mark.device_free
@pytest.mark.parametrize("case", CASES[:2], ids=str)
@hypothesis.settings(max_examples=15)
@hypothesis.example(packing=(ONE_DOCUMENT, ONE_DOCUMENT), seed=0, window=17)
@hypothesis.example(packing=(ONE_DOCUMENT, ONE_DOCUMENT), seed=0, window=1)
@hypothesis.given(packing=packings, seed=seeds, window=st.integers(1, LONGEST))
def test_sliding_window_equals_its_definition(case, packing, seed, window):
    assert_equals_oracle(case, packing, seed, window)


HALF_PRECISION = pytest.mark.parametrize(("dtype", "case"), [("bfloat16", CASES[1]), ("float16", CASES[2])], ids=str)


@pytest.mark.device_free
@HALF_PRECISION
@hypothesis.settings(max_examples=6)
@hypothesis.example(packing=(ONE_DOCUMENT, frozenset({70})), seed=0)
@hypothesis.given(packing=packings, seed=seeds)
def test_output_and_gradients_of_half_precision_are_as_exact_as_it_and_keep_it(dtype, case, packing, seed):
    assert_equals_oracle(case, packing, seed, dtype=dtype)


@HALF_PRECISION
def test_logits_of_half_precision_inputs_are_float32(dtype, case):
    # Of up to 60: rounded they would be wrong by 0.1 or 0.02, and the weights likewise.
    inputs = make_inputs(case, seed=0, dtype=dtype, scale=4.0)
    ids_BT = make_ids([{13, 41, 75}, ONE_DOCUMENT], case.T)
    out = attend_and_grads(case.tiles)(*inputs, *make_bounds(ids_BT))[0]
    expected = oracle(*inputs, visible_pairs(ids_BT))[0]
    np.testing.assert_allclose(np.float64(out), expected, rtol=0, atol=TOLERANCES[dtype] * np.abs(expected).max())


def equations(jaxpr):
    """Yields the equations of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@HALF_PRECISION
def test_matmuls_take_the_inputs_dtype_and_sum_in_float32(dtype, case):
    inputs, bounds = make_inputs(case, seed=0, dtype=dtype), make_bounds(make_ids([ONE_DOCUMENT] * B, case.T))
    jaxpr = jax.make_jaxpr(attend_and_grads(case.tiles))(*inputs, *bounds).jaxpr
    matmuls = [each for each in equations(jaxpr) if each.primitive.name == "dot_general"]
    # 2, 3 and 4 of the kernels, in a loop with a mask and in one without.
    assert len(matmuls) == 2 * (2 + 3 + 4)
    for matmul in matmuls:
        assert {x.aval.dtype for x in matmul.invars} == {jnp.dtype(dtype)}
        assert matmul.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize("case", CASES[:2], ids=str)
@hypothesis.settings(max_examples=15)
@hypothesis.example(packing=(frozenset({13, 41, 75}), ONE_DOCUMENT), seed=0, token=20)
@hypothesis.given(packing=packings, seed=seeds, token=st.integers(0, CASES[0].T - 1))
def test_document_changes_no_bit_of_its_neighbours_output_and_gradients(case, packing, seed, token):
    ids_BT = make_ids(packing, case.T)
    changed_BT = np.zeros(ids_BT.shape, bool)
    changed_BT[0] = ids_BT[0] == ids_BT[0, token]
    inputs = make_inputs(case, seed)
    others = [np.where(changed_BT[:, :, None, None], 100 * x + 7, x) for x in inputs]
    run, bounds = attend_and_grads(case.tiles), make_bounds(ids_BT)
    for before, after in zip(run(*inputs, *bounds), run(*others, *bounds), strict=True):
        before, after = np.asarray(before), np.asarray(after)
        np.testing.assert_array_equal(after[~changed_BT], before[~changed_BT])
    assert np.all(after[changed_BT] != before[changed_BT])


def test_same_inputs_give_the_same_bits():
    for case in CASES:
        inputs = make_inputs(case, seed=0)
        bounds = make_bounds(make_ids([{13, 41, 75}, ONE_DOCUMENT], case.T))
        first, second = (attend_and_grads(case.tiles)(*inputs, *bounds) for _ in range(2))
        for before, after in zip(first, second, strict=True):
            assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


class Visits(NamedTuple):
    """What a kernel did with the blocks of one row."""

    visited_IJ: np.ndarray
    """Whether anything in key block J reached query block I, or the other way round."""
    blocks: fractions.Fraction
    """How many were computed by each head, on average, and `masked` how many of them with a mask."""
    masked: fractions.Fraction


COUNTED = tuple(case._replace(H=2, G=1, K=16) for case in (CASES[0], CASES[2]))
_counts = collections.Counter()


def poison(x_BTXK, block):
    """Returns the row as a batch, first as it is and then with NaN in one block after the other."""
    T = x_BTXK.shape[1]
    is_poisoned_BT = (np.arange(T) // block)[None, :] == np.arange(-1, T // block)[:, None]
    return jnp.where(is_poisoned_BT[:, :, None, None], jnp.nan, x_BTXK)


def reached(x_BTXK, block):
    """Returns, for each poisoned block, which blocks of an output have its NaN, and have none without it."""
    B, T, *_ = x_BTXK.shape
    is_nan_BJ = jnp.any(jnp.isnan(x_BTXK.reshape(B, T // block, -1)), axis=2)
    return is_nan_BJ[1:] & ~is_nan_BJ[:1]


def call_and_count(kernel, *arguments):
    """Returns what an interpreted kernel computes, and counts its blocks by row and head; rows alone are repeated."""
    *arrays, tile = arguments
    rows = max(len(x) for x in arrays)
    arrays = [jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in arrays]
    part = fractions.Fraction(1, rows * arrays[0].shape[2])

    def count(kind):
        jax.debug.callback(lambda: _counts.update({(kernel.__name__, kind): part}))

    def exp2(logits, scale, shift):
        # Of the weights, and not of the running maximum: once for each block.
        if logits.ndim == 2:
            count("blocks")
        return jnp.exp2(logits * scale - shift)

    def counting(visible):
        def count_and_compute(*args):
            count("masked")
            return visible(*args)

        return count_and_compute

    with (
        mock.patch.object(flash, "make_exp2", lambda interpret: exp2),
        mock.patch.object(flash_kernels, "_visible_TS", counting(flash_kernels._visible_TS)),
        mock.patch.object(flash_kernels, "_visible_ST", counting(flash_kernels._visible_ST)),
    ):
        return kernel(*arrays, tile, interpret=True)


@functools.cache
def visit_blocks(case: Case):
    """Returns the function of the bounds of one row to the `Visits` of each kernel, by the kernel's name.

    That a block was visited shows in the NaN that it holds: by a weight of 0 it is NaN still.
    """
    inputs = make_inputs(case, seed=0, B=1)

    @jax.jit
    def run(starts_1T, ends_1T):
        q, k, v, do, starts, ends = flash.fill_blocks(inputs, starts_1T, ends_1T, case.tiles)
        forward, queries, keys = case.tiles
        out, lse = call_and_count(flash.forward, q, k, poison(v, forward.keys), starts, forward)
        out_and_lse = out[:1], lse[:1]
        poisoned_k = poison(k, queries.keys)
        dq, delta = call_and_count(flash.backward_queries, q, poisoned_k, v, do, *out_and_lse, starts, queries)
        lse_and_delta = lse[:1], delta[:1]
        _, dv = call_and_count(flash.backward_keys, q, k, v, poison(do, keys.queries), *lse_and_delta, ends, keys)
        return {
            "forward": reached(out, forward.queries).T,
            "backward_queries": reached(dq, queries.queries).T,
            "backward_keys": reached(dv, keys.keys),
        }

    def visits(starts_1T, ends_1T):
        _counts.clear()
        visited = jax.tree.map(np.asarray, run(starts_1T, ends_1T))
        jax.effects_barrier()
        return {name: Visits(x_IJ, _counts[name, "blocks"], _counts[name, "masked"]) for name, x_IJ in visited.items()}

    return visits


def blocks_with_visible_pairs(case: Case, ids_1T, window=None):
    """Returns, for each kernel, `(some_IJ, all_IJ)`: the pairs of blocks with some pair visible, and with every one."""
    T = case.T
    fill = -T % max(max(tile.queries, tile.keys) for tile in case.tiles)
    filled_1T = np.concatenate([ids_1T, LONGEST + np.arange(fill)[None, :]], axis=1)
    (visible_TS,) = visible_pairs(filled_1T, window)
    results = {}
    for name, tile in zip(("forward", "backward_queries", "backward_keys"), case.tiles, strict=True):
        blocks_ITJS = visible_TS.reshape((T + fill) // tile.queries, tile.queries, -1, tile.keys)
        results[name] = blocks_ITJS.any(axis=(1, 3)), blocks_ITJS.all(axis=(1, 3))
    return results


@pytest.mark.device_free
@pytest.mark.parametrize("case", COUNTED, ids=str)
@hypothesis.settings(max_examples=15)
@hypothesis.example(row=ONE_DOCUMENT, window=None)
@hypothesis.example(row=ALL_OF_LENGTH_1, window=None)
@hypothesis.example(row=frozenset({16, 32, 64}), window=None)
@hypothesis.example(row=ONE_DOCUMENT, window=17)
@hypothesis.given(row=rows, window=st.none() | st.integers(1, 128))
def test_kernels_visit_the_blocks_with_a_visible_pair_once_and_no_other(case, row, window):
    ids_1T = make_ids([row], case.T)
    found = visit_blocks(case)(*make_bounds(ids_1T, window))
    for name, (some_IJ, all_IJ) in blocks_with_visible_pairs(case, ids_1T, window).items():
        np.testing.assert_array_equal(found[name].visited_IJ, some_IJ, err_msg=name)
        assert found[name].blocks == some_IJ.sum(), name
        # The mask costs time: it is left out wherever it can be.
        assert found[name].masked == some_IJ.sum() - all_IJ.sum(), name


def test_several_documents_visit_fewer_blocks_than_one_which_visits_those_of_plain_causal_attention():
    case = COUNTED[1]
    visits = visit_blocks(case)
    one, several = (visits(*make_bounds(make_ids([row], case.T))) for row in (ONE_DOCUMENT, frozenset({29, 50, 66})))
    for name, tile in zip(one, case.tiles, strict=True):
        last_queries = range(tile.queries - 1, case.T, tile.queries)
        assert one[name].blocks == sum(last // tile.keys + 1 for last in last_queries), name
        assert several[name].blocks < one[name].blocks, name


def lower_for_cuda(function, *arguments) -> str:
    """Returns the text of the module that a GPU's XLA would get; Pallas asks for a device, and this one need not be."""
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def lower_flash_for_cuda(dtype, H, G, K, tiles=None, grad=True) -> str:
    B, T = 2, 300
    q, kv = (jax.ShapeDtypeStruct((B, T, heads, K), dtype) for heads in (H, G))
    bounds = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def total(*arguments):
        return jnp.sum(flash_attention(*arguments, tiles=tiles).astype(jnp.float32))

    return lower_for_cuda(jax.value_and_grad(total, argnums=(0, 1, 2)) if grad else total, q, kv, kv, bounds, bounds)


TRITON = "__gpu$xla.gpu.triton"
FORWARD = ["document_flash_forward"]
FORWARD_AND_BACKWARD = [*FORWARD, "document_flash_queries", "document_flash_keys"]


def kernels(module: str) -> list[str]:
    """Returns the names of the Triton kernels of a module, which calls nothing else outside of it."""
    assert set(re.findall(r"custom_call @([^(]+)\(", module)) == {TRITON}
    return re.findall(rf'custom_call @{re.escape(TRITON)}\(.*?[ {{]name = "(\w+)"', module)


def loops(module: str) -> tuple[int, int]:
    """Returns the numbers of kernels with an `scf.for` and with an `scf.while`.

    A kernel is bytecode, which names each kind of operation in it once; none but `scf.while` ends in a `condition`.
    """
    return tuple(module.count(rf"\00{operation}\00") for operation in ("for", "condition"))


# Pallas is leaving Triton for Mosaic on GPUs, and says so.
ignore_deprecation = pytest.mark.filterwarnings("ignore:.*Triton:DeprecationWarning")


@ignore_deprecation
@pytest.mark.parametrize("H, G", [(6, 2), (3, 3)])
@pytest.mark.parametrize("K", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_forward_is_one_kernel_for_cuda_and_backward_two_more(dtype, K, H, G):
    assert kernels(lower_flash_for_cuda(dtype, H, G, K, grad=False)) == FORWARD
    assert kernels(lower_flash_for_cuda(dtype, H, G, K)) == FORWARD_AND_BACKWARD


@ignore_deprecation
@pytest.mark.parametrize("H, G", [(6, 2), (3, 3)])
def test_loops_of_the_kernels_have_known_ends_so_that_their_loads_are_pipelined(H, G):
    assert loops(lower_flash_for_cuda("bfloat16", H, G, 64)) == (3, 0)


@ignore_deprecation
def test_loop_with_an_unknown_end_is_reported_from_one_with_a_known_end():
    def kernel(x_ref, out_ref):
        out_ref[...] = jax.lax.while_loop(lambda x: jnp.sum(x) > 1.0, lambda x: x * 0.5, x_ref[...])

    shape = jax.ShapeDtypeStruct((32,), jnp.float32)
    call = pl.pallas_call(kernel, out_shape=shape, compiler_params=triton.CompilerParams(num_warps=4))
    assert loops(lower_for_cuda(call, shape)) == (0, 1)


@ignore_deprecation
@pytest.mark.parametrize("capability", [8.0, 9.0])
@pytest.mark.parametrize("K", [32, 64, 128])
def test_every_candidate_tile_lowers_for_cuda(K, capability):
    candidates = candidate_tiles(K, capability)
    for i in range(max(map(len, candidates))):
        tiles = Tiles(*(tiles[i % len(tiles)] for tiles in candidates))
        assert kernels(lower_flash_for_cuda("bfloat16", 4, 2, K, tiles=tiles)) == FORWARD_AND_BACKWARD


@pytest.mark.parametrize("capability", [None, 8.0, 9.0])
@pytest.mark.parametrize("K", [32, 64, 128])
def test_candidate_tiles_are_powers_of_two_and_the_first_of_each_is_the_default(K, capability):
    candidates = candidate_tiles(K, capability)
    assert default_tiles(K, capability) == Tiles(*(tiles[0] for tiles in candidates))
    for tiles in candidates:
        assert len(set(tiles)) == len(tiles)
        for tile in tiles:
            # Rows are filled up to the largest side, which has to be a multiple of all the others.
            assert all(side.bit_count() == 1 for side in (tile.queries, tile.keys, tile.warps)), tile
