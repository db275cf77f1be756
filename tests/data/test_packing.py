import dataclasses
import json
from collections import Counter
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.packing import (
    Batch,
    PackingConfig,
    Plan,
    batch_digest,
    make_batches,
    make_phased_batches,
    packing_report,
    pad_rows,
    plan_rows,
    read_rows,
    seek,
)
from jaxformer.data.phases import Phase, Span, make_spans

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

BOS, EOS = 1, 2
METHODS = ("best_fit", "concat_and_split")

document_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
row_lengths = st.integers(2, 17)
bounds = st.integers(1, 6)
# Of which many fit in a row, so that a bound has something to do.
short_lengths = st.lists(st.integers(0, 9), min_size=1, max_size=30)
methods = st.sampled_from(METHODS)
seeds = st.integers(0, 2**32)


class FakeShards:
    """Documents of given lengths in memory; every id is used once, from `first_id` on."""

    def __init__(self, lengths, first_id=10):
        self.tokens = np.array(lengths, np.int64)
        self.text_bytes = 3 * self.tokens
        self.manifest = SimpleNamespace(bos_id=BOS, eos_id=EOS, vocabulary_size=1 << 31)
        ids = np.arange(first_id, first_id + self.tokens.sum()).astype(np.uint16)
        self.documents = np.split(ids, np.cumsum(self.tokens)[:-1])

    def __len__(self):
        return len(self.tokens)

    def read_pieces(self, documents, starts, stops):
        assert np.all((starts >= 0) & (starts < stops) & (stops <= self.tokens[documents]))
        pieces = zip(documents, starts, stops, strict=True)
        return np.concatenate([np.empty(0, np.uint16), *(self.documents[i][start:stop] for i, start, stop in pieces)])


def make_plan(lengths, T, method="best_fit", seed=0, bound=0) -> Plan:
    config = PackingConfig(row_length=T, method=method, documents_per_row=bound)
    return plan_rows(np.array(lengths, np.int64), config, seed=seed)


def pieces_of_row(plan: Plan, row: int) -> list[tuple[int, int, int]]:
    """Returns (document, start, length) of each piece of a row."""
    at = slice(plan.rows[row], plan.rows[row + 1])
    fields = (plan.documents[at], plan.starts[at], plan.lengths[at])
    return list(zip(*(field.tolist() for field in fields), strict=True))


# Plans.


@given(document_lengths, row_lengths, methods, seeds)
def test_chosen_documents_are_planned_as_if_there_were_no_others(lengths, T, method, seed):
    config = PackingConfig(row_length=T, method=method)
    tokens, chosen = np.array(lengths, np.int64), np.arange(len(lengths))[1::2]
    plan = plan_rows(tokens, config, seed=seed, documents=chosen)
    alone = plan_rows(tokens[chosen], config, seed=seed)
    assert plan.documents.tolist() == chosen[alone.documents].tolist()
    assert dataclasses.replace(plan, documents=alone.documents).digest() == alone.digest()
    assert packing_report(plan, tokens, chosen) == packing_report(alone, tokens[chosen])


@given(document_lengths | short_lengths, row_lengths, methods, seeds, st.just(0) | bounds)
def test_every_input_of_every_document_is_in_one_row_once(lengths, T, method, seed, bound):
    plan = make_plan(lengths, T, method, seed, bound)
    assert plan.rows[0] == 0 and plan.rows[-1] == len(plan.documents)
    times = [np.zeros(length + 1, int) for length in lengths]
    for row in range(len(plan)):
        pieces = pieces_of_row(plan, row)
        assert pieces, "an empty row"
        assert sum(length for _, _, length in pieces) <= T
        for document, start, length in pieces:
            assert length >= 1 and start >= 0 and start + length <= lengths[document] + 1
            times[document][start : start + length] += 1
    assert all((count == 1).all() for count in times)


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_no_documents_are_no_rows(method, bound):
    plan = make_plan([], 5, method, bound=bound)
    assert len(plan) == 0 and plan.rows.tolist() == [0]
    assert [len(x) for x in (plan.documents, plan.starts, plan.lengths)] == [0, 0, 0]


