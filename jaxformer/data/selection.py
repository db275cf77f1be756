"""Which documents of a corpus are kept, and in which split: each text once, by the hash of its key, up to a budget."""

from typing import NamedTuple

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.data.chunks import FIRST_BAD, Stored
from jaxformer.data.corpus import CorpusConfig

# Sorted as bytes; one that ends in zeros equals no other of its length.
_DIGEST = np.dtype("S16")

# A split counts as far from its share beyond half of it and so many standard deviations of independent draws.
_FAR_DEVIATIONS = 5

# Digests that are kept separately, so that not all of them are sorted again for each chunk.
_RECENT = 1 << 17


class Selected(NamedTuple):
    """The documents of one split in reading order, as places in chunks; every array is (documents,)."""

    chunk_of: np.ndarray
    """int32, number of the chunk."""
    starts: np.ndarray
    """int64, where the document's ids begin in those of the chunk."""
    tokens: np.ndarray
    text_bytes: np.ndarray
    """`tokens` and `text_bytes`: int32."""


class Selection:
    """Decides over the chunks of a corpus, which are added in reading order, and once finished.

    The first of equal texts is kept. With a budget, documents are taken until the training ones have that many tokens,
    and the rest is left out. It uses 44 bytes of memory for each document, and a little over twice that at its end.

    Attributes:
        paths: of the chunks so far.
        read: documents and bad records so far.
        duplicates, empty, bad: those left out so far.
        first_bad: what is wrong with the first few bad records, and where.
        keys: distinct keys of the kept documents; known once finished.
        validation_sources: for each validation document, the number of the first with the same key, int64; known once
            finished.
        training_tokens: of the documents kept for training so far.
        is_full: whether the budget is reached.
    """

    def __init__(self, validation_share: float, budget: int):
        self._share = validation_share
        self._budget = budget or np.inf
        self._seen = self._recent = np.empty(0, _DIGEST)
        self._kept: list[Selected] = []
        self._fractions: list[np.ndarray] = []
        self.paths = []
        self.first_bad: list[str] = []
        self.validation_sources = np.empty(0, np.int64)
        self.read = self.duplicates = self.empty = self.bad = self.training_tokens = self.keys = 0

    @property
    def is_full(self) -> bool:
        """Whether the budget of training tokens is reached."""
        return self.training_tokens >= self._budget

    @property
    def documents(self) -> int:
        """Documents kept so far."""
        return sum(len(kept.tokens) for kept in self._kept)

    def add(self, stored: Stored) -> None:
        """Takes the documents to keep from the next chunk."""
        chunk = stored.chunk
        tokens = chunk.tokens.astype(np.int64)
        is_new = self._is_new(chunk.digests)
        is_training = is_new & (chunk.fractions >= self._share)
        before = self.training_tokens + np.cumsum(tokens * is_training) - tokens * is_training
        is_taken = before < self._budget
        chosen = np.flatnonzero(is_new & is_taken)
        self.training_tokens += int(tokens[is_training & is_taken].sum())
        self.duplicates += int((~is_new & is_taken).sum())
        self.read += int(chunk.read)
        self.bad += int(chunk.bad)
        self.empty += int(chunk.read) - len(tokens) - int(chunk.bad)
        self.first_bad = [*self.first_bad, *chunk.first_bad.tolist()][:FIRST_BAD]
        starts = np.cumsum(tokens) - tokens
        chunk_of = np.full(len(chosen), len(self.paths), np.int32)
        self._kept.append(Selected(chunk_of, starts[chosen], chunk.tokens[chosen], chunk.text_bytes[chosen]))
        self._fractions.append(chunk.fractions[chosen])
        self.paths.append(stored.path)

    def finish(self) -> dict[str, Selected]:
        """Returns the documents of each split.

        If a small corpus has no document below the share, the one with the smallest hash is kept for validation.
        """
        fractions = np.concatenate([np.empty(0), *self._fractions])
        whole = Selected(*(np.concatenate(each) for each in zip(*self._kept, strict=True)))
        self._kept, self._fractions, self._seen = [], [], self._seen[:0]  # 60 bytes of each document.
        self.keys = _keys(fractions)
        is_validation = fractions < max(self._share, np.nextafter(fractions.min(initial=1.0), 1.0))
        _, first, keys = np.unique(fractions[is_validation], return_index=True, return_inverse=True)
        self.validation_sources = first[keys].astype(np.int64)
        return {
            "train": Selected(*(each[~is_validation] for each in whole)),
            "validation": Selected(*(each[is_validation] for each in whole)),
        }

    def _is_new(self, digests: np.ndarray) -> np.ndarray:
        """Returns for each digest whether it is new, and stores it."""
        distinct, first = np.unique(digests.view(_DIGEST), return_index=True)
        known = _is_in(distinct, self._seen) | _is_in(distinct, self._recent)
        self._recent = np.sort(np.concatenate([self._recent, distinct[~known]]), kind="stable")
        if len(self._recent) > _RECENT:
            self._seen = np.sort(np.concatenate([self._seen, self._recent]), kind="stable")
            self._recent = self._recent[:0]
        is_new = np.zeros(len(digests), bool)
        is_new[first[~known]] = True
        return is_new


