"""Token documents -> packed rows -> batches, in an order that depends only on the seed and the data.

A document is BOS + ids + EOS. Its inputs are all but the last token and its targets all but the first, so a target
never crosses a document's border. A document longer than a row is cut into pieces. A piece is masked from every other
and its positions begin at 0, unless `document_mask` is off: then the text of a row is one segment. Since the lengths of
all documents are known, all rows are planned before anything is read:

- best-fit: each piece, longest first, goes to the fullest row that still holds it (best-fit decreasing, Ding et al.
  2024, arXiv 2404.10830). Rows are filled to nearly 100 % and no document is cut that fits in a row.
- concat-and-split: the documents in random order are one stream, cut at every row's end. Rows are full; documents are
  cut anywhere.

A bound on the documents of a row leaves rows of short documents unfilled, by either method; the report shows the fill.

A plan makes every row readable by its number, so the pipeline (Grain) only shuffles numbers, its state is a single
number, and resuming is exact by construction.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import grain
import numpy as np

from jaxformer.config import Bounds, NonNegativeInt, OneOf, UserError, check_fields, execution
from jaxformer.data.bin_packing import best_fit_decreasing, cut, cut_stream
from jaxformer.data.phases import Span
from jaxformer.data.shards import Shards

# Endless for any run, but few enough that Grain can count the batches in 64 bits.
_EPOCHS = 1 << 30

# Number of batches of the last phase, which Grain requires.
_MOST = 1 << 40

# The number of possible digests of a batch.
DIGESTS = 1 << 48


class Batch(NamedTuple):
    """Packed rows; every array is (B, T)."""

    tokens_BT: np.ndarray
    """int32 input ids."""
    targets_BT: np.ndarray
    """int32 ids, the token that follows each input in its document."""
    loss_weights_BT: np.ndarray
    """float32: 1 for a target, 0 for padding."""
    segment_ids_BT: np.ndarray
    """int32: 1, 2, ... by document in the row, 0 for padding; without a document mask, 1 for all text."""
    positions_BT: np.ndarray
    """int32, from 0 at the start of each segment."""
    document_starts_BT: np.ndarray
    """int32, where the token's segment starts in the row (inclusive)."""
    document_ends_BT: np.ndarray
    """int32, where it ends (exclusive). Padding is a segment of its own."""


@dataclass(frozen=True)
class PackingConfig:
    """How documents are packed into rows."""

    row_length: Annotated[int, Bounds(at_least=2, at_most=1 << 24)]
    """T, tokens of a row: the longest context that the model sees."""
    method: Annotated[str, OneOf("best_fit", "concat_and_split")] = "best_fit"
    """'best_fit' or 'concat_and_split'."""
    documents_per_row: NonNegativeInt = 0
    """The most documents, or pieces of one, in a row; 0 for no bound. Some attention needs one."""
    document_mask: bool = True
    """Whether a document is masked from the others of its row. Without, a training row is one segment under plain
    causal attention, as in GPT-3 (Brown et al. 2020, arXiv 2005.14165): its positions run on, while tokens, targets and
    weights are the same. Validation and tasks always separate documents, and so need the same bound on the documents of
    a row.
    """
    minimum_fill: Annotated[float, Bounds(at_least=0, at_most=1)] = execution(0.9)
    """Smallest share of the rows' tokens that may be text; below, the run stops before it starts."""
    reader_threads: Annotated[int, Bounds(at_least=0, at_most=1024)] = execution(1)
    """Threads that read batches ahead of the step; 0 reads when the step asks."""
    reader_buffer: Annotated[int, Bounds(at_least=1, at_most=1 << 20)] = execution(8)
    """Batches that are read ahead."""

    def __post_init__(self):
        check_fields(self, "packing")


@dataclass(frozen=True)
class Plan:
    """The place of each piece of each document.

    Pieces are sorted by row; row r holds those in [rows[r], rows[r + 1]).
    """

    row_length: int
    """T."""
    documents: np.ndarray
    """int64 (pieces,), index of the document in its shards."""
    starts: np.ndarray
    """int64 (pieces,), first input of the piece in BOS + ids."""
    lengths: np.ndarray
    """int32 (pieces,), inputs in the piece, 1 to T."""
    rows: np.ndarray
    """int64 (rows + 1,)."""

    def __len__(self) -> int:
        return len(self.rows) - 1

    def digest(self) -> str:
        """Returns the hexadecimal SHA-256 of the plan."""
        arrays = (self.documents, self.starts, self.lengths, self.rows)
        return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<i8").tobytes() for a in arrays)).hexdigest()


