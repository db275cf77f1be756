"""Fingerprints see every flipped bit."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.checkpoint.fingerprint import fingerprints, of_first_rows, sealed

ARRAYS = {
    "float32": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7),
    "bfloat16": np.asarray(jnp.linspace(-1, 1, 9, dtype=jnp.bfloat16)),
    "int32": np.arange(-3, 4, dtype=np.int32),
    "uint8": np.arange(6, dtype=np.uint8),
    "scalar": np.float32(2.5),
}


def fingerprint(array):
    return fingerprints({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("name", ARRAYS)
def test_every_single_bit_changes_the_fingerprint(name):
    array = np.atleast_1d(ARRAYS[name])
    seen = {fingerprint(array)}
    for bit in range(8 * array.nbytes):
        flipped = np.frombuffer(array.tobytes(), np.uint8).copy()
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(fingerprint(flipped.view(array.dtype).reshape(array.shape)))
    assert len(seen) == 1 + 8 * array.nbytes


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=6), st.randoms())
def test_order_of_the_words_counts(words, random):
    shuffled = list(words)
    random.shuffle(shuffled)
    same = fingerprint(np.array(words, np.int32)) == fingerprint(np.array(shuffled, np.int32))
    assert same == (words == shuffled)


def test_two_high_bits_and_zeroed_words_do_not_cancel():
    ones = np.ones(64, np.float32)
    flipped = ones.copy()
    flipped[[3, 40]] *= -1
    assert fingerprint(flipped) != fingerprint(ones)
    zeroed = ones.copy()
    zeroed[8:24] = 0
    assert fingerprint(zeroed) != fingerprint(ones)


def test_fingerprint_of_the_first_rows_follows_from_the_whole_where_the_others_are_zeros():
    first = np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7)
    whole = np.concatenate([first, np.zeros((3, 7), np.float32)])
    assert of_first_rows(fingerprint(whole), whole.shape, 5) == fingerprint(first) != fingerprint(whole)


def test_a_sealed_record_reports_any_change_and_takes_an_old_seal_off():
    record = {"step": 3, "seconds": 0.1, "data": {"next_index": 3, "nested": [1, None, "a"]}}
    whole = sealed(record)
    assert {name: value for name, value in whole.items() if name != "digest"} == record
    assert sealed(whole) == whole
    assert sealed({**whole, "step": 2})["digest"] != whole["digest"]
    assert sealed({"b": 1, "a": (2, 3)}) == sealed({"a": [2, 3], "b": 1})
