"""Lengths -> pieces -> rows: where documents are cut, and which pieces share a row. Pure functions of numpy arrays.

T is the length of a row, and `most` the number of pieces that a row may hold.
"""

import bisect

import numpy as np


def cut(inputs: np.ndarray, T: int):
    """Returns (document, start, length) of pieces: each document from its start in lengths of T, and the rest."""
    counts = -(-inputs // T)
    documents = np.repeat(np.arange(len(inputs)), counts)
    first_piece = np.cumsum(counts) - counts
    starts = (np.arange(len(documents)) - first_piece[documents]) * T
    return documents, starts, np.minimum(inputs[documents] - starts, T)


def cut_stream(inputs: np.ndarray, T: int, most: int):
    """Returns (document, start, length, row) of the pieces between borders of documents and of rows."""
    ends = np.cumsum(inputs)
    row_ends = _row_ends(ends, T, most)
    # Merged as two ascending runs, not sorted again: 0.1 s instead of 17 s for 5 million documents.
    both = np.sort(np.concatenate([ends, row_ends]), kind="stable").astype(np.int64)
    borders = both[np.diff(both, prepend=-1) > 0]
    begins = np.concatenate([[0], borders])[:-1].astype(np.int64)
    documents = np.searchsorted(ends, begins, side="right")
    rows = np.searchsorted(row_ends, begins, side="right")
    return documents, begins - (ends - inputs)[documents], borders - begins, rows


def _row_ends(ends: np.ndarray, T: int, most: int) -> np.ndarray:
    """Returns where the rows of a stream of documents with these ends are cut: after T tokens or `most` pieces."""
    total = int(ends[-1]) if len(ends) else 0
    if most >= T:
        return np.minimum(np.arange(T, total + T, T), total)
    row_ends, document, begin = [], 0, 0
    of_documents = ends.tolist()
    while begin < total:
        begin = min(begin + T, of_documents[min(document + most, len(of_documents)) - 1])
        document = bisect.bisect_right(of_documents, begin, lo=document)
        row_ends.append(begin)
    return np.array(row_ends, np.int64)


def best_fit_decreasing(lengths: np.ndarray, T: int, most: int) -> np.ndarray:
    """Returns the row of each piece: longest first, into the fullest row that still holds it, else into a new one.

    All pieces of one length are placed together: a row chosen for one of them is the fullest choice for the next too,
    as long as it fits. The work grows with the number of distinct lengths, hardly with the number of pieces.
    """
    row_of = np.empty(len(lengths), np.int64)
    # Numbers of 16 bits are sorted by radix, in a third of the time.
    ascending = np.argsort(lengths.astype(np.uint16) if T < 1 << 16 else lengths, kind="stable")
    sorted_lengths = lengths[ascending]
    open_rows: dict[int, list[tuple[np.ndarray, int]]] = {}  # by free space: rows, and how many more pieces they take
    is_open = np.zeros(T + 1, bool)  # free spaces that open_rows has rows for
    row_count = 0
    for length in np.unique(sorted_lengths)[::-1].tolist():
        first, last = np.searchsorted(sorted_lengths, [length, length + 1])
        waiting = ascending[first:last]
        while len(waiting):
            fitting = np.flatnonzero(is_open[length:])
            if len(fitting):
                space = length + int(fitting[0])
                rows, room = open_rows[space].pop()
                is_open[space] = bool(open_rows[space])
            else:
                space, room = T, most
                rows = np.arange(row_count, row_count + -(-len(waiting) // min(T // length, most)))
                row_count += len(rows)
            each = min(space // length, room)
            used = -(-len(waiting) // each)
            placed = min(len(waiting), len(rows) * each)
            row_of[waiting[:placed]] = np.repeat(rows[:used], each)[:placed]
            waiting = waiting[placed:]
            full = placed // each
            for left, new in ((rows[:full], each), (rows[full:used], placed % each), (rows[used:], 0)):
                rest = space - new * length
                if len(left) and rest and room > new:
                    open_rows.setdefault(rest, []).append((left, room - new))
                    is_open[rest] = True
    return row_of