def plan_rows(
    document_tokens: np.ndarray, config: PackingConfig, *, seed: int, documents: np.ndarray | None = None
) -> Plan:
    """Returns the plan for documents of these lengths (tokens without BOS and EOS); each token is in it once.

    The seed decides which of equally long pieces share a row (best-fit), or the order of the documents (concat).

    Args:
        documents: indices of the documents to plan; None for all.
    """
    if documents is not None:
        plan = plan_rows(document_tokens[documents], config, seed=seed)
        return dataclasses.replace(plan, documents=documents[plan.documents])
    random = np.random.default_rng([seed, len(document_tokens)])
    order = random.permutation(len(document_tokens))
    inputs = document_tokens[order] + 1  # BOS and the ids; EOS is only ever a target.
    most = config.documents_per_row or config.row_length
    if config.method == "best_fit":
        pieces, starts, lengths = cut(inputs, config.row_length)
        row_of = best_fit_decreasing(lengths, config.row_length, most)
    else:
        pieces, starts, lengths, row_of = cut_stream(inputs, config.row_length, most)
    by_row = np.argsort(row_of, kind="stable")
    row_count = int(row_of.max()) + 1 if len(row_of) else 0
    rows = np.searchsorted(row_of[by_row], np.arange(row_count + 1))
    return Plan(config.row_length, order[pieces[by_row]], starts[by_row], lengths[by_row].astype(np.int32), rows)


class PackingReport(NamedTuple):
    """The effect of packing on one split."""

    rows: int
    """Rows in all."""
    fill: float
    """Share of the rows' tokens that are text."""
    documents: int
    """Documents in all."""
    documents_per_row: float
    """Mean number of documents, or pieces of one, in a row."""
    split_documents: int
    """Documents cut into two pieces or more."""
    tokens_dropped: int
    """Tokens that no row holds."""

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, fill {self.fill:.1%}, {self.documents_per_row:.1f} documents a row, "
            f"{self.split_documents:,} of {self.documents:,} documents split, {self.tokens_dropped:,} tokens dropped"
        )


def packing_report(plan: Plan, document_tokens: np.ndarray, documents: np.ndarray | None = None) -> PackingReport:
    """Returns the report on a plan for documents of these lengths.

    Args:
        documents: as in `plan_rows`.
    """
    planned_tokens = document_tokens if documents is None else document_tokens[documents]
    pieces_of = np.bincount(plan.documents, minlength=len(document_tokens))
    return PackingReport(
        rows=len(plan),
        fill=float(plan.lengths.sum() / max(1, len(plan) * plan.row_length)),
        documents=len(planned_tokens),
        documents_per_row=len(plan.documents) / max(1, len(plan)),
        split_documents=int((pieces_of > 1).sum()),
        tokens_dropped=int((planned_tokens + 1).sum() - plan.lengths.sum(dtype=np.int64)),
    )


