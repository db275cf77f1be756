"""The log-likelihood of continuations, as lm-evaluation-harness defines it.

Context and continuation are encoded as one text after BOS, as in training; the continuation is what follows the tokens
of the context. A text longer than a row loses its beginning. Requests are packed into rows like documents, each masked
from its neighbours, so that there is hardly any padding and one compiled function serves every length. Logits are only
computed for the continuations. Softmax and sums are float32, over the tokenizer's ids.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.data.bin_packing import best_fit_decreasing
from jaxformer.data.packing import PackingConfig
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.mesh import whole_rows
from jaxformer.host.console import progress_bar
from jaxformer.host.workers import usable_processors
from jaxformer.loss import TokenScores, token_scores
from jaxformer.model import Transformer
from jaxformer.step import TrainState, with_model

# Batches that the device computes while the host waits for an earlier one.
_AHEAD = 2


class Request(NamedTuple):
    """Tokens, the last of which are to be scored."""

    tokens: np.ndarray
    """int32 (n + 1,): n inputs, at most a row's length, and the last target."""
    scored: int
    """The number of last tokens to score."""


class Encoded(NamedTuple):
    """Requests, and the texts that were changed."""

    requests: list[Request]
    is_truncated: np.ndarray
    """For each request, whether it lost the beginning of its context."""
    is_shifted: np.ndarray
    """For each request, whether a token spans the border. The whole token is scored, while lm-evaluation-harness
    encodes the context alone and scores the tokens of the whole after as many.
    """


class CannotBeScored(UserError):
    """A continuation is empty, or longer than a row.

    Attributes:
        number: of the pair, from 0.
    """

    def __init__(self, number: int, tokens: int, row_length: int, continuation: str):
        super().__init__(
            f"a continuation of {tokens} tokens cannot be scored in rows of {row_length}: {continuation[:60]!r}"
            if tokens
            else f"the continuation has no token: {continuation[:60]!r}"
        )
        self.number = number


class LogLikelihoods(NamedTuple):
    """The model's result for each request."""

    nats: np.ndarray
    """float64, sum of the log-probabilities of the scored tokens."""
    is_greedy: np.ndarray
    """Whether each of them is the likeliest next token."""


def encode(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, row_length: int) -> Encoded:
    """Returns the requests for pairs of context and continuation; white space that ends a context is scored.

    Raises:
        CannotBeScored: a continuation is empty, or is longer than a row.
    """
    contexts = list({context.rstrip(): None for context, _ in pairs})
    threads = usable_processors()
    ids_of = dict(zip(contexts, tokenizer.encode_batch(contexts, threads=threads), strict=True))
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in pairs], threads=threads)
    requests, is_truncated, is_shifted = [], [], []
    for number, ((context, continuation), whole) in enumerate(zip(pairs, wholes, strict=True)):
        before = ids_of[context.rstrip()]
        shared = _common_prefix(before, whole)
        scored = len(whole) - shared
        if not 0 < scored <= row_length:
            raise CannotBeScored(number, scored, row_length, continuation)
        is_shifted.append(shared < len(before))
        is_truncated.append(len(whole) > row_length)
        tokens = np.concatenate([[tokenizer.bos_id], whole]).astype(np.int32)
        requests.append(Request(tokens[-(row_length + 1) :], scored))
    return Encoded(requests, np.array(is_truncated, bool), np.array(is_shifted, bool))


