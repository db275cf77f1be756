"""What is handed to cuDNN, since cuDNN itself needs a GPU: offsets, masks, and that it lowers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as private

from jaxformer.attention import cudnn
from jaxformer.attention.dispatch import attend
from jaxformer.attention.document_mask import document_bounds

B, T, H, K = 3, 37, 4, 8


def random_documents(segments, seed=0):
    """Returns segment ids (B, T) with that many documents in each row."""
    random = np.random.default_rng(seed)
    borders = [np.sort(random.choice(np.arange(1, T), segments - 1, replace=False)) for _ in range(B)]
    return np.stack([np.searchsorted(border, np.arange(T), side="right") + 1 for border in borders]).astype(np.int32)


def bounds_of(segment_ids):
    return tuple(np.asarray(bound) for bound in document_bounds(jnp.asarray(segment_ids)))


@pytest.fixture
def simulated_cudnn(monkeypatch):
    """Puts in place of cuDNN what its packed layout promises, read off lengths and offsets alone; returns the calls."""
    calls = []

    def attention(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
        calls.append(mask_type)
        np.testing.assert_array_equal(q_seqlen, kv_seqlen)
        np.testing.assert_array_equal(q_offsets, kv_offsets)
        out = np.full(q.shape, 7e7, np.float32)  # Where no document lies, cuDNN writes nothing.
        for b, (lengths, offsets) in enumerate(zip(np.asarray(q_seqlen), np.asarray(q_offsets), strict=True)):
            for length, offset in zip(lengths, offsets, strict=False):
                if offset < 0:
                    continue
                piece = slice(offset, offset + length)
                logits = np.einsum("thk,shk->hts", q[b, piece], k[b, piece]) * scale
                logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                out[b, piece] = np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), v[b, piece])
        return jnp.asarray(out)

    monkeypatch.setattr(private, "dot_product_attention", attention)
    return calls


@pytest.mark.parametrize("segments", [1, 2, 5, 11])
def test_offsets_are_where_segment_ids_change(segments):
    M = 11
    segment_ids = random_documents(segments, seed=segments)
    lengths, offsets = (np.asarray(x) for x in cudnn.packed_offsets(*bounds_of(segment_ids), M))
    assert lengths.shape == (B, M) and offsets.shape == (B, M + 1)
    for row, row_lengths, row_offsets in zip(segment_ids, lengths, offsets, strict=True):
        firsts = [t for t in range(T) if t == 0 or row[t] != row[t - 1]]
        absent = [-1] * (M - len(firsts))
        assert row_offsets.tolist() == firsts + absent + [-1]
        assert row_lengths.tolist() == np.diff([*firsts, T]).tolist() + absent


def test_rows_with_different_numbers_of_documents_keep_their_own_offsets():
    segment_ids = np.stack([np.ones(T), np.arange(T) // 4 + 1, np.minimum(np.arange(T), 2)]).astype(np.int32)
    starts, ends = bounds_of(segment_ids)
    np.testing.assert_array_equal(cudnn.count_segments(starts), [1, 10, 3])
    _, offsets = cudnn.packed_offsets(starts, ends, 10)
    np.testing.assert_array_equal((np.asarray(offsets) >= 0).sum(axis=1), [1, 10, 3])


@pytest.mark.parametrize("segments", [1, 4, 9])
def test_packed_attention_is_that_of_the_documents(simulated_cudnn, segments):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, T, H, K)).astype(np.float32) for _ in range(3))
    starts, ends = bounds_of(random_documents(segments))
    out = cudnn.attend_packed(jnp.asarray(q), k, v, starts, ends, segments=9)
    expected = attend(q, k, v, starts, ends, implementation="xla")
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    assert simulated_cudnn == [private.MaskType.PADDING_CAUSAL]


def test_a_row_of_too_many_documents_becomes_nan_and_no_other(simulated_cudnn):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((B, T, H, K)), jnp.float32) for _ in range(3))
    segment_ids = random_documents(4)
    segment_ids[1] = np.arange(T) // 5
    out = np.asarray(cudnn.attend_packed(q, k, v, *bounds_of(segment_ids), segments=4))
    assert np.isnan(out[1, 0]).all()
    assert np.isfinite(out[[0, 2]]).all()


def test_forward_and_backward_lower_for_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(private, "check_compute_capability", lambda capability: True)

    def objective(q, k, v, starts, ends):
        return jnp.sum(cudnn.attend_packed(q, k, v, starts, ends, segments=5).astype(jnp.float32))

    x = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    bound = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    traced = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).trace(x, x, x, bound, bound)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__cudnn$fmhaSoftmax(") == 1
    assert text.count("custom_call @__cudnn$fmhaSoftmaxBackward(") == 1
    assert '"mask_type": "PADDING_CAUSAL"' in text.replace("\\22", '"')
    assert '"max_seg_per_batch": 5' in text.replace("\\22", '"')
