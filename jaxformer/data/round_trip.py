"""The text that a tokenizer loses, through its normalizer, its unknown characters or its handling of spaces.

Bits per byte divide by the bytes of the original text, so with a tokenizer that loses text they only count what it
kept.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jaxformer.data.corpus import Documents
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.cache import make_once
from jaxformer.host.console import progress_bar
from jaxformer.host.files import require_json, write_json

# Tested text of a corpus, bytes.
SAMPLE_BYTES = 1_000_000

# Characters of an example, before and after the first changed one.
_BEFORE, _BEHIND = 10, 20

# Bump when the same corpus and tokenizer would give other numbers.
_VERSION = 1


@dataclass(frozen=True)
class RoundTrip:
    """The text of a sample of a corpus that the tokenizer does not give back."""

    documents: int
    """Tested documents."""
    changed_documents: int
    """Documents that differ after `decode(encode(text))`."""
    bytes: int
    """UTF-8 bytes of all words between whitespace."""
    changed_bytes: int
    """UTF-8 bytes of words that are lost or changed."""
    before: str
    after: str
    """`before` and `after`: an example of a change, in ASCII; '' without one."""

    def __str__(self) -> str:
        """The changed shares, and the example."""
        return (
            f"the tokenizer loses text: {self.changed_documents:,} of {self.documents:,} sampled documents come back "
            f"changed, and {self.changed_bytes / max(1, self.bytes):.2%} of the bytes of their words; "
            f"{self.before} -> {self.after}"
        )


def find_round_trip(documents: Documents, tokenizer: Tokenizer, cache: Path) -> RoundTrip | None:
    """Returns what a tokenizer loses of a corpus, found once on a sample; None for a lossless tokenizer."""
    if tokenizer.is_lossless:
        return None

    def find(path: Path) -> None:
        with progress_bar(desc="testing what the tokenizer loses", unit="B", total=SAMPLE_BYTES) as bar:
            texts = []
            for document in documents.sample(SAMPLE_BYTES):
                texts += [] if document.bad else [document.text]
                bar.update(len(document.text.encode()))
        write_json(path, dataclasses.asdict(measure_round_trip(texts, tokenizer)))

    identity = [_VERSION, documents.source_digest, tokenizer.digest]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = make_once(cache / "round_trips" / f"{name}.json", find, "testing what the tokenizer loses")
    return RoundTrip(**require_json(path, advice="delete it, and the same command makes it anew"))


def measure_round_trip(texts: list[str], tokenizer: Tokenizer) -> RoundTrip:
    """Returns what a tokenizer loses of some texts."""
    changed = total = lost = 0
    example = ("", "")
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        returned, words = tokenizer.decode(ids.tolist()), Counter(text.split())
        total += _bytes_of(words)
        if returned != text:
            changed += 1
            lost += _bytes_of(words - Counter(returned.split()))
            example = example if any(example) else _first_change(text, returned)
    return RoundTrip(len(texts), changed, total, lost, *example)


def _bytes_of(words: Counter) -> int:
    return sum(count * len(word.encode()) for word, count in words.items())


def _first_change(before: str, after: str) -> tuple[str, str]:
    """Returns the first difference of two texts, with its surroundings, in ASCII."""
    shorter = min(len(before), len(after))
    first = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    place = slice(max(0, first - _BEFORE), first + _BEHIND)
    return ascii(before[place]), ascii(after[place])
