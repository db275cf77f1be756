"""Training documents of one corpus that are validation documents of another: a mixture must not train on them.

Each corpus of a mixture is split and cached by itself. A shared document may be held out by one and trained on by the
other, and validation would then measure memory. Documents that two of them share for training stay: finding them would
need reading all text again, and the weights decide how often a text is trained on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxformer.data.shards import Shards, batches_of_documents
from jaxformer.host.cache import make_once
from jaxformer.host.console import progress_bar
from jaxformer.host.files import read_json, write_json

# Bump when the same shards would give other documents.
_VERSION = 1

# Tokens of documents that are read at once.
_BATCH_TOKENS = 1 << 16


def held_out_elsewhere(training: Shards, validation: Sequence[Shards], cache: Path) -> np.ndarray:
    """Returns the training documents of a corpus whose text is a validation document of another, by their indices.

    Texts are compared byte by byte, as for duplicates within a corpus. The search runs once for the same shards; only
    documents that have as many tokens and bytes as one on the other side are read.

    Args:
        training: of one corpus.
        validation: of the others, with the same tokenizer.
        cache: folder for the results.

    Returns:
        int64 (documents,), ascending.
    """

    def find() -> dict:
        others = [(shards, _same_size(shards, [training])) for shards in validation]
        held_out = {digest for shards, candidates in others for _, digest in _text_digests(shards, candidates)}
        candidates = _same_size(training, validation)
        with progress_bar(desc="comparing with other corpora", unit=" documents", total=len(candidates)) as bar:
            found = []
            for document, digest in _text_digests(training, candidates):
                if digest in held_out:
                    found.append(document)
                bar.update()
        return {"documents": found}

    identity = [_VERSION, shards_identity(training), sorted(map(shards_identity, validation), key=json.dumps)]
    return np.array(remembered(cache / "overlaps", identity, find)["documents"], np.int64)


def remembered(folder: Path, identity: list, find: Callable[[], dict]) -> dict:
    """Returns the result of `find`, stored as JSON; it is called once for each `identity`.

    Raises:
        UserError: the stored result is damaged.
    """
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = make_once(folder / f"{name}.json", lambda path: write_json(path, find()), "comparing documents")
    return read_json(path, "delete it, and the same command makes it anew") or {}


def shards_identity(shards: Shards) -> list:
    """Returns values that identify the documents of one split of a corpus, their order and their ids."""
    return [shards.split, shards.manifest.index_digest, shards.manifest.shard_digests[shards.split]]


def _same_size(shards: Shards, others: Sequence[Shards]) -> np.ndarray:
    """Returns the documents that have as many tokens and as many bytes as one of others."""
    return np.flatnonzero(np.isin(_sizes(shards), np.concatenate([_sizes(other) for other in others])))


def _sizes(shards: Shards) -> np.ndarray:
    """Returns the tokens and the bytes of each document as one number; both fit in 31 bits."""
    return (shards.tokens << 31) + shards.text_bytes


def _text_digests(shards: Shards, documents: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yields some documents, each with 16 bytes that identify its text, as far as the tokenizer keeps it."""
    for batch in batches_of_documents(shards.tokens[documents], _BATCH_TOKENS):
        some = documents[batch.start : batch.stop]
        each = np.split(shards.read_documents(some), np.cumsum(shards.tokens[some])[:-1])
        for document, ids in zip(some.tolist(), each, strict=True):
            yield document, hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