def check_count(config: CorpusConfig, origin: str, selection: Selection) -> None:
    """Raises `UserError` if the documents are too few for two splits."""
    left_out = f" ({selection.empty:,} are empty and {selection.bad:,} bad)" if selection.empty or selection.bad else ""
    more = f"; raise corpus.tokens ({config.tokens})" if config.tokens else ""
    require(
        selection.documents > 1,
        f"corpus {origin}: {selection.documents} documents with text cannot be split into training and validation, "
        f"which needs two or more{left_out}{more}",
    )


def check_split(config: CorpusConfig, origin: str, keys: int, selected: dict[str, Selected]) -> None:
    """Raises `UserError` with the cause if no document is left to train on; at least one is for validation."""
    if len(selected["train"].tokens):
        return
    cannot = f"corpus {origin}: its {len(selected['validation'].tokens):,} documents cannot be split; "
    require(keys > 1, cannot + config.opened().one_key())
    raise UserError(
        f"{cannot}the hashes of all {keys:,} keys lie below corpus.validation_share ({config.validation_share}); "
        "lower it, or take more documents"
    )


def split_notice(
    config: CorpusConfig, origin: str, keys: int, documents: dict[str, int], tokens: dict[str, int]
) -> str | None:
    """Returns a line about keys that repeat and a validation split that is far from its share, or None for neither.

    Args:
        keys: how many the documents have.
        documents: their number by split.
        tokens: theirs. The pieces of a single text are of several lengths, and have their share by these alone.
    """
    count = sum(documents.values())
    wanted, validation = config.validation_share, documents["validation"]
    deviation = (count * wanted * (1 - wanted)) ** 0.5
    difference = abs(validation - count * wanted)
    is_far = difference > max(1, _FAR_DEVIATIONS * deviation, count * wanted / 2)
    is_far &= abs(tokens["validation"] / max(1, sum(tokens.values())) - wanted) > wanted / 2
    share = (
        f"validation got {validation / count:.1%} of the documents ({validation:,}), but corpus.validation_share is "
        f"{wanted:.1%}"
    )
    notes = [*([config.opened().shared_keys(count, keys)] if keys < count else []), *([share] if is_far else [])]
    return f"corpus {origin}: {'; '.join(notes)}" if notes else None


def _keys(fractions: np.ndarray) -> int:
    """Returns how many keys have these hashes; ignores the few that repeat by chance, as hashes have 53 bits.

    Of n keys about n^2 / 2^54 repeat by chance: one in 10^8. A thousand times as many are no chance.
    """
    count, distinct = len(fractions), len(np.unique(fractions))
    return distinct if count - distinct > 1000 * count**2 / 2**54 else count


def _is_in(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    places = np.searchsorted(ascending, values)
    found = np.zeros(len(values), bool)
    inside = places < len(ascending)
    found[inside] = ascending[places[inside]] == values[inside]
    return found
