"""Log-likelihoods against each request computed alone in float64, and the requests against encodings worked by hand."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.config import TrainingFailure, UserError
from jaxformer.data.bin_packing import best_fit_decreasing
from jaxformer.data.packing import PackingConfig
from jaxformer.evaluation import items, loglikelihood
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.loglikelihood import Request, encode, score
from jaxformer.evaluation.scores import score_items
from jaxformer.evaluation.task_scores import TaskScores, encode_task, load_tasks, score_task
from jaxformer.evaluation.tasks import TASKS, TaskData, fixed_choice
from jaxformer.model import ModelConfig, Transformer
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import init_state

NATS = 1e-4
T, V, MODEL_V = 13, 29, 440
PACKING = PackingConfig(row_length=T)

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


MODEL = ModelConfig(vocabulary_size=MODEL_V, width=12, depth=2, heads=2, feed_forward_width=20)


def noise_like(params, scale: float):
    """Returns parameters so large that what a token sees shows in its log-likelihood."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), params)


@pytest.fixture(scope="module")
def state(compiled):
    """A model with more rows than there are tokens."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0), 1)
    state = init_state(MODEL, optimizer, seed=0, token_count=V)
    return state.replace(params=jax.tree.map(jnp.add, state.params, noise_like(state.params, 0.25)))


def graph(token_count: int = V, **fields):
    """Returns the graph definition and the parameters' shapes of a model."""
    model = dataclasses.replace(MODEL, **fields)
    return nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(params=0), token_count=token_count)))


def variant(state, **fields):
    """Returns a state of a model with other fields."""
    graphdef, params = graph(**fields)
    return state.replace(graphdef=graphdef, params=noise_like(params, 0.5))


def make_requests(count: int = 23, longest: int = T, seed: int = 0) -> list[Request]:
    """Returns random requests of 1 to `longest` inputs, the first of which scores all and the second the last only."""
    rng = np.random.default_rng(seed)
    requests = []
    for number in range(count):
        n = int(rng.integers(2, longest + 1)) if number > 1 else longest
        scored = [n, 1][number] if number < 2 else int(rng.integers(1, n + 1))
        requests.append(Request(rng.integers(3, V, n + 1).astype(np.int32), scored))
    return requests


@jax.jit
def _logits(state, tokens_BT, segment_ids_BT):
    positions_BT = jnp.tile(jnp.arange(tokens_BT.shape[1]), (tokens_BT.shape[0], 1))
    return state.model(tokens_BT, segment_ids_BT, positions_BT)


def alone(state, requests, vocabulary_size: int = V):
    """Returns (nats, is_greedy) of requests, each in a row of its own, with softmax and sum in float64."""
    shape = (max(40, len(requests)), max(T, *(len(tokens) - 1 for tokens, _ in requests)))
    tokens_BT, segment_ids_BT = np.zeros((2, *shape), np.int32)
    for row, (tokens, _) in enumerate(requests):
        tokens_BT[row, : len(tokens) - 1], segment_ids_BT[row, : len(tokens) - 1] = tokens[:-1], 1
    logits_BTV = np.asarray(_logits(state, tokens_BT, segment_ids_BT), np.float64)[:, :, :vocabulary_size]
    log_probabilities_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(axis=2, keepdims=True))
    nats, is_greedy = [], []
    for row, (tokens, scored) in enumerate(requests):
        end = len(tokens) - 1
        places, targets = np.arange(end - scored, end), tokens[end + 1 - scored :]
        nats.append(log_probabilities_BTV[row, places, targets].sum())
        is_greedy.append(bool((log_probabilities_BTV[row, places].argmax(axis=1) == targets).all()))
    return np.array(nats), np.array(is_greedy)


def greedy_requests(state, count: int = 6) -> list[Request]:
    """Returns requests that end in what the model itself would write, and such with one token changed."""
    requests = []
    for number in range(count):
        tokens = list(make_requests(count)[number].tokens[:3])
        scored = 1 + number % 4
        for _ in range(scored):
            tokens.append(likeliest(state, tokens, V))
        requests.append(Request(np.array(tokens, np.int32), scored))
        for place in range(scored):
            changed = np.array(tokens, np.int32)
            changed[3 + place] = (changed[3 + place] + 1) % V
            requests.append(Request(changed, scored))
    return requests