def read_rows(shards: Shards, plan: Plan, rows: np.ndarray, *, document_mask: bool = True) -> Batch:
    """Returns the batch of some rows of a plan, in their order.

    Args:
        document_mask: whether each document is a segment; else all text of a row is one.
    """
    T, B = plan.row_length, len(rows)
    rows = np.asarray(rows, np.int64)
    counts = plan.rows[rows + 1] - plan.rows[rows]
    ordinals = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.repeat(plan.rows[rows], counts) + ordinals
    lengths = plan.lengths[pieces].astype(np.int64)
    row_of = np.repeat(np.arange(B), counts)
    before = np.cumsum(lengths) - lengths
    used_B = np.bincount(row_of, weights=lengths, minlength=B).astype(np.int64)
    offsets = before - np.repeat(np.cumsum(used_B) - used_B, counts)

    # Padding is one segment, from the end of the text to the end of the row.
    starts_BT = np.repeat(used_B.astype(np.int32)[:, None], T, axis=1)
    ends_BT = np.full((B, T), T, np.int32)
    segment_ids_BT = np.zeros((B, T), np.int32)
    at = np.arange(lengths.sum()) + np.repeat(row_of * T + offsets - before, lengths)
    starts_BT.reshape(-1)[at] = np.repeat(offsets, lengths) if document_mask else 0
    ends_BT.reshape(-1)[at] = np.repeat(offsets + lengths if document_mask else used_B[row_of], lengths)
    segment_ids_BT.reshape(-1)[at] = np.repeat(ordinals + 1, lengths) if document_mask else 1

    tokens_BT, targets_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    inputs, targets = _read_pieces(shards, plan.documents[pieces], plan.starts[pieces], lengths)
    tokens_BT.reshape(-1)[at], targets_BT.reshape(-1)[at] = inputs, targets
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=targets_BT,
        loss_weights_BT=(segment_ids_BT > 0).astype(np.float32),
        segment_ids_BT=segment_ids_BT,
        positions_BT=np.arange(T, dtype=np.int32)[None, :] - starts_BT,
        document_starts_BT=starts_BT,
        document_ends_BT=ends_BT,
    )


