"""What of a corpus's text a tokenizer loses, by its normalizer, its unknown characters or its handling of spaces.

Bits per byte divide by the bytes of the text as it was: of a tokenizer that loses text they are of what it kept.
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

# Text of a corpus that is tested, bytes.
SAMPLE_BYTES = 1_000_000

# Characters of an example, before and behind the first that is changed.
_BEFORE, _BEHIND = 10, 20

# Bump when the same corpus and tokenizer would give other numbers.
_VERSION = 1


@dataclass(frozen=True)
class RoundTrip:
    """What of a sample of a corpus does not come back."""

    documents: int
    """How many were tested."""
    changed_documents: int
    """Those of them that are another text after `decode(encode(text))`."""
    bytes: int
    """UTF-8 bytes of the words, between whitespace, of all of them."""
    changed_bytes: int
    """Those of the words that do not come back."""
    before: str
    after: str
    """`before` and `after`: a place that is changed, in ASCII; '' where there is none."""

    def __str__(self) -> str:
        """The shares that are changed, and the example."""
        return (
            f"the tokenizer loses text: {self.changed_documents:,} of {self.documents:,} sampled documents come back "
            f"changed, and {self.changed_bytes / max(1, self.bytes):.2%} of the bytes of their words; "
            f"{self.before} -> {self.after}"
        )


def find_round_trip(documents: Documents, tokenizer: Tokenizer, cache: Path) -> RoundTrip | None:
    """Returns what of a corpus a tokenizer loses, found once on a sample; None for one that loses no text at all."""
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
    """Returns what of some texts does not come back."""
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
    """Returns where two texts begin to differ, with what surrounds it, in ASCII."""
    shorter = min(len(before), len(after))
    first = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    place = slice(max(0, first - _BEFORE), first + _BEHIND)
    return ascii(before[place]), ascii(after[place])