def likeliest(state, tokens: list[int], vocabulary_size: int) -> int:
    """Returns the token that the model would write behind others."""
    tokens_BT, segment_ids_BT = np.zeros((2, 1, T), np.int32)
    tokens_BT[0, : len(tokens)], segment_ids_BT[0, : len(tokens)] = tokens, 1
    logits = _logits(state, tokens_BT, segment_ids_BT)
    return int(np.asarray(logits)[0, len(tokens) - 1, :vocabulary_size].argmax())


# Log-likelihoods.


@pytest.mark.parametrize(
    ("rows_per_batch", "row_length", "documents_per_row"),
    [(4, T, 0), (50, T, 0), (3, 2 * T + 1, 0), (3, 5 * T, 2), (1, 30 * T, 0)],
)
def test_packed_requests_score_as_each_alone_whatever_the_rows_and_batches(
    state, rows_per_batch, row_length, documents_per_row
):
    requests = make_requests()
    nats, is_greedy = alone(state, requests)
    assert len({len(tokens) for tokens, _ in requests}) > 6
    packing = PackingConfig(row_length=row_length, documents_per_row=documents_per_row)
    found = score(state, requests, packing, rows_per_batch=rows_per_batch)
    np.testing.assert_allclose(found.nats, nats, atol=NATS)
    np.testing.assert_array_equal(found.is_greedy, is_greedy)
    assert found.nats.dtype == np.float64


def test_the_soft_cap_and_the_chunks_of_logits_are_those_of_training(state):
    capped, requests = variant(state, logit_soft_cap=0.5, loss_chunk_tokens=5), make_requests()
    nats, is_greedy = alone(capped, requests)
    found = score(capped, requests, PACKING, rows_per_batch=4)
    np.testing.assert_allclose(found.nats, nats, atol=NATS)
    np.testing.assert_array_equal(found.is_greedy, is_greedy)
    uncapped = alone(capped.replace(graphdef=state.graphdef), requests)[0]
    assert np.abs(nats - uncapped).max() > 1, "the cap is not seen"


def test_windows_positions_and_the_unembedding_are_those_of_training(state):
    other, requests = variant(state, sliding_window=3, learned_positions=2 * T, tied_embeddings=False), make_requests()
    nats, is_greedy = alone(other, requests)
    found = score(other, requests, PackingConfig(row_length=2 * T), rows_per_batch=3)
    np.testing.assert_allclose(found.nats, nats, atol=NATS)
    np.testing.assert_array_equal(found.is_greedy, is_greedy)


def test_rows_that_stand_for_no_token_take_no_part(state):
    requests = make_requests()
    params = jax.tree.map(lambda x: x.at[V:].set(50.0) if x.shape == (MODEL_V, 12) else x, state.params)
    all_rows = state.replace(graphdef=graph(MODEL_V)[0])
    assert (alone(state, requests)[0] - alone(all_rows, requests, MODEL_V)[0]).min() > 10 * NATS, "they matter"
    found = score(state.replace(params=params), requests, PACKING, rows_per_batch=4)
    same = score(state, requests, PACKING, rows_per_batch=4)
    np.testing.assert_allclose(found.nats, same.nats, atol=NATS)
    np.testing.assert_array_equal(found.is_greedy, same.is_greedy)


def test_scores_follow_the_requests_in_any_order(state):
    requests = make_requests()
    found = score(state, requests, PACKING, rows_per_batch=4)
    order = np.random.default_rng(1).permutation(len(requests))
    shuffled = score(state, [requests[i] for i in order], PACKING, rows_per_batch=4)
    np.testing.assert_allclose(shuffled.nats, found.nats[order], atol=NATS)
    np.testing.assert_array_equal(shuffled.is_greedy, found.is_greedy[order])


def test_a_request_is_greedy_where_every_scored_token_is_the_likeliest(state):
    requests = greedy_requests(state)
    found = score(state, requests, PACKING, rows_per_batch=4)
    np.testing.assert_array_equal(found.is_greedy, alone(state, requests)[1])
    assert found.is_greedy.sum() == 6 < len(requests)


def test_a_row_holds_no_more_requests_than_the_bound(state, monkeypatch):
    held = []

    def spy(*arguments):
        row_of = best_fit_decreasing(*arguments)
        held.append(np.bincount(row_of).max())
        return row_of

    monkeypatch.setattr(loglikelihood, "best_fit_decreasing", spy)
    for bound in (2, 0):
        packing = PackingConfig(row_length=5 * T, documents_per_row=bound)
        score(state, make_requests(), packing, rows_per_batch=3)
    assert held[0] == 2 < held[1]


