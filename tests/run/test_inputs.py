import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxformer.config import UserError
from jaxformer.data.corpus import CorpusConfig, key_fraction
from jaxformer.data.packing import PackingConfig, plan_rows
from jaxformer.experiment.variant import load_experiment
from jaxformer.run.inputs import digests, prepare_data, removals

pytestmark = pytest.mark.device_free

PACKING = PackingConfig(row_length=32, minimum_fill=0.5)  # That of the experiment files.


@pytest.fixture
def prepare(experiment_files, tokenizer_path, tmp_path, monkeypatch):
    """A function from lists of texts, and the share of each that is validated on, to the data of a run."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    experiment = load_experiment(str(experiment_files["best_fit"]))
    tokenizer = dataclasses.replace(experiment.tokenizer, path=str(tokenizer_path))

    def run(*corpora, shares=(0.1, 0.2, 0.3)):
        parts = []
        for i, (texts, share) in enumerate(zip(corpora, shares, strict=False)):
            path = tmp_path / f"{i}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            parts.append(CorpusConfig(kind="jsonl", path=str(path), validation_share=share))
        corpus = CorpusConfig(kind="mixture", parts=tuple(parts)) if len(parts) > 1 else parts[0]
        return prepare_data(dataclasses.replace(experiment, corpus=corpus, tokenizer=tokenizer), seed=3)

    return run


def documents_of(shards, chosen) -> set[tuple[int, ...]]:
    """Returns the ids of some documents."""
    return {tuple(shards.read(i, 0, int(shards.tokens[i])).tolist()) for i in np.unique(chosen).tolist()}


def test_no_text_is_planned_that_any_part_is_validated_on_whatever_their_order(prepare, make_texts):
    texts = make_texts(150)
    for corpora in ((texts, texts[50:120], texts[100:]), (texts[100:], texts, texts[50:120])):
        data = prepare(*corpora)
        validation = [documents_of(c.validation, np.arange(len(c.validation))) for c in data.corpora]
        planned = [documents_of(shards, plan.documents) for shards, plan in zip(data.shards, data.plans, strict=True)]
        everything = [documents_of(shards, np.arange(len(shards))) for shards in data.shards]
        for some, whole in zip(planned, everything, strict=True):
            assert some == whole - set.union(*validation)
        counts = {name: len(whole) - len(some) for name, some, whole in zip("012", planned, everything, strict=True)}
        expected = {name: count for name, count in counts.items() if count}
        assert {name: each["documents"] for name, each in removals(data).items()} == expected
        # The part of the largest share is validated on all that any is: its keys are digests of the texts too.
        assert len(expected) == 2 and {f"corpus.{name}.removed" for name in expected} < digests(data).keys()


def test_parts_that_share_nothing_are_planned_as_each_by_itself(prepare, make_texts):
    texts = make_texts(150)
    data = prepare(texts[:100], texts[100:])
    assert removals(data) == {}
    assert digests(data).keys() == {"tokenizer", "corpus.0", "plan.0", "corpus.1", "plan.1"}
    for corpus, plan in zip(data.corpora, data.plans, strict=True):
        alone = plan_rows(corpus.training.tokens, PACKING, seed=3)
        assert plan.digest() == alone.digest()


def test_a_part_that_was_prepared_by_itself_before_is_not_prepared_again(prepare, make_texts, tmp_path):
    texts = make_texts(150)
    alone = prepare(texts)
    assert not (tmp_path / "cache" / "overlaps").exists() and removals(alone) == {}
    before = {path: path.read_bytes() for path in (tmp_path / "cache" / "shards").rglob("*") if path.is_file()}
    mixed = prepare(texts, texts[:60])
    assert mixed.shards[0].folder == alone.shards[0].folder
    assert {path: path.read_bytes() for path in before} == before
    assert removals(mixed)["0"]["documents"] > 0


def test_a_part_that_others_are_validated_on_wholly_is_refused(prepare, make_texts):
    texts = make_texts(60)
    keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
    held_out = [text for key, text in zip(keys, texts, strict=True) if key_fraction(key) < 0.5]
    assert 10 < len(held_out) < 50
    with pytest.raises(UserError, match=r"0\.jsonl: other corpora of the mixture are validated on all \d+ documents"):
        prepare(held_out, texts, shares=(0.05, 0.5))
