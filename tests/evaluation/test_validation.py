"""Validation against each document evaluated alone, and what is chosen for it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import TrainingFailure, UserError
from jaxformer.data.packing import PackingConfig
from jaxformer.data.shards import Manifest, Shards
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.validation import DocumentLosses, select_validation, validate, validation_scalars
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import init_state

pytestmark = pytest.mark.device_free

FLOAT32 = 1e-5
T, V, BOS, EOS = 11, 37, 1, 2
PACKING = PackingConfig(row_length=T)


class ArrayShards(Shards):
    """Shards in memory."""

    def __init__(self, documents, text_bytes):
        marks = {field.name: None for field in dataclasses.fields(Manifest)} | {
            "bos_id": BOS,
            "eos_id": EOS,
            "vocabulary_size": 1 << 16,
        }
        tokens = np.array([len(document) for document in documents])
        super().__init__(None, "validation", Manifest(**marks), tokens, np.array(text_bytes), np.arange(len(tokens)))
        self.documents = documents

    def read_pieces(self, documents, starts, stops):
        pieces = zip(documents, starts, stops, strict=True)
        return np.concatenate([self.documents[document][start:stop] for document, start, stop in pieces])


@pytest.fixture(scope="module")
def shards():
    """Documents of 1 to 9 tokens, each with its EOS in a row at most, and of 3 to 5 bytes per token."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, V, rng.integers(1, 10)) for _ in range(23)]
    return ArrayShards(documents, [len(document) * int(rng.integers(3, 6)) for document in documents])


@pytest.fixture(scope="module")
def state():
    model = ModelConfig(vocabulary_size=V, width=12, depth=2, heads=2, feed_forward_width=20)
    state = init_state(model, make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0), 1), seed=0)
    # Parameters so large that what a token sees shows in its loss.
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype(np.float32), state.params)
    return state.replace(params=noisy)


@jax.jit
def log_probabilities_of(state, tokens_BT, segment_ids_BT, positions_BT):
    return jax.nn.log_softmax(state.model(tokens_BT, segment_ids_BT, positions_BT))


def nats_alone(state, documents):
    """Returns the nats and the number of targets of documents, each in a row of its own."""
    shape = (len(documents), max(len(document) for document in documents) + 1)
    tokens, targets, segment_ids = np.zeros((3, *shape), np.int32)
    for row, document in enumerate(documents):
        n = len(document) + 1
        tokens[row, :n], targets[row, :n], segment_ids[row, :n] = [BOS, *document], [*document, EOS], 1
    positions = np.tile(np.arange(shape[1]), (shape[0], 1))
    log_probabilities = np.float64(log_probabilities_of(state, tokens, segment_ids, positions))
    nats = -np.take_along_axis(log_probabilities, targets[..., None], axis=2)[..., 0]
    return nats[segment_ids == 1].sum(), (segment_ids == 1).sum()


@pytest.mark.parametrize("rows_per_batch", [1, 4, 50])
def test_validation_equals_each_document_alone_whatever_the_batches(state, shards, rows_per_batch):
    chosen = select_validation(shards, EvaluationConfig(), PACKING, "books")
    assert len(chosen.plan) < len(shards), "the documents are not packed"
    nats, targets = nats_alone(state, shards.documents)
    result = validation_scalars(validate(state, [chosen], EvaluationConfig(rows_per_batch=rows_per_batch)))
    assert result["loss"] == pytest.approx(nats / targets, rel=FLOAT32)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / shards.text_bytes.sum(), rel=FLOAT32)


def test_several_corpora_are_weighed_by_their_tokens_and_bytes(state, shards):
    other = ArrayShards([document[:2] for document in shards.documents[:5]], [7] * 5)
    sets = [select_validation(one, EvaluationConfig(), PACKING, "books") for one in (shards, other)]
    nats, targets = np.sum([nats_alone(state, one.documents) for one in (shards, other)], axis=0)
    result = validation_scalars(validate(state, sets, EvaluationConfig(rows_per_batch=4)))
    assert result["loss"] == pytest.approx(nats / targets, rel=FLOAT32)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / (shards.text_bytes.sum() + 35), rel=FLOAT32)


