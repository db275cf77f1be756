import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.overlap import held_out_elsewhere
from jaxformer.data.shards import Manifest, Shards

pytestmark = pytest.mark.device_free


class ArrayShards(Shards):
    """Shards in memory; their documents are texts of one byte for each id."""

    def __init__(self, split: str, texts: list[str]):
        marks: dict[str, Any] = {field.name: None for field in dataclasses.fields(Manifest)}
        marks |= {
            "index_digest": repr([*map(len, texts)]),
            "origin": "texts",
            "shard_digests": {split: {"0": repr(texts)}},
        }
        tokens = np.array([len(text) for text in texts], np.int64)
        super().__init__(Path("nowhere"), split, Manifest(**marks), tokens, tokens, np.arange(len(tokens)))
        self.texts, self.reads = texts, 0

    def read_pieces(self, documents, starts, stops):
        self.reads += len(documents)
        pieces = zip(documents, starts, stops, strict=True)
        text = "".join(self.texts[document][start:stop] for document, start, stop in pieces)
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)


texts = st.lists(st.text("ab", min_size=1, max_size=4), unique=True, max_size=12)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_training_documents_are_found_that_another_corpus_is_validated_on(tmp_path_factory, training, validation):
    cache = tmp_path_factory.mktemp("cache")
    others = [ArrayShards("validation", each) for each in validation]
    found = held_out_elsewhere(ArrayShards("train", training), others, cache)
    assert found.dtype == np.int64
    assert found.tolist() == [i for i, text in enumerate(training) if any(text in each for each in validation)]
    again = held_out_elsewhere(ArrayShards("train", training), others[::-1], cache)
    assert again.tolist() == found.tolist()
    assert len(list(cache.glob("overlaps/*.json"))) == 1, "whatever the order of the others"


def test_only_documents_of_the_size_of_another_are_read_and_those_once(tmp_path):
    training = ArrayShards("train", ["a", "bb", "bc", "ddd", "eeee"])
    validation = ArrayShards("validation", ["bb", "ccccc", "xxx"])
    for _ in range(2):
        assert held_out_elsewhere(training, [validation], tmp_path).tolist() == [1]
        assert (training.reads, validation.reads) == (3, 2)


def test_what_was_found_and_is_damaged_is_refused(tmp_path):
    training, validation = ArrayShards("train", ["a", "b"]), ArrayShards("validation", ["b"])
    held_out_elsewhere(training, [validation], tmp_path)
    (path,) = tmp_path.glob("overlaps/*.json")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"overlaps/\w+\.json: unreadable .* delete it"):
        held_out_elsewhere(training, [validation], tmp_path)