def best_fit_decreasing(lengths, T) -> list[int]:
    """Returns the free space of each row when pieces go, longest first, to the fullest row that holds them."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces[spaces.index(min(fitting))] -= length
        else:
            spaces.append(T - length)
    return spaces


def check_best_fit(lengths, T, seed) -> None:
    plan = make_plan(lengths, T, "best_fit", seed)
    pieces = [min(T, inputs - start) for inputs in (x + 1 for x in lengths) for start in range(0, inputs, T)]
    spaces = [T - sum(length for _, _, length in pieces_of_row(plan, row)) for row in range(len(plan))]
    assert Counter(spaces) == Counter(best_fit_decreasing(pieces, T))


@given(document_lengths, row_lengths, seeds)
def test_best_fit_fills_rows_as_the_plain_algorithm_does(lengths, T, seed):
    check_best_fit(lengths, T, seed)


@pytest.mark.parametrize("seed", range(3))
def test_best_fit_fills_rows_as_the_plain_algorithm_does_with_many_equal_lengths(seed):
    random = np.random.default_rng(seed)
    lengths = np.minimum(1 + random.geometric(0.05, 800), 150).tolist()
    check_best_fit(lengths, [33, 64, 101][seed], seed)


@given(document_lengths, row_lengths, seeds)
def test_best_fit_never_cuts_a_document_that_fits_in_a_row_and_no_other_more_than_it_must(lengths, T, seed):
    plan = make_plan(lengths, T, "best_fit", seed)
    pieces = Counter(plan.documents.tolist())
    assert pieces == {document: -(-(length + 1) // T) for document, length in enumerate(lengths)}


@given(document_lengths, row_lengths, seeds)
def test_concat_fills_every_row_but_the_last_with_documents_one_after_another(lengths, T, seed):
    plan = make_plan(lengths, T, "concat_and_split", seed)
    total = sum(lengths) + len(lengths)
    filled = [sum(length for _, _, length in pieces_of_row(plan, row)) for row in range(len(plan))]
    assert filled == [T] * (total // T) + [total % T] * (total % T > 0)
    stream = [piece for row in range(len(plan)) for piece in pieces_of_row(plan, row)]
    for (document, start, length), (next_document, next_start, _) in pairwise(stream):
        ended = start + length == lengths[document] + 1
        assert (next_start == 0) if ended else ((next_document, next_start) == (document, start + length))


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_depends_on_the_seed_and_on_nothing_else(method):
    lengths = np.random.default_rng(0).integers(1, 9, 200)
    same, again, other = (make_plan(lengths, 16, method, seed) for seed in (5, 5, 6))
    for name in ("documents", "starts", "lengths", "rows"):
        np.testing.assert_array_equal(getattr(same, name), getattr(again, name))
    assert same.documents.tolist() != other.documents.tolist()


def test_the_report_is_as_worked_out_by_hand():
    # T = 5: 4, 10, 2 and 6 inputs are pieces of 4 / 5, 5 / 2 / 5, 1. Best fit: 5 | 5 | 5 | 4, 1 | 2.
    lengths = np.array([3, 9, 1, 5])
    report = packing_report(make_plan(lengths, 5), lengths)
    assert report == (5, 22 / 25, 4, 6 / 5, 2, 0)
    assert str(report) == ("5 rows, fill 88.0%, 1.2 documents a row, 2 of 4 documents split, 0 tokens dropped")


def test_the_report_counts_what_no_row_holds():
    # 7 and 3 inputs in rows of 4: 4 | 3 and a row of 3; without its last row of 3 the plan drops three tokens.
    lengths = np.array([6, 2])
    plan = make_plan(lengths, 4)
    kept = int(plan.rows[-2])
    short = Plan(4, plan.documents[:kept], plan.starts[:kept], plan.lengths[:kept], plan.rows[:-1])
    report = packing_report(short, lengths)
    assert (report.rows, report.tokens_dropped, report.fill) == (2, 3, 7 / 8)


# The bound on the documents in a row.


@given(document_lengths | short_lengths, row_lengths, methods, seeds, bounds)
def test_no_row_holds_more_pieces_than_the_bound(lengths, T, method, seed, bound):
    assert np.diff(make_plan(lengths, T, method, seed, bound).rows).max() <= bound


@given(document_lengths | short_lengths, row_lengths, methods, seeds)
def test_with_a_bound_of_one_every_row_is_one_piece_and_no_document_is_cut_more_than_it_must(lengths, T, method, seed):
    plan = make_plan(lengths, T, method, seed, bound=1)
    rows = [piece for row in range(len(plan)) for piece in pieces_of_row(plan, row)]
    assert len(rows) == len(plan)
    assert sorted(rows) == [
        (document, start, min(T, length + 1 - start))
        for document, length in enumerate(lengths)
        for start in range(0, length + 1, T)
    ]


@given(document_lengths | short_lengths, row_lengths, methods, seeds, st.integers(0, 3))
def test_a_bound_that_no_row_can_exceed_changes_nothing(lengths, T, method, seed, more):
    assert make_plan(lengths, T, method, seed, bound=T + more).digest() == make_plan(lengths, T, method, seed).digest()


def cut_stream(documents, T, bound) -> list[list[tuple[int, int, int]]]:
    """Returns rows of (document, start, length) from a stream of (document, inputs), one input at a time."""
    rows = [[]]
    for document, inputs in documents:
        for start in range(inputs):
            begins = not rows[-1] or rows[-1][-1][0] != document
            if sum(length for _, _, length in rows[-1]) == T or (begins and len(rows[-1]) == bound):
                rows.append([])
                begins = True
            first, length = (start, 0) if begins else rows[-1].pop()[1:]
            rows[-1].append((document, first, length + 1))
    return rows


@given(document_lengths | short_lengths, row_lengths, seeds, bounds)
def test_concat_keeps_the_stream_and_cuts_a_row_only_after_T_tokens_or_as_many_pieces_as_the_bound(
    lengths, T, seed, bound
):
    # The stream is the one that is cut without a bound.
    order = dict.fromkeys(make_plan(lengths, T, "concat_and_split", seed).documents.tolist())
    plan = make_plan(lengths, T, "concat_and_split", seed, bound)
    rows = [pieces_of_row(plan, row) for row in range(len(plan))]
    assert rows == cut_stream([(document, lengths[document] + 1) for document in order], T, bound)


def check_best_fit_with_a_bound(lengths, T, bound, seed) -> None:
    """Follows a plan piece by piece, longest first: each goes to the fullest row that holds it and may take one more.

    It is followed, not forecast: of equally full rows, which may differ in how many more they take, any will do.
    """
    plan = make_plan(lengths, T, "best_fit", seed, bound)
    waiting = [Counter(length for _, _, length in pieces_of_row(plan, row)) for row in range(len(plan))]
    spaces, rooms = [T] * len(plan), [bound] * len(plan)
    for length in sorted(plan.lengths.tolist(), reverse=True):
        fitting = [row for row in range(len(plan)) if spaces[row] >= length and rooms[row]]
        # Of equally full rows those first that it fills: only the last may be left with room for one more.
        takes_fewer = [waiting[row][length] < min(spaces[row] // length, rooms[row]) for row in range(len(plan))]
        row = min((r for r in fitting if waiting[r][length]), key=lambda r: (spaces[r], takes_fewer[r]))
        assert spaces[row] == min(spaces[r] for r in fitting)
        spaces[row] -= length
        rooms[row] -= 1
        waiting[row][length] -= 1


@given(document_lengths | short_lengths, row_lengths, seeds, bounds)
def test_best_fit_with_a_bound_goes_to_the_fullest_row_that_may_take_one_more(lengths, T, seed, bound):
    check_best_fit_with_a_bound(lengths, T, bound, seed)


@pytest.mark.parametrize("bound", [1, 2, 3, 5])
def test_best_fit_with_a_bound_goes_to_the_fullest_row_with_many_equal_lengths(bound):
    random = np.random.default_rng(bound)
    lengths = np.minimum(random.geometric(0.08, 400), 90).tolist()
    check_best_fit_with_a_bound(lengths, 64, bound, bound)


def test_a_bound_leaves_the_rows_as_worked_out_by_hand():
    # T = 9 and at most 2: 6 | 4 | 3 | 2 | 1 | 1 inputs are 6, 3 and then 4, 2 in rows that take no more, and 1, 1.
    lengths = [5, 3, 2, 1, 0, 0]
    plan = make_plan(lengths, 9, bound=2)
    rows = [sorted(length for _, _, length in pieces_of_row(plan, row)) for row in range(len(plan))]
    assert sorted(rows) == [[1, 1], [2, 4], [3, 6]]
    assert packing_report(plan, np.array(lengths)) == (3, 17 / 27, 6, 2.0, 0, 0)


# Rows.


def all_rows(lengths, T, method, seed, first_id=10) -> tuple[FakeShards, Plan, Batch]:
    """Returns documents, their plan, and all its rows in a random order as one batch."""
    shards = FakeShards(lengths, first_id)
    plan = make_plan(lengths, T, method, seed)
    return shards, plan, read_rows(shards, plan, np.random.default_rng(seed).permutation(len(plan)))


def runs_of(segment_ids_T) -> list[tuple[int, int, int]]:
    """Returns (segment, first, end) of each run of equal ids in a row."""
    borders = [0, *(np.flatnonzero(np.diff(segment_ids_T)) + 1).tolist(), len(segment_ids_T)]
    return [(int(segment_ids_T[a]), a, b) for a, b in pairwise(borders)]


@given(document_lengths, row_lengths, methods, seeds)
def test_the_pieces_of_all_rows_are_the_documents_and_no_target_crosses_a_border(lengths, T, method, seed):
    shards, _, batch = all_rows(lengths, T, method, seed)
    # Every id is in one document only, so each (input, target) pair names its place in its document.
    pairs = Counter()
    for b in range(len(batch.tokens_BT)):
        for segment, first, end in runs_of(batch.segment_ids_BT[b]):
            if segment:
                inputs, targets = batch.tokens_BT[b, first:end].tolist(), batch.targets_BT[b, first:end].tolist()
                assert inputs[1:] == targets[:-1]
                pairs.update(zip(inputs, targets, strict=True))
    expected = Counter()
    for ids in shards.documents:
        stream = [BOS, *ids.tolist(), EOS]
        expected.update(pairwise(stream))
    assert pairs == expected


@given(document_lengths, row_lengths, methods, seeds)
def test_a_row_holds_the_pieces_that_its_plan_names(lengths, T, method, seed):
    shards = FakeShards(lengths)
    plan = make_plan(lengths, T, method, seed)
    for row in range(len(plan)):
        batch = read_rows(shards, plan, np.array([row]))
        inputs, targets, segments = [], [], []
        for segment, (document, start, length) in enumerate(pieces_of_row(plan, row), start=1):
            stream = [BOS, *shards.documents[document].tolist(), EOS]
            inputs += stream[start : start + length]
            targets += stream[start + 1 : start + 1 + length]
            segments += [segment] * length
        padding = [0] * (T - len(inputs))
        assert batch.tokens_BT.tolist() == [inputs + padding]
        assert batch.targets_BT.tolist() == [targets + padding]
        assert batch.segment_ids_BT.tolist() == [segments + padding]


@given(document_lengths, row_lengths, methods, seeds)
def test_segments_positions_borders_and_weights_agree(lengths, T, method, seed):
    _, plan, batch = all_rows(lengths, T, method, seed)
    assert batch.tokens_BT.shape == (len(plan), T)
    for b, segment_ids_T in enumerate(batch.segment_ids_BT):
        runs = runs_of(segment_ids_T)
        segments = [segment for segment, _, _ in runs]
        text = [segment for segment in segments if segment]
        assert text == list(range(1, len(text) + 1))
        assert segments == text + [0] * (len(segments) - len(text))
        for segment, first, end in runs:
            at = (b, slice(first, end))
            assert batch.positions_BT[at].tolist() == list(range(end - first))
            assert set(batch.document_starts_BT[at].tolist()) == {first}
            assert set(batch.document_ends_BT[at].tolist()) == {end}
            assert set(batch.loss_weights_BT[at].tolist()) == {float(segment > 0)}
    assert batch.loss_weights_BT.sum() == sum(lengths) + len(lengths)
    types = {name: x.dtype.name for name, x in batch._asdict().items()}
    assert types == {name: "float32" if name == "loss_weights_BT" else "int32" for name in batch._fields}


@given(document_lengths, row_lengths, methods, seeds)
def test_without_a_document_mask_the_text_of_a_row_is_one_segment_and_nothing_else_changes(lengths, T, method, seed):
    shards, plan, masked = all_rows(lengths, T, method, seed)
    batch = read_rows(shards, plan, np.random.default_rng(seed).permutation(len(plan)), document_mask=False)
    for name in ("tokens_BT", "targets_BT", "loss_weights_BT"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(masked, name))
    for b, text in enumerate((masked.segment_ids_BT > 0).sum(axis=1).tolist()):
        padding = T - text
        assert batch.segment_ids_BT[b].tolist() == [1] * text + [0] * padding
        assert batch.positions_BT[b].tolist() == [*range(text), *range(padding)]
        assert batch.document_starts_BT[b].tolist() == [0] * text + [text] * padding
        assert batch.document_ends_BT[b].tolist() == [text] * text + [T] * padding
    assert {name: x.dtype for name, x in batch._asdict().items()} == {
        name: x.dtype for name, x in masked._asdict().items()
    }


@given(document_lengths, row_lengths, methods, seeds, st.data())
def test_a_row_is_the_same_in_any_batch(lengths, T, method, seed, data):
    shards = FakeShards(lengths)
    plan = make_plan(lengths, T, method, seed)
    rows = np.array(data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=6)))
    batch = read_rows(shards, plan, rows)
    for b, row in enumerate(rows):
        for together, alone in zip(batch, read_rows(shards, plan, np.array([row])), strict=True):
            np.testing.assert_array_equal(together[b], alone[0])


def test_rows_added_as_padding_weigh_nothing_and_leave_the_others_as_they_were():
    _, _, batch = all_rows([3, 9, 1, 5], 5, "best_fit", 0)
    padded = pad_rows(batch, 8)
    for name, x in padded._asdict().items():
        assert x.dtype == getattr(batch, name).dtype
        np.testing.assert_array_equal(x[:5], getattr(batch, name))
    expected = {"positions_BT": [0, 1, 2, 3, 4], "document_ends_BT": [5] * 5}
    for name, x in padded._asdict().items():
        assert x[5:].tolist() == [expected.get(name, [0] * 5)] * 3
    for same, x in zip(batch, pad_rows(batch, 5), strict=True):
        np.testing.assert_array_equal(same, x)


# Batches.


def make_parts(part_lengths, T, method, seed=0):
    """Returns shards and plans of corpora whose ids do not overlap."""
    shards, plans, first_id = [], [], 10
    for lengths in part_lengths:
        shards.append(FakeShards(lengths, first_id))
        plans.append(make_plan(lengths, T, method, seed))
        first_id += sum(lengths)
    return shards, plans


LENGTHS = [np.random.default_rng(7).integers(1, 30, documents).tolist() for documents in (40, 30, 12)]
WEIGHTS = [2.0, 1.5, 0.5]
T = 12


def batches_of(method, parts=1, *, rows_per_step=3, seed=0, threads=1, **fields):
    """Returns an iterator over batches of the first corpus alone or of three mixed."""
    shards, plans = make_parts(LENGTHS[:parts], T, method)
    config = PackingConfig(row_length=T, method=method, reader_threads=threads, reader_buffer=1 + threads, **fields)
    return make_batches(shards, plans, WEIGHTS[:parts], config, rows_per_step=rows_per_step, seed=seed)


def rows_of(batches, count: int) -> list[tuple]:
    """Returns the first rows of some batches, each as its inputs, targets and segments."""
    rows = []
    while len(rows) < count:
        batch = next(batches)
        arrays = (batch.tokens_BT, batch.targets_BT, batch.segment_ids_BT)
        rows += [tuple(map(tuple, row)) for row in zip(*(x.tolist() for x in arrays), strict=True)]
    return rows[:count]


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return all(np.array_equal(x, y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows_per_step", [1, 7])
def test_every_epoch_holds_every_row_once_in_another_order(method, rows_per_step):
    (shards,), (plan,) = make_parts(LENGTHS[:1], T, method)
    n = len(plan)
    batch = read_rows(shards, plan, np.arange(n))
    arrays = (batch.tokens_BT, batch.targets_BT, batch.segment_ids_BT)
    every_row = Counter(tuple(map(tuple, row)) for row in zip(*(x.tolist() for x in arrays), strict=True))
    assert n % rows_per_step or rows_per_step == 1, "an epoch must end amid a batch"
    rows = rows_of(batches_of(method, rows_per_step=rows_per_step), 3 * n)
    epochs = [rows[i : i + n] for i in range(0, 3 * n, n)]
    assert [Counter(epoch) for epoch in epochs] == [every_row] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("parts", [1, 3])
def test_the_order_depends_on_the_seed_and_not_on_the_readers(parts):
    first, again, unthreaded, threaded, other = (
        list(islice(batches_of("best_fit", parts, seed=seed, threads=threads), 12))
        for seed, threads in ((0, 1), (0, 1), (0, 0), (0, 3), (1, 1))
    )
    assert same(first, again)
    assert same(first, unthreaded)
    assert same(first, threaded)
    assert not same(first, other)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_document_mask_changes_what_sees_what_and_not_the_rows(parts):
    masked, unmasked = (list(islice(batches_of("best_fit", parts, document_mask=mask), 9)) for mask in (True, False))
    for ours, theirs in zip(unmasked, masked, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(ours[:3], theirs[:3], strict=True))
    most, most_masked = (max(batch.segment_ids_BT.max() for batch in batches) for batches in (unmasked, masked))
    assert most == 1 < most_masked


def test_a_batch_digest_reports_what_was_trained_on_and_nothing_else():
    masked, unmasked, other = (
        [batch_digest(batch) for batch in islice(batches_of("best_fit", 1, **options), 5)]
        for options in ({}, {"document_mask": False}, {"seed": 1})
    )
    assert masked == unmasked and len({*masked, *other}) == 10 and max(masked) < 2**48
    batch = next(iter(batches_of("best_fit", 1)))
    for name in ("tokens_BT", "targets_BT", "loss_weights_BT"):
        changed = getattr(batch, name).copy()
        changed[-1, -1] += 1
        assert batch_digest(batch._replace(**{name: changed})) != masked[0], name
    assert batch_digest(Batch(*(np.asfortranarray(x) for x in batch))) == masked[0], "the layout in memory is no matter"
    # The fields that a comparison takes for those that move the data are those that do.
    for method in METHODS:
        rows = [batch_digest(next(iter(batches_of(method, 1, rows_per_step=n)))) for n in (2, 3)]
        assert rows[0] != rows[1]
    assert batch_digest(next(iter(batches_of("concat_and_split", 1)))) != masked[0]


@pytest.mark.parametrize("parts", [1, 3])
def test_the_order_of_the_rows_does_not_depend_on_how_many_a_batch_holds(parts):
    few, many = (rows_of(batches_of("best_fit", parts, rows_per_step=rows), 33) for rows in (2, 11))
    assert few == many


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [1, 3])
def test_resuming_gives_exactly_the_batches_that_would_have_followed(method, parts):
    uninterrupted = list(islice(batches_of(method, parts), 32))
    for k in (0, 1, 9, 25):
        batches = batches_of(method, parts)
        assert same(list(islice(batches, k)), uninterrupted[:k])
        state = json.dumps(batches.get_state())
        assert len(state) < 1000
        resumed = batches_of(method, parts)
        resumed.set_state(json.loads(state))
        assert same(list(islice(resumed, 7)), uninterrupted[k : k + 7])


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (1, 3), (3, 0)])
def test_a_run_may_be_resumed_with_another_number_of_readers(before, after):
    uninterrupted = list(islice(batches_of("best_fit", 3), 14))
    for k in (0, 6):
        batches = batches_of("best_fit", 3, threads=before)
        assert same(list(islice(batches, k)), uninterrupted[:k])
        resumed = batches_of("best_fit", 3, threads=after)
        resumed.set_state(json.loads(json.dumps(batches.get_state())))
        assert same(list(islice(resumed, 8)), uninterrupted[k : k + 8])


def test_resuming_twice_is_resuming_once():
    uninterrupted = list(islice(batches_of("best_fit", 3), 16))
    batches = batches_of("best_fit", 3)
    position = 0
    for steps in (4, 1, 11):
        assert same(list(islice(batches, steps)), uninterrupted[position : position + steps])
        position += steps
        state = json.loads(json.dumps(batches.get_state()))
        batches = batches_of("best_fit", 3)
        batches.set_state(state)


def part_of_row(row) -> int:
    """Returns the corpus of a row, after checking that it holds documents of that one alone."""
    borders = np.cumsum([10] + [sum(lengths) for lengths in LENGTHS])
    tokens, targets, segments = (np.array(x) for x in row)
    ids = np.concatenate([tokens[segments > 0], targets[segments > 0]])
    (part,) = set((np.searchsorted(borders, ids[ids >= 10], side="right") - 1).tolist())
    return part


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_mixture_come_in_proportion_to_the_weights(method):
    parts = [part_of_row(row) for row in rows_of(batches_of(method, 3), 300)]
    for count in (40, 100, 300):
        shares = np.bincount(parts[:count], minlength=3) / count
        np.testing.assert_allclose(shares, np.array(WEIGHTS) / sum(WEIGHTS), atol=1.5 / count)


def test_every_part_of_a_mixture_goes_through_epochs_of_its_own():
    shards, plans = make_parts(LENGTHS, T, "best_fit")
    rows = rows_of(batches_of("best_fit", 3), 400)
    for part, (documents, plan) in enumerate(zip(shards, plans, strict=True)):
        mine = [row for row in rows if part_of_row(row) == part]
        n = len(plan)
        assert len(mine) >= 2 * n
        every_target = Counter(t for ids in documents.documents for t in [*ids.tolist(), EOS])
        for epoch in (mine[:n], mine[n : 2 * n]):
            targets = Counter(t for row in epoch for t, s in zip(row[1], row[2], strict=True) if s)
            assert targets == every_target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "bestfit"}, r"did you mean best_fit\?"),
        ({"row_length": 1}, r"row_length \(1\) must be at least 2 and at most 2\*\*24"),
        ({"documents_per_row": -1}, r"packing\.documents_per_row \(-1\) must be at least 0"),
        ({"documents_per_row": True}, r"packing\.documents_per_row must be of type int"),
        ({"document_mask": 0}, r"packing\.document_mask must be of type bool"),
        ({"minimum_fill": 1.1}, r"minimum_fill \(1\.1\) must be at least 0 and at most 1"),
        ({"reader_threads": -1}, r"reader_threads \(-1\) must be at least 0 and at most 1024"),
        ({"reader_buffer": 0}, r"reader_buffer \(0\) must be at least 1 and at most 2\*\*20"),
        ({"row_length": 8.0}, r"packing\.row_length must be of type int"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused_with_rule_and_value(fields, message):
    with pytest.raises(UserError, match=message):
        PackingConfig(**{"row_length": 8, **fields})


# Batches of a run in phases.

CONFIGURED = Span(0, 20, 3, T, tuple(WEIGHTS))


def phased(spans, seed=0):
    shards, plans = make_parts(LENGTHS, T, "best_fit")
    return make_phased_batches(shards, {T: plans}, spans, PackingConfig(T, reader_threads=0), seed=seed)


def part_of(row) -> int:
    """Returns the corpus of a row, by its largest id."""
    ends = np.cumsum([10] + [sum(lengths) for lengths in LENGTHS])
    return int(np.searchsorted(ends, max(row[0]), side="right")) - 1


def test_a_run_without_phases_has_the_batches_that_it_had():
    shards, plans = make_parts(LENGTHS, T, "best_fit")
    ours = phased(make_spans((), CONFIGURED))
    theirs = make_batches(shards, plans, WEIGHTS, PackingConfig(T, reader_threads=0), rows_per_step=3, seed=0)
    assert same([next(ours) for _ in range(40)], [next(theirs) for _ in range(40)])


def test_phases_read_on_in_each_corpus_and_nothing_twice_before_all_of_it():
    phases = (
        Phase(start=0.25, weights=(0.0, 1.0, 0.3), rows_per_step=5),
        Phase(start=0.5, rows_per_step=4),
        Phase(start=0.9, weights=(1.0, 0.0, 0.0)),
    )
    spans = make_spans(phases, CONFIGURED)
    assert [(span.first_step, span.steps, span.rows_per_step) for span in spans] == [
        (0, 5, 3),
        (5, 5, 5),
        (10, 8, 4),
        (18, 2, 3),
    ]
    found = rows_of(islice(phased(spans), 20), 15 + 25 + 32 + 6)
    shards, plans = make_parts(LENGTHS, T, "best_fit")
    plain = rows_of(
        make_batches(shards, plans, WEIGHTS, PackingConfig(T, reader_threads=0), rows_per_step=3, seed=0), 600
    )
    for part, plan in enumerate(plans):
        ours, order = ([row for row in rows if part_of(row) == part] for rows in (found, plain))
        assert ours == order[: len(ours)] and len(ours) == sum(span.rows_by_corpus[part] for span in spans)
        repeated = [count for count in Counter(ours).values() if count > 1]
        assert not repeated or len(ours) > len(plan)
    of_span = [Counter(map(part_of, rows)) for rows in (found[15:40], found[-6:])]
    assert of_span == [Counter({1: 20, 2: 5}), Counter({0: 6})]


def test_any_step_is_a_number_across_phases():
    spans = make_spans((Phase(start=0.3, rows_per_step=5), Phase(start=0.6, weights=(0.0, 1.0, 1.0))), CONFIGURED)
    batches = phased(spans)
    whole = [next(batches) for _ in range(25)]
    assert batches.get_state() == {"next_index": 25}, "the last phase has no end"
    for step in (5, 6, 7, 11, 12, 19):
        seek(batches, step)
        assert same([next(batches)], [whole[step]])
