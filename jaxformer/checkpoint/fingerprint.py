"""Fingerprints of arrays and of JSON records, which show a change of any bit."""

import hashlib
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def fingerprints(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, int]:
    """Returns 32 bits for each array that identify it among arrays of its shape.

    They are the sum, modulo 2**32, of each word mixed with its place by MurmurHash3's finaliser (Appleby 2011). For a
    place that is a bijection of the word: a change within one word is always detected, any other but for one in 2**32.
    """
    values = jax.device_get(_fingerprints(list(arrays.values())))
    return {name: int(value) for name, value in zip(arrays, values, strict=True)}


@jax.jit
def _fingerprints(arrays: list[jax.Array | np.ndarray]) -> jax.Array:
    def mixed(h):
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return h ^ (h >> 16)

    def fingerprint(x):
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        # The place in the flattened array, without flattening it, which would gather arrays from several devices.
        places, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            places += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= x.shape[axis]
        return jnp.sum(mixed(words + places * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)

    return jnp.stack([fingerprint(x) for x in arrays])


def of_first_rows(fingerprint: int, shape: tuple[int, ...], rows: int) -> int:
    """Returns the fingerprint of the first rows of a float32 array from that of the whole: other rows are zeros."""
    zeros = fingerprints({"whole": jnp.zeros(shape, jnp.float32), "first": jnp.zeros((rows, *shape[1:]), jnp.float32)})
    return (fingerprint - zeros["whole"] + zeros["first"]) % (1 << 32)


def digest_of(fingerprints: Mapping[str, int]) -> str:
    """Returns one hexadecimal digest of the fingerprints of named arrays."""
    return hashlib.sha256(json.dumps(dict(fingerprints), sort_keys=True).encode()).hexdigest()


def sealed(record: dict) -> dict:
    """Returns a record of JSON values with a digest of all others; replaces an old digest."""
    text = json.dumps({name: value for name, value in record.items() if name != "digest"}, sort_keys=True)
    return {**json.loads(text), "digest": hashlib.sha256(text.encode()).hexdigest()}