def test_no_requests_have_no_scores(state):
    found = score(state, [], PACKING, rows_per_batch=4)
    assert found.nats.shape == found.is_greedy.shape == (0,)
    assert (found.nats.dtype, found.is_greedy.dtype) == (np.float64, np.bool_)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_a_failure_not_a_score(state, value):
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), state.params)
    with pytest.raises(TrainingFailure, match="log-likelihoods are not finite"):
        score(state.replace(params=params), make_requests(), PACKING, rows_per_batch=4)


def test_a_label_shows_nothing_where_there_is_no_terminal(state, capsys):
    score(state, make_requests(), PACKING, rows_per_batch=4, label="my task")
    assert capsys.readouterr() == ("", "")


# Requests.


class Letters:
    """A tokenizer whose ids are code points, but for pieces of its own from 5000 on; the first that fits is taken."""

    bos_id = 1

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def encode_batch(self, texts, *, threads):
        return [np.array(self._ids(text), np.int32) for text in texts]

    def _ids(self, text):
        ids = []
        while text:
            piece = next((piece for piece in self.pieces if text.startswith(piece)), text[0])
            ids.append(5000 + self.pieces.index(piece) if piece in self.pieces else ord(piece))
            text = text[len(piece) :]
        return ids


def ids_of(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_request_is_bos_context_and_continuation_of_which_the_last_is_scored():
    (request, other), truncated, shifted = encode([("ab", " cde"), ("", " f")], Letters(), 9)
    assert request.tokens.tolist() == [1, *ids_of("ab cde")]
    assert request.scored == 4
    assert other.tokens.tolist() == [1, *ids_of(" f")]
    assert other.scored == 2
    assert request.tokens.dtype == np.int32
    assert not (truncated.any() or shifted.any())


@pytest.mark.parametrize("space", [" ", "  ", "\n", " \t\n"])
def test_white_space_that_ends_a_context_is_scored(space):
    encoded = encode([("ab" + space, "cd")], Letters(), 9)
    assert encoded.requests[0].tokens.tolist() == [1, *ids_of("ab" + space + "cd")]
    assert encoded.requests[0].scored == len(space) + 2
    assert encoded.is_shifted.sum() == 0


def test_an_empty_context_or_one_of_white_space_leaves_bos_alone_unscored():
    for context in ("", " ", "\n\n"):
        (request,), truncated, shifted = encode([(context, " ab")], Letters(), 9)
        assert request.scored == len(request.tokens) - 1 == len(context) + 3
        assert not (truncated.any() or shifted.any())


@pytest.mark.parametrize(
    ("row_length", "tokens", "truncated"),
    [
        (8, [1, *ids_of("abcd ef")], 0),
        (7, [1, *ids_of("abcd ef")], 0),
        (6, ids_of("abcd ef"), 1),
        (5, ids_of("bcd ef"), 1),
        (3, ids_of("d ef"), 1),
    ],
)
def test_a_long_request_loses_its_beginning_and_keeps_its_continuation(row_length, tokens, truncated):
    encoded = encode([("abcd", " ef"), ("a", " b")], Letters(), row_length)
    assert encoded.requests[0].tokens.tolist() == tokens
    assert encoded.requests[0].scored == 3
    assert encoded.is_truncated.sum() == truncated
    assert len(encoded.requests[0].tokens) <= row_length + 1


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", " long"), r"a continuation of 5 tokens cannot be scored in rows of 4: ' long'"),
        (("", ""), "the continuation has no token: ''"),
        (("a", ""), "the continuation has no token: ''"),
        (("a  ", "bcd"), r"a continuation of 5 tokens cannot be scored in rows of 4: 'bcd'"),
    ],
)
def test_a_continuation_that_is_empty_or_longer_than_a_row_is_a_user_error(pair, message):
    with pytest.raises(UserError, match=message):
        encode([("a", " b"), pair], Letters(), 4)


def test_a_token_that_spans_the_border_is_scored_whole_and_counted():
    encoded = encode([("xab", "cd"), ("xab", " cd"), ("xa", "bcd")], Letters("bc"), 9)
    spanning, apart, other = encoded.requests
    assert spanning.tokens.tolist() == [1, ord("x"), ord("a"), 5000, ord("d")]
    assert spanning.scored == 2
    assert (apart.scored, other.scored) == (3, 2)
    assert encoded.is_shifted.sum() == 1