def test_every_document_has_the_loss_that_it_has_alone(state, shards):
    packing = PackingConfig(
        row_length=4
    )  # So short that documents are cut into pieces, each with a context of its own.
    chosen = select_validation(shards, EvaluationConfig(), packing, "books")
    (losses,) = validate(state, [chosen], EvaluationConfig(rows_per_batch=3))
    assert losses.name == "books" and sorted(losses.documents.tolist()) == list(range(len(shards)))
    for number, nats, targets, text_bytes in zip(*losses[1:5], strict=True):
        document = shards.documents[number]
        expected = sum(nats_of_piece(state, document, first, packing.row_length) for first in range(0, targets, 4))
        assert nats == pytest.approx(expected, rel=FLOAT32)
        assert (targets, text_bytes) == (len(document) + 1, shards.text_bytes[number])


def test_validation_reads_every_document_by_itself_whatever_the_document_mask_of_the_training_rows(state, shards):
    def losses(**packing):
        chosen = select_validation(shards, EvaluationConfig(), PackingConfig(row_length=3 * T, **packing), "books")
        return validate(state, [chosen], EvaluationConfig(rows_per_batch=3))[0]

    np.testing.assert_array_equal(losses(document_mask=False).nats, losses().nats)


def test_loss_that_is_not_finite_is_no_validation(state, shards):
    chosen = select_validation(shards, EvaluationConfig(), PACKING, "books")
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    with pytest.raises(TrainingFailure, match="the loss of validation documents of books is not finite"):
        validate(broken, [chosen], EvaluationConfig())


def nats_of_piece(state, document, first, T):
    inputs, outputs = [BOS, *document][first : first + T], [*document, EOS][first : first + T]
    arrays = np.array([inputs], np.int32), np.ones((1, len(inputs)), np.int32), np.arange(len(inputs))[None]
    log_probabilities = np.float64(log_probabilities_of(state, *arrays))
    return -log_probabilities[0, np.arange(len(outputs)), outputs].sum()


def made_up_losses(name, n, rng):
    ids = np.arange(n)
    return DocumentLosses(name, ids, rng.uniform(1, 9, n), rng.integers(2, 9, n), rng.integers(8, 30, n), name, ids)


def test_pieces_of_one_source_count_once_in_the_errors():
    one = made_up_losses("wiki", 40, np.random.default_rng(0))
    # Twins tell nothing new, in whatever order they are read.
    order = np.random.default_rng(1).permutation(80)
    fields = {name: np.tile(getattr(one, name), 2)[order] for name in ("nats", "targets", "text_bytes", "sources")}
    twins = one._replace(documents=np.arange(80), **fields)
    assert validation_scalars([twins]) == pytest.approx(validation_scalars([one]))
    apart = validation_scalars([twins._replace(sources=np.arange(80))])
    error = "bits_per_byte_standard_error"
    assert apart[error] == pytest.approx(validation_scalars([one])[error] / math.sqrt(2), rel=0.02)


def test_each_corpus_of_several_has_its_own_loss_and_errors_are_those_of_documents():
    rng = np.random.default_rng(0)
    losses = [made_up_losses(name, n, rng) for name, n in (("wiki", 40), ("books", 25))]
    scalars = validation_scalars(losses)
    for one in losses:
        alone = validation_scalars([one])
        assert set(alone) == {
            "loss", "bits_per_byte", "loss_standard_error", "bits_per_byte_standard_error"
        }  # fmt: skip
        assert alone == {name: scalars[f"{one.name}/{name}"] for name in alone}
        assert alone["loss"] == pytest.approx(one.nats.sum() / one.targets.sum())
        # The error is that of documents drawn again and again.
        draws = rng.integers(0, len(one.nats), (4000, len(one.nats)))
        spread = np.std(one.nats[draws].sum(axis=1) / one.text_bytes[draws].sum(axis=1) / math.log(2))
        assert alone["bits_per_byte_standard_error"] == pytest.approx(spread, rel=0.1)
    assert scalars["loss"] == pytest.approx(
        sum(one.nats.sum() for one in losses) / sum(one.targets.sum() for one in losses)
    )
    assert scalars["loss_standard_error"] < min(scalars[f"{one.name}/loss_standard_error"] for one in losses)


