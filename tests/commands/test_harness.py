"""A run as a model of lm-evaluation-harness: its requests are ours, and its tasks can be asked."""

import functools
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import REPOSITORY

from jaxformer.commands.harness import main
from jaxformer.config import UserError
from jaxformer.evaluation.loglikelihood import encode
from jaxformer.evaluation.task_scores import encode_task, score_task
from jaxformer.evaluation.tasks import load_task
from jaxformer.run.export import export_run

is_installed = importlib.util.find_spec("lm_eval") is not None
if is_installed:  # Before it is imported.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
needs_harness = pytest.mark.skipif(not is_installed, reason="needs the extra lm-eval")
pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]

ROWS = {
    "hellaswag": [
        {"activity_label": "Ba du", "ctx_a": "Ba [x] du.", "ctx_b": "he BE", "label": "2",
         "endings": ["ka", "[step] ki", "ko  ko", "é"]},
        {"activity_label": "Fi", "ctx_a": "fo [title] ga", "ctx_b": "", "endings": ["la [title] li", "lo", "lu", "le"],
         "label": "0"},
    ],
    "arc_easy": [
        {"question": "ba du?", "choices": {"text": ["ka", "ki", "ko"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": "be", "choices": {"text": ["ka", "ki"], "label": ["A", "B"]}, "answerKey": "A"},
    ],
    "winogrande": [
        {"sentence": "Ba saw _ du ka.", "option1": "fi", "option2": "fo", "answer": "2"},
        {"sentence": "Ba saw _.", "option1": "fi", "option2": "fo", "answer": "1"},
    ],
    "piqa": [{"goal": "ba", "sol1": "du", "sol2": "ka ki", "label": 1}],
    "openbookqa": [
        {"question_stem": "ba du", "choices": {"text": ["ka", "ki"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
    "arc_challenge": [
        {"question": "ba", "choices": {"text": ["ka", "ki"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
    "boolq": [{"passage": "ba du", "question": "is ka", "label": 1, "idx": 0}],
    "lambada": [{"text": "ba du ka ki"}, {"text": "be  fo"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a file of a few official rows for each task."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model(uninterrupted, tmp_path_factory):
    from jaxformer.run.lm_eval_model import JaxformerLM

    run = tmp_path_factory.mktemp("harness") / "run"
    shutil.copytree(uninterrupted("best_fit"), run, ignore=lambda *_: [".lock"])
    return JaxformerLM(run, batch_size=2)


@functools.cache
def load_tool():
    specification = importlib.util.spec_from_file_location("check_harness", REPOSITORY / "tools" / "check_harness.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    return tool


def requests(*arguments):
    from lm_eval.api.instance import Instance

    return [Instance("any", {}, pair, number) for number, pair in enumerate(arguments)]


@needs_harness
@pytest.mark.parametrize("name", ROWS)
def test_requests_and_scores_of_every_task_are_those_of_the_harness(model, data, name, capsys):
    tool, task = load_tool(), load_task(name, str(data))
    trained = model.trained
    ours = score_task(
        trained.state,
        encode_task(task, trained.tokenizer, 32),
        trained.experiment.packing,
        rows_per_batch=3,
    )
    theirs = tool.ask_harness(model, task)
    assert tool.compare(ours, theirs) == []
    assert f"{name}: {len(ROWS[name])} items" in capsys.readouterr().out
    if name == "winogrande":  # The comparison can fail, each of its ways.
        items = [task.items[0]._replace(options=task.items[0].options[::-1]), *task.items[1:]]
        other = ours._replace(task=ours.task._replace(data=task._replace(items=items)))
        assert "requests differ" in tool.compare(other, theirs)[0]
        other = ours._replace(log_likelihoods=[nats + 2e-3 for nats in ours.log_likelihoods])
        assert [problem.partition(" by ")[0] for problem in tool.compare(other, theirs)] == [
            "item 0: log-likelihoods differ", "item 1: log-likelihoods differ"
        ]  # fmt: skip
        other = ours._replace(items=ours.items._replace(acc=1 - ours.items.acc))
        assert len(tool.compare(other, theirs)) == 2 + (ours.items.acc.mean() != 0.5)


@needs_harness
def test_exported_run_is_scored_alike_by_the_harness_own_model(model, data, tmp_path):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    tool, trained = load_tool(), model.trained
    export_run(trained, tmp_path / "out")
    theirs = tool.open_exported(tmp_path / "out")
    for name in ("hellaswag", "arc_easy", "winogrande"):
        task = load_task(name, str(data))
        ours = score_task(
            trained.state,
            encode_task(task, trained.tokenizer, 32),
            trained.experiment.packing,
            rows_per_batch=3,
        )
        assert tool.compare(ours, tool.ask_harness(theirs, task), tolerance=1e-4) == []


@needs_harness
def test_encoding_of_the_harness_is_ours(model, make_texts):
    texts = make_texts(20, seed=5)
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    pairs += [("", "ba"), ("ba ", "du"), ("ba\n\n", " du"), ("  ", "ba")]
    ours = encode(pairs, model.trained.tokenizer, 10_000).requests
    for (context, continuation), request in zip(pairs, ours, strict=True):
        if context:
            before, ids = model._encode_pair(context, continuation)
        else:
            before, ids = [model.prefix_token_id], model.tok_encode(continuation, add_special_tokens=False)
        shared = len(request.tokens) - request.scored
        if request.tokens[:shared].tolist() == before:  # A token that spans the border is scored whole by us alone.
            assert request.tokens[shared:].tolist() == ids
        else:
            assert before[:shared] == request.tokens[:shared].tolist()


def nats_alone(trained, ids):
    """Returns the log-probability of each id but the first after those before it, in float64."""
    tokens = jnp.asarray([ids[:-1]])
    positions = jnp.arange(len(ids) - 1)[None]
    logits_TV = np.float64(trained.state.model(tokens, jnp.ones_like(tokens), positions)[0])
    logits_TV = logits_TV[:, : trained.tokenizer.vocabulary_size]
    logits_TV -= np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return logits_TV[np.arange(len(ids) - 1), ids[1:]]


@needs_harness
def test_rolling_scores_every_token_of_a_long_text_once(model):
    trained = model.trained
    long = " ".join(["ba du ka"] * 20)
    ids = trained.tokenizer.encode(long)
    assert len(ids) > 64
    found = model.loglikelihood_rolling(requests((long,), ("ba",), ("",)), disable_tqdm=True)
    # The last window is moved to the left, so that it is full.
    windows = [[trained.tokenizer.bos_id, *ids[:32]]] + [ids[i : i + 33] for i in range(31, len(ids) - 32, 32)]
    rest = (len(ids) - 32) % 32
    expected = sum(nats_alone(trained, window).sum() for window in windows)
    if rest:
        expected += nats_alone(trained, ids[-33:])[-rest:].sum()
    assert found[0] == pytest.approx(expected, abs=1e-3)
    assert found[1] == pytest.approx(nats_alone(trained, [1, *trained.tokenizer.encode("ba")]).sum(), abs=1e-3)
    assert found[2] == 0


@needs_harness
def test_greedy_text_is_what_the_model_writes_token_by_token(model):
    trained = model.trained
    contexts = ["ba du", "k", "ba du ka ki ko"]
    found = model.generate_until(
        requests(*((context, {"until": ["\n\n"], "max_gen_toks": 6}) for context in contexts)), disable_tqdm=True
    )
    forward = jax.jit(lambda state, *inputs: state.model(*inputs))
    for context, text in zip(contexts, found, strict=True):
        ids = [trained.tokenizer.bos_id, *trained.tokenizer.encode(context)]
        prompt = len(ids)
        for _ in range(6):
            tokens = jnp.zeros((1, 32), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
            logits_BTV = forward(trained.state, tokens, jnp.ones_like(tokens), jnp.arange(32)[None])
            ids.append(int(jnp.argmax(logits_BTV[0, len(ids) - 1])))
        new = ids[prompt:]
        new = new[: new.index(trained.tokenizer.eos_id)] if trained.tokenizer.eos_id in new else new
        assert text == trained.tokenizer.decode(new).partition("\n\n")[0]


@needs_harness
def test_text_ends_before_the_first_stop_sequence(model):
    (whole,) = model.generate_until(requests(("ba du", {"until": [], "max_gen_toks": 12})))
    assert len(whole) > 3
    stop = whole[3]
    (cut,) = model.generate_until(requests(("ba du", {"until": stop, "max_gen_toks": 12})))
    assert cut == whole[: whole.index(stop)]


@needs_harness
def test_nothing_more_is_generated_once_each_request_of_a_batch_has_its_stop_sequence(model, monkeypatch):
    import jaxformer.evaluation.generate as generate

    steps, decode = [], generate.decode
    monkeypatch.setattr(generate, "decode", lambda *inputs, **options: map(each(steps), decode(*inputs, **options)))
    options = {"until": [], "max_gen_toks": 24}
    (whole,) = model.generate_until(requests(("ba du", options)))
    assert len(steps) == 24
    steps.clear()
    model.generate_until(requests(("ba du", options | {"until": [whole[3]]})))
    assert len(steps) == 16


def each(steps):
    return lambda tokens_B: steps.append(1) or tokens_B


@needs_harness
def test_after_the_largest_seed_comes_0(model):
    from jaxformer.run.lm_eval_model import JaxformerLM

    last = JaxformerLM(model.trained.workdir, batch_size=1, seed=(1 << 32) - 1)
    first = JaxformerLM(model.trained.workdir, batch_size=1, seed=0)
    options = {"until": [], "max_gen_toks": 8, "temperature": 1.0}
    texts = last.generate_until(requests(*[("ba du", options)] * 2), disable_tqdm=True)
    assert texts[1:] == first.generate_until(requests(("ba du", options)), disable_tqdm=True) != texts[:1]


@needs_harness
def test_text_is_sampled_where_it_is_asked_for_and_anew_for_each_request(model):
    greedy = {"until": [], "max_gen_toks": 8}

    def ask(**options):
        return model.generate_until(requests(*[("ba du", greedy | options)] * 5), disable_tqdm=True)

    assert len(set(ask())) == len(set(ask(do_sample=False, temperature=1.0, top_p=0.9))) == 1
    sampled = ask(temperature=1.0)
    assert len(set(sampled)) == 5 and sampled == ask(do_sample=True)
    assert ask(temperature=1.0, top_k=1) == ask(temperature=1.0, top_p=1e-6) == ask()
    assert len(set(ask(temperature=1.0, top_p=0.9))) == 5


@needs_harness
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"batch_size": -1}, r"batch_size \(-1\) must be a whole number"),
        ({"step": "last"}, r"step \(last\) must be a whole number"),
        ({"seed": 1 << 32}, r"seed \(4294967296\) must be at least 0 and below 2\*\*32"),
        ({"step": 5}, "no checkpoint of step 5"),
    ],
)
def test_wrong_arguments_of_the_model_are_refused_in_words(model, options, message):
    from jaxformer.run.lm_eval_model import JaxformerLM

    with pytest.raises(UserError, match=message):
        JaxformerLM(model.trained.workdir, **options)


@needs_harness
def test_what_cannot_be_asked_is_refused_in_words(model):
    with pytest.raises(UserError, match=r"max_gen_toks \(32\) leaves no room for a context in a row of 32"):
        model.generate_until(requests(("ba", {"until": [], "max_gen_toks": 32})))
    with pytest.raises(UserError, match="cannot sample with min_p; with temperature, top_k and top_p only"):
        model.generate_until(requests(("ba", {"max_gen_toks": 2, "temperature": 1.0, "min_p": 0.1})))
    with pytest.raises(UserError, match=r"top_p \(2.0\) must be above 0 and at most 1"):
        model.generate_until(requests(("ba", {"max_gen_toks": 2, "temperature": 1.0, "top_p": 2})))
    with pytest.raises(UserError, match=r"cannot be scored in rows of 32: ' du du"):
        model.loglikelihood(requests(("ba", " du" * 60)), disable_tqdm=True)


@needs_harness
def test_command_scores_a_task_of_a_users_own(model, data, tmp_path, monkeypatch, capsys):
    import lm_eval.tasks

    task = {
        "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data / "piqa.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{goal}}", "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    arguments = ["run", "--model=jaxformer", "--tasks=mine", f"--include_path={tmp_path}"]
    # Its own tasks are left out, since its index of them takes half a minute.
    code = (
        "import functools, sys, lm_eval.tasks as tasks\nfrom jaxformer.__main__ import run\n"
        "tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False)\n"
        "run(['harness', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, *arguments, f"--model_args=workdir={model.trained.workdir}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "|mine" in ended.stdout and "acc" in ended.stdout

    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    assert main([*arguments, "--model_args=workdir=nowhere"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "jaxformer: run folder nowhere: no config.json; give the folder of a run"


def test_command_without_the_harness_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "jaxformer.run.lm_eval_model", raising=False)
    for name in ("lm_eval", "lm_eval.models", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["run"]) == 2
    assert capsys.readouterr().err == (
        "jaxformer: the harness command needs lm-evaluation-harness: pip install 'jaxformer[lm-eval]'\n"
    )


EVALS = Path(__file__).parents[3] / "shared" / "data" / "evals"


@needs_harness
@pytest.mark.skipif(not EVALS.is_dir(), reason="needs the evaluation sets")
@pytest.mark.parametrize(
    ("name", "file"),
    [("hellaswag", "hellaswag_val_raw1000"), ("arc_easy", "arc_easy_test"), ("winogrande", "winogrande_xl_dev")],
)
def test_requests_of_the_real_rows_are_those_of_the_harness(name, file, tmp_path):
    """The strings of the first rows alone, which take no model; `tools/check_harness.py` compares scores too."""
    with (EVALS / f"{file}.jsonl").open(encoding="utf-8") as rows:
        (tmp_path / f"{name}.jsonl").write_text("".join(itertools.islice(rows, 300)), encoding="utf-8")
    tool, task = load_tool(), load_task(name, str(tmp_path / f"{name}.jsonl"))
    assert tool.requests_of_harness(task) == [[tuple(option) for option in item.options] for item in task.items]
    assert len(task.items) == 300