def test_what_is_encoded_of_pairs_depends_on_each_alone(tokenizer, make_texts):
    T = 64
    texts = make_texts(12)
    pairs = [(text[: -1 - n], text[-1 - n :]) for text in texts for n in (1, 3, 9)]
    together = encode(pairs, tokenizer, T)
    for (context, continuation), request in zip(pairs, together.requests, strict=True):
        ((lone,), _, _) = encode([(context, continuation)], tokenizer, T)
        assert lone.tokens.tolist() == request.tokens.tolist()
        assert lone.scored == request.scored
        whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
        assert request.tokens.tolist() == whole[-T - 1 :]
        assert tokenizer.decode(request.tokens[-request.scored :].tolist()).endswith(continuation)
    assert together.is_truncated.sum() == 3 * sum(len(tokenizer.encode(text)) > T for text in texts)
    assert 0 < together.is_truncated.sum() < len(pairs)
    cuts_a_token = [
        len(tokenizer.encode(a)) + len(tokenizer.encode(b)) != len(tokenizer.encode(a + b)) for a, b in pairs
    ]
    assert 0 < together.is_shifted.sum() <= sum(cuts_a_token)


def test_no_pairs_are_no_requests(tokenizer):
    assert [len(each) for each in encode([], tokenizer, 8)] == [0, 0, 0]


# Tasks.


def make_task(name: str = "hellaswag", count: int = 10) -> TaskData:
    """Returns a task of made-up items of 2 to 4 options of different lengths."""
    rng = np.random.default_rng(0)
    words = ["ba", "dofi", "gum\u00e9", "la", "rostuke", "ne"]
    made = []
    for number in range(count):
        context = f"{number} " + " ".join(rng.choice(words, rng.integers(1, 5)))
        options = [
            Option(context, " " + " ".join(rng.choice(words, rng.integers(1, 4)))) for _ in range(rng.integers(2, 5))
        ]
        made.append(Item(tuple(options), int(rng.integers(len(options)))))
    return TaskData(TASKS[name], made, "/made/up", "digest")


ROWS = PackingConfig(row_length=64)


@pytest.fixture(scope="module")
def text_state(state, tokenizer):
    """The same model of the tokenizer's ids."""
    return state.replace(graphdef=graph(tokenizer.vocabulary_size)[0])


def scored(text_state, tokenizer, data: TaskData, items: int | None = None) -> TaskScores:
    task = encode_task(data, tokenizer, ROWS.row_length)
    return score_task(text_state, task, ROWS, rows_per_batch=2, items=items)


def test_the_scores_of_a_task_are_those_of_each_option_alone(text_state, tokenizer):
    data = make_task()
    found = scored(text_state, tokenizer, data)
    np.testing.assert_array_equal(found.chosen, np.arange(10))
    each = [encode([option], tokenizer, ROWS.row_length).requests[0] for item in data.items for option in item.options]
    nats, _ = alone(text_state, each, tokenizer.vocabulary_size)
    np.testing.assert_allclose(np.concatenate(found.log_likelihoods), nats, atol=NATS)
    assert [len(nats) for nats in found.log_likelihoods] == [len(item.options) for item in data.items]
    expected = score_items(data.items, found.log_likelihoods, [False] * 10)
    for values, same in zip(found.items, expected, strict=True):
        np.testing.assert_array_equal(values, same)
    assert len(np.unique(found.items.acc)) == 2


def test_a_part_of_a_task_is_scored_as_among_all_of_it(text_state, tokenizer):
    data = make_task()
    everything, some = scored(text_state, tokenizer, data), scored(text_state, tokenizer, data, 3)
    np.testing.assert_array_equal(some.chosen, fixed_choice(10, 3))
    among = everything.among(some.chosen)
    np.testing.assert_array_equal(among.chosen, some.chosen)
    for one, other in zip(some.log_likelihoods, among.log_likelihoods, strict=True):
        np.testing.assert_allclose(one, other, atol=NATS)
    for one, other in zip(some.items, among.items, strict=True):
        np.testing.assert_allclose(one, other, atol=NATS)
    assert some.chance() == among.chance() == np.mean([1 / len(data.items[i].options) for i in some.chosen])
    # A part of a part is found by the items' numbers too.
    np.testing.assert_array_equal(
        some.among(fixed_choice(10, 2)).items.acc, everything.among(fixed_choice(10, 2)).items.acc
    )