def _read_pieces(
    shards: Shards, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs of pieces of documents, one piece after another, and the target of each; int32 (inputs,).

    Args:
        documents, starts, lengths: int64 (pieces,), as in a `Plan`.
    """
    document_tokens = shards.tokens[documents]
    # In BOS + ids + EOS, token i of the ids is input i + 1 and target i.
    ids = shards.read_pieces(documents, np.maximum(0, starts - 1), np.minimum(starts + lengths, document_tokens))
    # Damage in a record that is still readable: an id beyond the vocabulary makes the loss NaN.
    if ids.max(initial=0) >= shards.manifest.vocabulary_size:
        raise UserError(
            f"token shards {shards.folder}: ids beyond the vocabulary of {shards.manifest.vocabulary_size}; "
            "delete the folder and run again to prepare it anew"
        )
    # A piece's tokens are its inputs and the one that follows them.
    lasts = np.cumsum(lengths + 1) - 1
    firsts = lasts - lengths
    begins, ends = firsts[starts == 0], lasts[starts + lengths > document_tokens]
    tokens = np.empty(lengths.sum() + len(lengths), np.int32)
    is_id = np.ones(len(tokens), bool)
    is_id[begins] = is_id[ends] = False
    tokens[begins], tokens[ends], tokens[is_id] = shards.manifest.bos_id, shards.manifest.eos_id, ids
    return np.delete(tokens, lasts), np.delete(tokens, firsts)


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Returns the batch with empty rows (weight 0) appended up to a number of rows."""
    B, T = batch.tokens_BT.shape

    def padded(x: np.ndarray, fill) -> np.ndarray:
        return np.concatenate([x, np.broadcast_to(np.asarray(fill, x.dtype), (rows - B, T))])

    zeros = {name: padded(x, 0) for name, x in batch._asdict().items()}
    return Batch(**zeros)._replace(
        positions_BT=padded(batch.positions_BT, np.arange(T)), document_ends_BT=padded(batch.document_ends_BT, T)
    )


def make_batches(
    shards: list[Shards],
    plans: list[Plan],
    weights: Sequence[float],
    config: PackingConfig,
    *,
    rows_per_step: int,
    seed: int,
    rows: slice = slice(None),
) -> grain.DatasetIterator:
    """Returns an endless iterator over `Batch`es of `rows_per_step` rows; every epoch shuffles all rows again.

    Each row holds documents of one corpus. Rows of several corpora are mixed in proportion to their weights, so the
    weights are shares of rows. `get_state()` is a small dict that JSON can hold, and `set_state` resumes exactly.

    Args:
        shards: those of each corpus.
        plans: the rows of each corpus.
        weights: of each corpus; one of weight 0 gives no rows.
        rows: of each batch, which ones are read, where others read the rest; order and state are the same.
    """
    batches = _number_batches(
        shards, plans, weights, config, rows_per_step=rows_per_step, seed=seed, rows=rows, before=[0] * len(plans)
    )
    return _read_ahead(batches, config)


def make_phased_batches(
    shards: list[Shards],
    plans: Mapping[int, list[Plan]],
    spans: Sequence[Span],
    config: PackingConfig,
    *,
    seed: int,
    rows_here: Callable[[int], slice] = lambda _: slice(None),
) -> grain.DatasetIterator:
    """Returns `make_batches` of each span for its steps, one after another, as one iterator whose state is the step.

    Rows of one length keep one order throughout: in each corpus, a span continues where those before it stopped. The
    last span has no end.

    Args:
        plans: by row length, one for every corpus.
        rows_here: from the rows of a batch to those that are read.
    """
    read = {row_length: [0] * len(shards) for row_length in plans}
    found = []
    for span in spans:
        here = _number_batches(
            shards,
            plans[span.row_length],
            span.weights,
            config,
            rows_per_step=span.rows_per_step,
            seed=seed,
            rows=rows_here(span.rows_per_step),
            before=read[span.row_length],
        )
        found.append(here[: _MOST if span is spans[-1] else span.steps])
        read[span.row_length] = [a + b for a, b in zip(read[span.row_length], span.rows_by_corpus, strict=True)]
    return _read_ahead(grain.MapDataset.concatenate(found), config)


def _number_batches(
    shards: list[Shards],
    plans: list[Plan],
    weights: Sequence[float],
    config: PackingConfig,
    *,
    rows_per_step: int,
    seed: int,
    rows: slice,
    before: Sequence[int],
) -> grain.MapDataset:
    """Returns the batches by number; arguments as of `make_batches`.

    Args:
        before: rows of each corpus that were read before the first batch.
    """
    first_row = np.cumsum([0] + [len(plan) for plan in plans])
    orders = []
    for part in np.flatnonzero(weights).tolist():
        numbers = grain.MapDataset.range(int(first_row[part]), int(first_row[part + 1]))
        order = numbers.seed(seed * 1000 + part).shuffle().repeat(_EPOCHS)
        orders.append(order[before[part] :] if before[part] else order)
    order = grain.MapDataset.mix(orders, [weight for weight in weights if weight]) if len(orders) > 1 else orders[0]

    def read(numbers: np.ndarray) -> Batch:
        numbers = numbers[rows]
        part_of = np.searchsorted(first_row, numbers, side="right") - 1
        batches, places = [], []
        for part in np.unique(part_of).tolist():
            place = np.flatnonzero(part_of == part)
            chosen = numbers[place] - first_row[part]
            batches.append(read_rows(shards[part], plans[part], chosen, document_mask=config.document_mask))
            places.append(place)
        back = np.argsort(np.concatenate(places))
        return (
            batches[0] if len(batches) == 1 else Batch(*(np.concatenate(xs)[back] for xs in zip(*batches, strict=True)))
        )

    return order.batch(rows_per_step).map(read)


def _read_ahead(batches: grain.MapDataset, config: PackingConfig) -> grain.DatasetIterator:
    buffer = config.reader_buffer if config.reader_threads else 0
    options = grain.ReadOptions(num_threads=config.reader_threads, prefetch_buffer_size=buffer)
    return iter(batches.to_iter_dataset(options))


def batch_digest(batch: Batch, first_row: int = 0) -> int:
    """Returns 48 bits that identify the contents of a batch: tokens, targets and loss weights, in order.

    Two runs whose batches have the same digests, step by step, saw the same text. A digest is the sum of the rows'
    CRC-32, modulo `DIGESTS`, so that processes that each read some rows add up to it; it fits in a float64. It is
    computed at several GB/s: a batch of 64k tokens takes 0.2 ms of the time between two steps.

    Args:
        first_row: the number of the first of these rows in the whole batch.
    """
    arrays = [np.ascontiguousarray(x) for x in (batch.tokens_BT, batch.targets_BT, batch.loss_weights_BT)]
    total = 0
    for row in range(len(batch.tokens_BT)):
        digest = zlib.crc32((first_row + row).to_bytes(8, "little"))
        for array in arrays:
            digest = zlib.crc32(array[row], digest)
        total += digest
    return total % DIGESTS


def seek(batches: grain.DatasetIterator, number: int) -> None:
    """Moves an iterator of `make_batches` so that batch `number`, from 0, is its next."""
    batches.set_state({"next_index": number})
