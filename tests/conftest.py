"""What all tests share: strict broadcasting, a cache of their own, and one small tokenizer."""

import itertools
import random

import hypothesis
import jax
import numpy as np
import pytest

from jaxformer.packing import Batch
from jaxformer.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("jaxformer", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxformer")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache that lasts as long as the tests; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def make_texts():
    """A function (number, seed) -> that many distinct texts of 2 to 60 made-up words in a few lines."""

    def make(number: int, seed: int = 0) -> list[str]:
        words = random.Random(0)
        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        lexicon = ["".join(words.choices(syllables, k=words.randint(1, 4))) for _ in range(300)]
        choices = random.Random(seed)
        texts = []
        for i in range(number):
            chosen = choices.choices(lexicon, k=choices.randint(2, 60))
            texts.append(f"{i} " + "".join(word + choices.choice("     \n") for word in chosen))
        return texts

    return make


@pytest.fixture(scope="session")
def make_batch():
    """A function (lengths of each row's documents, T, V) -> a batch of random ids below V."""

    def make(lengths: list[list[int]], T: int, V: int) -> Batch:
        rng = np.random.default_rng(0)
        segment_ids_BT = np.zeros((len(lengths), T), np.int32)
        starts_BT, ends_BT = np.zeros_like(segment_ids_BT), np.full_like(segment_ids_BT, T)
        for row, sizes in enumerate(lengths):
            borders = [0, *itertools.accumulate(sizes)]
            starts_BT[row, borders[-1] :] = borders[-1]
            for number, (first, last) in enumerate(itertools.pairwise(borders)):
                segment_ids_BT[row, first:last] = number + 1
                starts_BT[row, first:last], ends_BT[row, first:last] = first, last
        return Batch(
            tokens_BT=rng.integers(0, V, segment_ids_BT.shape, dtype=np.int32),
            targets_BT=rng.integers(0, V, segment_ids_BT.shape, dtype=np.int32),
            loss_weights_BT=(segment_ids_BT > 0).astype(np.float32),
            segment_ids_BT=segment_ids_BT,
            positions_BT=np.arange(T, dtype=np.int32)[None, :] - starts_BT,
            document_starts_BT=starts_BT,
            document_ends_BT=ends_BT,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory, make_texts):
    """The file of a tokenizer of 400 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train_tokenizer(make_texts(200), TokenizerConfig(vocabulary_size=400, threads=1)))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    """A tokenizer of 400 pieces."""
    return load_tokenizer(tokenizer_path, threads=1)