def test_scores_of_a_part_have_its_size_in_their_name(text_state, tokenizer):
    data = make_task()
    everything = scored(text_state, tokenizer, data)
    assert everything.name == scored(text_state, tokenizer, data, 99).name == "hellaswag"
    assert scored(text_state, tokenizer, data, 3).name == everything.among(fixed_choice(10, 3)).name == "hellaswag_3"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("hellaswag", ["acc", "acc_norm", "gold_bits_per_byte", "margin"]),
        ("arc_easy", ["acc", "acc_norm", "gold_bits_per_byte", "margin"]),
        ("winogrande", ["acc", "gold_bits_per_byte", "margin"]),
        ("lambada", ["acc", "gold_bits_per_byte"]),
    ],
)
def test_estimates_are_those_of_use_for_the_task(text_state, tokenizer, name, names):
    data = make_task(name)
    if name == "lambada":
        data = data._replace(items=[items.lambada({"text": f"{i} ba dofi rostuke"}) for i in range(10)])
    found = scored(text_state, tokenizer, data)
    estimates = found.estimates()
    assert sorted(estimates) == names
    for metric, (mean, standard_error) in estimates.items():
        values = getattr(found.items, metric)
        assert mean == pytest.approx(values.mean())
        assert standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(10))
    assert (found.chance() is None) == (name == "lambada")


def test_a_single_option_is_right_where_the_model_would_write_it(text_state, tokenizer):
    data = make_task("lambada")._replace(items=[Item((Option("", "ba" * n),), 0) for n in range(1, 8)])
    task = encode_task(data, tokenizer, ROWS.row_length)
    _, is_greedy = alone(text_state, task.encoded.requests, tokenizer.vocabulary_size)
    # The likeliest first token of all becomes a request of its own.
    best = likeliest(text_state, [tokenizer.bos_id], tokenizer.vocabulary_size)
    requests = [*task.encoded.requests[:-1], Request(np.array([tokenizer.bos_id, best], np.int32), 1)]
    task = task._replace(encoded=task.encoded._replace(requests=requests))
    found = score_task(text_state, task, ROWS, rows_per_batch=2)
    np.testing.assert_array_equal(found.items.acc, [*is_greedy[:-1], True])
    part = score_task(text_state, task, ROWS, rows_per_batch=2, items=4)
    np.testing.assert_array_equal(part.items.acc, found.items.acc[part.chosen])


def test_a_continuation_longer_than_a_row_is_a_user_error_that_names_task_source_and_row(tokenizer):
    data = make_task()
    long = data.items[3]._replace(options=(*data.items[3].options[:1], Option("", " ba" * 30)))
    data = data._replace(items=[*data.items[:3], long, *data.items[4:]])
    with pytest.raises(
        UserError, match=r"^hellaswag data /made/up, row 4: a continuation of \d+ tokens .* rows of 15: "
    ):
        encode_task(data, tokenizer, 15)


@pytest.mark.parametrize("rows_per_batch", [0, -1])
def test_batches_of_no_rows_are_refused(state, rows_per_batch):
    with pytest.raises(UserError, match=r"rows_per_batch \(-?\d\) must be at least 1"):
        score(state, [], PACKING, rows_per_batch=rows_per_batch)


def test_a_task_knows_where_the_requests_of_each_item_begin(tokenizer):
    data = make_task()
    task = encode_task(data, tokenizer, 64)
    first = [sum(len(item.options) for item in data.items[:i]) for i in range(11)]
    assert first[-1] == len(task.encoded.requests)
    assert task.requests(np.array([1, 4])).tolist() == [*range(first[1], first[2]), *range(first[4], first[5])]
    assert task.requests(np.arange(10)).tolist() == list(range(first[-1]))


def test_tasks_of_a_configuration_are_loaded_once_each_and_none_without_data(tmp_path, tokenizer):
    row = {"goal": "Sit.", "sol1": "On a chair.", "sol2": "On a fork.", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row))
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"text": "He sat down"}))
    config = EvaluationConfig(task_data=str(tmp_path), tasks="piqa, lambada,piqa")
    piqa, lambada = load_tasks(config)
    assert (piqa.task.name, lambada.task.name) == ("piqa", "lambada")
    assert piqa.items == [items.piqa(row)]
    with pytest.raises(UserError, match=r"one file for 2 tasks \(piqa, lambada\); give a folder, or a task"):
        load_tasks(dataclasses.replace(config, task_data=str(tmp_path / "piqa.jsonl")))
    assert load_tasks(dataclasses.replace(config, task_data="")) == []
    assert load_tasks(dataclasses.replace(config, tasks="")) == []
    with pytest.raises(UserError, match=r"boolq data .*: the folder holds no boolq\.jsonl"):
        load_tasks(dataclasses.replace(config, tasks="boolq"))
