import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxformer.config import UserError
from jaxformer.data.corpus import CorpusConfig, key_fraction
from jaxformer.data.packing import PackingConfig, plan_rows
from jaxformer.experiment.resolution import load_experiment
from jaxformer.run.inputs import contents, digests, prepare_data

pytestmark = pytest.mark.device_free

PACKING = PackingConfig(row_length=32, minimum_fill=0.5)  # That of the experiment files.


@pytest.fixture
def prepare(experiment_files, tokenizer_path, tmp_path, monkeypatch):
    """A function from lists of texts, and the share of each that is validated on, to the data of a run."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    experiment = load_experiment(str(experiment_files["best_fit"]))
    tokenizer = dataclasses.replace(experiment.tokenizer, path=str(tokenizer_path))

    def run(*corpora, shares=(0.1, 0.2, 0.3), tasks="", decontaminate=(False, False, False), whole=False):
        parts = []
        for i, (texts, share) in enumerate(zip(corpora, shares, strict=False)):
            path = tmp_path / f"{i}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            fields = {"validation_share": share, "decontaminate": decontaminate[i]}
            parts.append(CorpusConfig(kind="jsonl", path=str(path), **fields))
        mixture = CorpusConfig(kind="mixture", parts=tuple(parts), decontaminate=whole) if len(parts) > 1 else None
        evaluation = dataclasses.replace(experiment.evaluation, task_data=tasks, tasks="lambada")
        packing = dataclasses.replace(experiment.packing, row_length=256 if tasks else 32)
        changed = {"corpus": mixture or parts[0], "tokenizer": tokenizer, "evaluation": evaluation, "packing": packing}
        return prepare_data(dataclasses.replace(experiment, **changed), seed=3)

    return run


def documents_of(shards, chosen) -> set[tuple[int, ...]]:
    """Returns the ids of some documents."""
    return {tuple(shards.read(i, 0, int(shards.tokens[i])).tolist()) for i in np.unique(chosen).tolist()}


def removed(data) -> dict[str, int]:
    """Returns the number of training documents that are removed of each corpus where any are."""
    counts = {name: fields["removed_documents"] for name, fields in contents(data).items()}
    return {name: count for name, count in counts.items() if count}


def test_no_text_is_planned_that_any_part_is_validated_on_whatever_their_order(prepare, make_texts):
    texts = make_texts(150)
    for corpora in ((texts, texts[50:120], texts[100:]), (texts[100:], texts, texts[50:120])):
        data = prepare(*corpora)
        validation = [documents_of(c.validation, np.arange(len(c.validation))) for c in data.corpora]
        planned = [
            documents_of(shards, plan.documents) for shards, plan in zip(data.shards, data.plans[32], strict=True)
        ]
        everything = [documents_of(shards, np.arange(len(shards))) for shards in data.shards]
        for some, whole in zip(planned, everything, strict=True):
            assert some == whole - set.union(*validation)
        counts = {name: len(whole) - len(some) for name, some, whole in zip("012", planned, everything, strict=True)}
        expected = {name: count for name, count in counts.items() if count}
        assert removed(data) == expected
        # The part of the largest share is validated on all that any is: its keys are digests of the texts too.
        assert len(expected) == 2 and {f"corpus.{name}.removed" for name in expected} < digests(data).keys()


def test_parts_that_share_nothing_are_planned_as_each_by_itself(prepare, make_texts):
    texts = make_texts(150)
    data = prepare(texts[:100], texts[100:])
    assert removed(data) == {}
    assert digests(data).keys() == {"tokenizer", "corpus.0", "plan.0", "corpus.1", "plan.1"}
    for corpus, plan in zip(data.corpora, data.plans[32], strict=True):
        alone = plan_rows(corpus.training.tokens, PACKING, seed=3)
        assert plan.digest() == alone.digest()


def test_a_part_that_was_prepared_by_itself_before_is_not_prepared_again(prepare, make_texts, tmp_path):
    texts = make_texts(150)
    alone = prepare(texts)
    assert not (tmp_path / "cache" / "overlaps").exists() and removed(alone) == {}
    before = {path: path.read_bytes() for path in (tmp_path / "cache" / "shards").rglob("*") if path.is_file()}
    mixed = prepare(texts, texts[:60])
    assert mixed.shards[0].folder == alone.shards[0].folder
    assert {path: path.read_bytes() for path in before} == before
    assert removed(mixed)["0"] > 0


def test_a_part_that_others_are_validated_on_wholly_is_refused(prepare, make_texts):
    texts = make_texts(60)
    keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
    held_out = [text for key, text in zip(keys, texts, strict=True) if key_fraction(key) < 0.5]
    assert 10 < len(held_out) < 50
    with pytest.raises(UserError, match=r"0\.jsonl: all \d+ training documents are removed, since other"):
        prepare(held_out, texts, shares=(0.05, 0.5))


@pytest.mark.parametrize(("parts", "whole"), [((False, True), False), ((False, False), True), ((False, False), False)])
def test_documents_that_contain_items_are_removed_from_the_parts_that_say_so(
    prepare, make_texts, tmp_path, parts, whole
):
    texts = [text for text in make_texts(150) if len(text.split()) > 13]
    items = [*texts[5:15], *texts[60:75]]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": " ".join(t.split())}) + "\n" for t in items))
    data = prepare(texts[:50], texts[50:], tasks=str(tmp_path), decontaminate=parts, whole=whole)
    for name, corpus, plan, is_removed in zip("01", data.corpora, data.plans[256], parts, strict=True):
        trained_on = documents_of(corpus.training, plan.documents)
        contaminated = documents_of(corpus.training, corpus.contamination["lambada"].documents)
        assert 5 < len(contaminated) < 16 and corpus.contamination["lambada"].items == 25
        assert contents(data)[name]["contamination"]["lambada"]["documents"] == len(contaminated)
        is_clean = trained_on.isdisjoint(contaminated)
        assert is_clean is (is_removed or whole) is (f"corpus.{name}.removed" in digests(data))
        assert is_clean or trained_on >= contaminated


def test_decontamination_without_tasks_is_refused(prepare, make_texts):
    with pytest.raises(UserError, match=r"corpus\.decontaminate needs tasks .*; set evaluation\.task_data"):
        prepare(make_texts(40), decontaminate=(True,))
