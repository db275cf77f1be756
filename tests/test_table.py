"""Looking up rows of a table: its gradient, and that a GPU is given nothing that it would add as it comes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.table import look_up, sums_by_id


def by_hand(x_ND, ids_N, rows):
    sums_VD = np.zeros((rows, x_ND.shape[1]))
    np.add.at(sums_VD, ids_N, x_ND.astype(np.float64))
    return sums_VD


def drawn(N, rows, kind, seed=0):
    random = np.random.default_rng(seed)
    ids_N = {
        "uniform": random.integers(0, rows, N),
        "frequent": np.minimum(random.zipf(1.3, N) - 1, rows - 1),
        "one": np.full(N, rows - 1),
        "sorted": np.sort(random.integers(0, rows, N)),
    }[kind]
    return random.normal(size=(N, 3)).astype(np.float32), ids_N.astype(np.int32)


@pytest.mark.parametrize("kind", ["uniform", "frequent", "one", "sorted"])
@pytest.mark.parametrize(("N", "rows"), [(300, 7), (777, 5000), (512, 40), (1, 3)])
def test_sums_are_those_of_each_id(N, rows, kind):
    x_ND, ids_N = drawn(N, rows, kind)
    found_VD = sums_by_id(x_ND, ids_N, rows)
    np.testing.assert_allclose(found_VD, by_hand(x_ND, ids_N, rows), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_sums_are_exact_wherever_a_chunk_ends(ids):
    """Whole numbers add exactly, in chunks of four tokens."""
    ids_N = np.pad(np.array(ids, np.int32), (0, 30 - len(ids)), constant_values=6)
    x_ND = np.arange(1, 61, dtype=np.float32).reshape(30, 2)
    for most_edges in (100, 4):  # Those of all chunks at once, and in chunks again.
        found_VD = jax.jit(sums_by_id, static_argnums=(2, 3, 4))(x_ND, ids_N, 7, 4, most_edges)
        np.testing.assert_array_equal(found_VD, by_hand(x_ND, ids_N, 7))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_of_bfloat16_are_float32(dtype):
    x_ND, ids_N = np.full((4096, 2), 0.01, np.float32), np.zeros(4096, np.int32)
    found_VD = sums_by_id(jnp.asarray(x_ND, dtype), ids_N, 2)
    assert found_VD.dtype == jnp.float32
    np.testing.assert_allclose(found_VD[0], 4096 * float(jnp.asarray(0.01, dtype)), rtol=1e-5)


def gradient(table_VD, ids_N, weights_ND):
    return jax.grad(lambda table_VD: jnp.sum(weights_ND * look_up(table_VD, ids_N) ** 2))(table_VD)


def test_gradient_is_that_of_indexing():
    weights_ND, ids_N = drawn(50, 11, "frequent")
    table_VD = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    np.testing.assert_array_equal(look_up(table_VD, ids_N), table_VD[ids_N])
    expected = jax.grad(lambda table_VD: jnp.sum(weights_ND * table_VD[ids_N] ** 2))(jnp.asarray(table_VD))
    np.testing.assert_array_equal(gradient(table_VD, ids_N, weights_ND), expected)


def test_on_a_gpu_no_row_is_written_twice_or_added_to():
    shapes = ((11, 3), jnp.float32), ((50,), jnp.int32), ((50, 3), jnp.float32)
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    text = jax.jit(gradient).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    scatters = re.findall(r'"stablehlo\.scatter".*?unique_indices = (\w+)', text)
    assert scatters and set(scatters) == {"true"}
    on_cpu = jax.jit(gradient).trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    assert set(re.findall(r'"stablehlo\.scatter".*?unique_indices = (\w+)', on_cpu)) == {"false"}