def score(
    state: TrainState,
    requests: Sequence[Request],
    packing: PackingConfig,
    *,
    rows_per_batch: int,
    label: str | None = None,
) -> LogLikelihoods:
    """Returns the log-likelihoods of requests, in their order.

    Args:
        packing: its `row_length` and `documents_per_row` bound the rows.
        label: of a progress bar; None shows none.

    Raises:
        TrainingFailure: a log-likelihood is not finite.
    """
    require(rows_per_batch >= 1, f"rows_per_batch ({rows_per_batch}) must be at least 1")
    rows = _assign_rows(requests, packing)
    nats, is_greedy = np.full(len(requests), np.nan), np.zeros(len(requests), bool)
    computing = deque()
    rows_per_batch = whole_rows(state.mesh, rows_per_batch)
    rows_of_device = rows_per_batch if state.mesh is None else rows_per_batch // state.mesh.size

    def collect() -> None:
        members, counts, count_X, scores = computing.popleft()
        offsets = np.cumsum(counts) - counts
        is_meant_XN = np.arange(rows_of_device * packing.row_length)[None, :] < count_X[:, None]
        nats_C = np.asarray(scores.nats_N)[is_meant_XN.reshape(-1)].astype(np.float64)
        if not np.isfinite(nats_C).all():
            raise TrainingFailure("the model's log-likelihoods are not finite: its parameters are, or overflow")
        nats[members] = -np.add.reduceat(nats_C, offsets)
        is_likeliest_C = np.asarray(scores.is_likeliest_N)[is_meant_XN.reshape(-1)]
        is_greedy[members] = np.logical_and.reduceat(is_likeliest_C, offsets)
        bar.update(len(members))

    with progress_bar(total=len(requests), desc=label, unit=" requests", disable=not label) as bar:
        for begin in range(0, len(rows), rows_per_batch):
            chosen = rows[begin : begin + rows_per_batch]
            members = [number for row in chosen for number in row]
            counts = np.array([requests[number].scored for number in members])
            of_rows = [[requests[number] for number in row] for row in chosen]
            parts = [
                _pack(of_rows[first : first + rows_of_device], rows_of_device, packing.row_length)
                for first in range(0, rows_per_batch, rows_of_device)
            ]
            packed = _Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
            computing.append((members, counts, packed.count_X, _score_rows(state, packed)))
            if len(computing) > _AHEAD:
                collect()
        while computing:
            collect()
    return LogLikelihoods(nats, is_greedy)


def _assign_rows(requests: Sequence[Request], packing: PackingConfig) -> list[list[int]]:
    """Returns, for each row, the numbers of the requests in it."""
    lengths = np.array([len(request.tokens) - 1 for request in requests], np.int64)
    most = packing.documents_per_row or packing.row_length
    row_of = best_fit_decreasing(lengths, packing.row_length, most)
    by_row = np.argsort(row_of, kind="stable")
    first = np.searchsorted(row_of[by_row], np.arange(row_of.max(initial=-1) + 2))
    return [by_row[begin:end].tolist() for begin, end in itertools.pairwise(first.tolist())]


class _Rows(NamedTuple):
    """Packed requests of X devices, one device after another: B rows, N = B x T.

    Only the first places and targets of a device count.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    document_starts_BT: np.ndarray
    document_ends_BT: np.ndarray
    places_N: np.ndarray
    """Of the inputs whose targets are scored, in the flattened rows of the device."""
    targets_N: np.ndarray
    count_X: np.ndarray
    """int32, how many count."""


def _pack(rows: list[list[Request]], B: int, T: int) -> _Rows:
    tokens_BT, starts_BT = np.zeros((2, B, T), np.int32)
    ends_BT = np.full((B, T), T, np.int32)
    places_N, targets_N = np.zeros((2, B * T), np.int32)
    count = 0
    for row, members in enumerate(rows):
        begin = 0
        for tokens, scored in members:
            end = begin + len(tokens) - 1
            tokens_BT[row, begin:end] = tokens[:-1]
            starts_BT[row, begin:end], ends_BT[row, begin:end] = begin, end
            places_N[count : count + scored] = np.arange(row * T + end - scored, row * T + end)
            targets_N[count : count + scored] = tokens[-scored:]
            begin, count = end, count + scored
        starts_BT[row, begin:] = begin
    positions_BT = np.arange(T, dtype=np.int32)[None, :] - starts_BT
    return _Rows(tokens_BT, positions_BT, starts_BT, ends_BT, places_N, targets_N, np.array([count], np.int32))


@jax.jit
def _score_rows(state: TrainState, rows: _Rows) -> TokenScores:
    return with_model(state, _score_places, rows)


def _score_places(model: Transformer, rows: _Rows) -> TokenScores:
    features_ND = model.features(rows.tokens_BT, rows.positions_BT, rows.document_starts_BT, rows.document_ends_BT)
    return token_scores(
        features_ND[rows.places_N],
        model.unembedding_VD,
        rows.targets_N,
        count=rows.count_X[0],
        logit_soft_cap=model.config.logit_soft_cap,
        token_count=model.token_count,
        chunk_tokens=model.config.loss_chunk_tokens,
        implementation=model.config.loss,
    )


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the number of equal first elements."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n
