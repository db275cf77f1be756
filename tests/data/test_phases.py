"""Phases: which steps have which batches, and how rows and documents are dealt to them."""

from collections import Counter

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.packing import PackingConfig, plan_rows
from jaxformer.data.phases import Phase, Span, deal_documents, deal_rows, make_spans

pytestmark = pytest.mark.device_free

CONFIGURED = Span(0, 20, 3, 12, (2.0, 1.5, 0.5))


@given(st.lists(st.integers(0, 40).map(lambda x: x / 8), min_size=1, max_size=4).filter(any), st.integers(0, 200))
def test_rows_are_dealt_as_grain_mixes_them(weights, rows):
    parts = [part for part, weight in enumerate(weights) if weight]
    mixed = grain.MapDataset.mix(
        [grain.MapDataset.range(part << 20, (part << 20) + 1000) for part in parts], [weights[part] for part in parts]
    )
    dealt = Counter(mixed[i] >> 20 for i in range(rows))
    assert deal_rows(rows, weights) == [dealt[part] for part in range(len(weights))]


def test_documents_are_dealt_to_row_lengths_in_proportion_to_their_tokens():
    tokens = np.random.default_rng(1).integers(1, 400, 5000)
    documents = np.flatnonzero(np.arange(5000) % 7)
    shares = {64: 1.0, 128: 0.0, 256: 3.0}
    dealt = deal_documents(tokens, documents, shares, seed=4)
    np.testing.assert_array_equal(np.sort(np.concatenate([*dealt.values()])), documents)
    sizes = [tokens[each].sum() / tokens[documents].sum() for each in dealt.values()]
    np.testing.assert_allclose(sizes, [0.25, 0, 0.75], atol=400 / tokens.sum())
    again, other = (deal_documents(tokens, documents, shares, seed=seed) for seed in (4, 5))
    np.testing.assert_array_equal(again[64], dealt[64])
    assert not np.array_equal(other[64], dealt[64])
    assert all((np.diff(each) > 0).all() for each in dealt.values())
    assert len(plan_rows(tokens, PackingConfig(128), seed=0, documents=dealt[128])) == 0
    np.testing.assert_array_equal(deal_documents(tokens, documents, {64: 2.0}, seed=4)[64], documents)
    unread = deal_documents(tokens, documents, {64: 0.0, 128: 0.0}, seed=4)
    np.testing.assert_array_equal(np.concatenate([*unread.values()]), documents)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([Phase(start=0.5), Phase(start=0.4, rows_per_step=5)], "phases.0 changes nothing"),
        ([Phase(start=0.5, rows_per_step=4), Phase(start=0.4)], "phases.1 begins at step 8 of 20, .* at step 10: each"),
        (
            [Phase(start=0.01, rows_per_step=4), Phase(start=0.02)],
            "phases.1 begins at step 0 of 20, .* at step 0: each",
        ),
        ([Phase(start=0.99, rows_per_step=4)], "phases.0 begins at step 20 of 20"),
        ([Phase(start=0.5, weights=(1.0, 2.0))], "phases.0 has 2 weights, .* the corpus has 3"),
        (
            [Phase(start=0.5, weights=(0.0, 0.0, 0.0))],
            r"weights \(0.0, 0.0, 0.0\) .* from step 10 on must not all be 0",
        ),
        ([Phase(start=0.5, weights=(1.0, 1e-300, 2.0))], r"\(1e-300 and 2\) must lie within a factor of 1,000,000"),
        (
            [Phase(start=0.0, weights=(1.0, 0.0, 2.0))],
            r"corpus.parts.1.weight \(0.0\) must be above 0, here or in a ph",
        ),
    ],
)
def test_phases_that_make_no_schedule_are_refused(phases, message):
    with pytest.raises(UserError, match=message):
        make_spans(phases, CONFIGURED)