def test_selection_takes_whole_documents_until_the_wanted_bytes(shards):
    wanted = int(shards.text_bytes.sum() // 2)
    chosen = select_validation(shards, EvaluationConfig(validation_bytes=wanted), PACKING, "books")
    documents = np.unique(chosen.plan.documents)
    lengths = np.bincount(chosen.plan.documents, weights=chosen.plan.lengths, minlength=len(shards))[documents]
    np.testing.assert_array_equal(lengths, shards.tokens[documents] + 1)
    assert wanted <= shards.text_bytes[documents].sum() < wanted + shards.text_bytes.max()
    assert shards.text_bytes[chosen.documents].sum() == shards.text_bytes[documents].sum()


def test_selection_is_the_same_every_time_and_grows_with_the_wanted_bytes(shards):
    def documents(wanted):
        plan = select_validation(shards, EvaluationConfig(validation_bytes=wanted), PACKING, "books").plan
        return set(plan.documents.tolist())

    quarter, half = (int(shards.text_bytes.sum() // part) for part in (4, 2))
    assert documents(half) == documents(half)
    assert documents(quarter) < documents(half) < set(range(len(shards)))
    assert documents(half) != set(range(len(documents(half)))), "the first of the corpus are no fair choice"


def test_selection_and_its_rows_depend_on_the_text_not_on_the_tokenizer(shards):
    finer = ArrayShards([[*document, *document] for document in shards.documents], shards.text_bytes)
    wanted = EvaluationConfig(validation_bytes=int(shards.text_bytes.sum() // 2))
    one, two = (select_validation(each, wanted, PACKING, "books") for each in (shards, finer))
    assert set(one.plan.documents.tolist()) == set(two.plan.documents.tolist())


@pytest.mark.parametrize("bound", [1, 2, 4])
def test_validation_rows_are_best_fit_within_the_bound_whatever_the_method_of_the_training_rows(shards, bound):
    def choose(**packing):
        return select_validation(shards, EvaluationConfig(), PackingConfig(row_length=3 * T, **packing), "books").plan

    plan = choose(method="concat_and_split", documents_per_row=bound)
    assert plan.digest() == choose(method="best_fit", documents_per_row=bound).digest()
    # Every document fits in a row, so that only the other method would cut one.
    assert sorted(plan.documents.tolist()) == list(range(len(shards)))
    assert np.diff(plan.rows).max() == bound < np.diff(choose().rows).max()


@pytest.mark.parametrize("wanted", [0, 10_000])
def test_selection_takes_all_documents_if_none_or_more_than_all_are_wanted(shards, wanted):
    chosen = select_validation(shards, EvaluationConfig(validation_bytes=wanted), PACKING, "books")
    assert sorted(chosen.plan.documents.tolist()) == list(range(len(shards)))
    assert shards.text_bytes[chosen.documents].sum() == shards.text_bytes.sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every_steps": 0}, r"evaluation.every_steps \(0\) must be at least 1"),
        ({"rows_per_batch": 0}, r"evaluation.rows_per_batch \(0\) must be at least 1"),
        ({"validation_bytes": -1}, r"evaluation.validation_bytes \(-1\) must be at least 0"),
        ({"sample_tokens": -1}, r"evaluation.sample_tokens \(-1\) must be at least 0"),
        ({"task_items": -1}, r"evaluation.task_items \(-1\) must be at least 0"),
        ({"tasks": "arc_easy, helaswag"}, "evaluation.tasks = 'helaswag' is unknown; did you mean hellaswag"),
    ],
)
def test_evaluation_that_cannot_be_is_refused_with_the_rule_and_the_value(changes, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**changes)
