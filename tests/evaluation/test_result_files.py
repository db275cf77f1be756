"""Tasks and validation in a run and by `jaxformer evaluate`: what is printed, what is written, and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import REPOSITORY, command, read_metrics

import jaxformer.loop
from jaxformer.commands.evaluate import main as evaluate_command
from jaxformer.config import TrainingFailure
from jaxformer.run.identity import evaluation_code_digest
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


@pytest.fixture(scope="module")
def task_data(tmp_path_factory, make_texts):
    """A folder with 30 questions of ARC's kind and 20 of WinoGrande's, short enough for the tiny experiment's rows."""
    folder = tmp_path_factory.mktemp("tasks")
    words = sorted({word for text in make_texts(50) for word in text.split()[1:] if len(word) <= 4})
    rng = np.random.default_rng(0)
    with (folder / "arc_easy.jsonl").open("w") as file:
        for number in range(30):
            texts = rng.choice(words, 4, replace=False).tolist()
            row = {
                "id": str(number),
                "question": rng.choice(words),
                "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[rng.integers(4)],
            }
            file.write(json.dumps(row) + "\n")
    with (folder / "winogrande.jsonl").open("w") as file:
        for _ in range(20):
            first, second, verb = rng.choice(words, 3, replace=False).tolist()
            row = {"sentence": f"{verb} _ {verb}.", "option1": first, "option2": second, "answer": "2"}
            file.write(json.dumps(row) + "\n")
    return folder


def with_tasks(experiment_file, workdir, task_data, *more):
    options = (f"--evaluation.task_data={task_data}", "--evaluation.tasks=arc_easy,winogrande")
    return [*command(experiment_file, workdir), *options, "--evaluation.task_items=20", *more]


@pytest.fixture(scope="module")
def scored(experiment_files, tmp_path_factory, task_data, compiled):
    """The folder of a run that scored its tasks."""
    workdir = tmp_path_factory.mktemp("scored") / "run"
    assert main(with_tasks(experiment_files["best_fit"], workdir, task_data)) == 0
    return workdir


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def read_lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_fixed_choice_is_scored_at_every_evaluation_and_all_at_the_end(scored):
    by_step = {}
    for line in read_metrics(scored):
        by_step.setdefault(line["step"], {}).update(line)
    choice, whole = "arc_easy_20/acc_standard_error", "arc_easy/margin"
    assert [step for step in by_step if choice in by_step[step]] == [4, 8, 12]
    assert [step for step in by_step if whole in by_step[step]] == [12]
    # All twenty of WinoGrande are scored each time, and need no name of their own.
    assert [step for step in by_step if "winogrande/acc" in by_step[step]] == [4, 8, 12]
    assert not any("acc_norm" in name for name in by_step[12] if name.startswith("winogrande"))
    summary = read(scored / "summary.json")
    assert summary["arc_easy/acc"] == by_step[12]["arc_easy/acc"]
    assert summary["arc_easy_20/acc"] == by_step[12]["arc_easy_20/acc"]


def test_files_hold_each_item_and_the_means_are_theirs(scored, task_data):
    folder = scored / "evaluations" / "step_12"
    record, items = read(folder / "arc_easy.json"), read_lines(folder / "arc_easy.items.jsonl")
    assert [item["item"] for item in items] == list(range(30))
    rows = read_lines(task_data / "arc_easy.jsonl")
    for item, row in zip(items, rows, strict=True):
        nats, texts = np.array(item["log_likelihoods"]), row["choices"]["text"]
        gold = "ABCD".index(row["answerKey"])
        assert item["gold"] == gold and (nats < 0).all()
        per_character = nats / [len(text) for text in texts]
        assert item["acc"] == (nats.argmax() == gold) and item["acc_norm"] == (per_character.argmax() == gold)
        assert item["gold_bits_per_byte"] == pytest.approx(-nats[gold] / math.log(2) / len(texts[gold]))
        assert item["margin"] == pytest.approx(per_character[gold] - np.delete(per_character, gold).max())
    for name in ("acc", "acc_norm", "gold_bits_per_byte", "margin"):
        values = [item[name] for item in items]
        assert record[name] == pytest.approx(np.mean(values))
        assert record[f"{name}_standard_error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(30))
    config = read(scored / "config.json")
    assert (record["task"], record["version"], record["step"], record["items"]) == ("arc_easy", 1, 12, 30)
    assert record["equals"] == "lm-evaluation-harness arc_easy 1.0, 0-shot" and record["chance"] == 0.25
    assert (record["tokenizer"], record["code"]) == (config["digests"]["tokenizer"], evaluation_code_digest())
    assert record["data"]["source"] == str(task_data / "arc_easy.jsonl")
    assert {len(record["items_digest"]), len(record["data"]["digest"]), len(record["items_file_digest"])} == {64}


def test_validation_is_kept_document_by_document(scored):
    folder = scored / "evaluations" / "step_12"
    record, documents = read(folder / "validation.json"), read_lines(folder / "validation.documents.jsonl")
    assert len({(one["corpus"], one["document"]) for one in documents}) == len(documents) > 2
    nats, targets, text_bytes = (sum(one[name] for one in documents) for name in ("nats", "targets", "text_bytes"))
    assert record["validation/loss"] == pytest.approx(nats / targets)
    assert record["validation/bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes)
    summary = read(scored / "summary.json")
    assert {name: value for name, value in summary.items() if name in record} == {
        name: record[name] for name in summary if name in record
    }


def test_each_corpus_of_a_mixture_is_validated_apart(uninterrupted):
    last = [line for line in read_metrics(uninterrupted("mixture_in_micro_batches")) if "validation/loss" in line][-1]
    assert {name.rpartition("/")[0] for name in last if name != "step"} == {
        "validation", "validation/corpus_0", "validation/corpus_1"
    }  # fmt: skip
    parts = [last[f"validation/corpus_{i}/loss"] for i in range(2)]
    assert min(parts) < last["validation/loss"] < max(parts)


def test_scoring_learns_nothing(scored, uninterrupted):
    ours, theirs = (read(folder / "summary.json") for folder in (scored, uninterrupted("best_fit")))
    assert ours["train/loss"] == theirs["train/loss"] and ours["validation/loss"] == theirs["validation/loss"]
    assert ours["experiment"] == theirs["experiment"]


def test_run_that_was_stopped_ends_with_the_same_scores(scored, experiment_files, tmp_path, task_data, monkeypatch):
    arguments = with_tasks(experiment_files["best_fit"], tmp_path / "run", task_data)
    save, steps = jaxformer.loop.save, []

    def save_twice_then_stop(*given):
        steps.append(save(*given))
        if len(steps) == 2:
            raise KeyboardInterrupt
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(jaxformer.loop, "save", save_twice_then_stop)
        assert main(arguments) == 130
    assert main(arguments) == 0

    def scores(folder):
        return [{n: v for n, v in line.items() if not n.startswith("train/")} for line in read_metrics(folder)]

    assert scores(tmp_path / "run") == scores(scored)
    for name in ("arc_easy.items.jsonl", "winogrande.json", "validation.documents.jsonl"):
        path = "evaluations/step_12/" + name
        assert (tmp_path / "run" / path).read_bytes() == (scored / path).read_bytes()


def test_scoring_that_fails_is_reported_and_the_same_command_does_it(
    experiment_files, tmp_path, task_data, monkeypatch, capfd
):
    arguments = with_tasks(experiment_files["best_fit"], tmp_path / "run", task_data)

    def fail(*_, **__):
        raise TrainingFailure("the numbers are gone")

    with monkeypatch.context() as patch:
        patch.setattr(jaxformer.loop, "score_task", fail)
        assert main(arguments) == 1
    errors = capfd.readouterr().err.splitlines()
    assert [line.partition(" failed (")[0] for line in errors[:6]] == [
        f"jaxformer: {task} at step {step}" for step in (4, 8, 12) for task in ("arc_easy", "winogrande")
    ]
    assert f"repeat with `jaxformer evaluate --workdir={tmp_path}/run --step=4`" in errors[0]
    assert errors[6] == "jaxformer: all 12 steps are trained and saved; the same command evaluates and finishes"
    assert main(arguments) == 0
    assert "arc_easy/acc" in read(tmp_path / "run" / "summary.json")


def test_task_data_are_refused_before_anything_is_written(experiment_files, tmp_path, task_data, capfd):
    shutil.copytree(task_data, tmp_path / "tasks")
    with (tmp_path / "tasks" / "winogrande.jsonl").open("a") as file:
        file.write('{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}\n')
    arguments = with_tasks(experiment_files["best_fit"], tmp_path / "run", tmp_path / "tasks")
    assert main(arguments) == 2
    assert capfd.readouterr().err == (
        f"jaxformer: winogrande data {tmp_path}/tasks/winogrande.jsonl, line 21: field 'sentence' has no blank '_': "
        "'no blank'\n"
    )
    (tmp_path / "tasks" / "winogrande.jsonl").unlink()
    assert main(arguments) == 2
    assert "the folder holds no winogrande.jsonl or winogrande.parquet" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_scores_on_changed_data_are_not_taken_for_the_same(scored, experiment_files, tmp_path, task_data, capfd):
    shutil.copytree(task_data, tmp_path / "tasks")
    shutil.copytree(scored, tmp_path / "run")
    arguments = with_tasks(experiment_files["best_fit"], tmp_path / "run", tmp_path / "tasks")
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "tasks" / "arc_easy.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[::-1]))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capfd.readouterr()
    assert main(arguments) == 2
    assert "the data of arc_easy have changed since it was begun, or your code" in capfd.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    # To have gone on without the task makes it no other.
    assert main([*arguments, "--evaluation.tasks=winogrande"]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    assert main(arguments) == 2
    kept = (tmp_path / "run" / "evaluations" / "step_12" / "arc_easy.json").read_bytes()
    status, _, error = evaluate(capfd, "--workdir", tmp_path / "run", "--task=arc_easy", "--data", tmp_path / "tasks")
    assert status == 2 and "arc_easy.json: it has the scores of other items (" in error
    assert (tmp_path / "run" / "evaluations" / "step_12" / "arc_easy.json").read_bytes() == kept


def test_finished_run_says_which_tasks_it_has_no_scores_of(experiment_files, uninterrupted, task_data, capfd):
    workdir = uninterrupted("best_fit")
    assert main(with_tasks(experiment_files["best_fit"], workdir, task_data)) == 0
    assert capfd.readouterr().err == (
        "jaxformer: it has no scores of arc_easy,winogrande; get them by `jaxformer evaluate --workdir="
        f"{workdir} --task=arc_easy,winogrande --data={task_data}`\n"
    )


def evaluate(capfd, *arguments):
    """Returns the exit status of the command, what it printed and its errors."""
    capfd.readouterr()
    return (evaluate_command([str(each) for each in arguments]), *capfd.readouterr())


def test_command_repeats_what_the_run_found(scored, compiled, tmp_path):
    shutil.copytree(scored, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluations")
    ended = subprocess.run(
        [sys.executable, "-m", "jaxformer", "evaluate", f"--workdir={tmp_path}/run"],
        capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | compiled,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    for name in ("arc_easy.items.jsonl", "winogrande.items.jsonl", "validation.documents.jsonl", "validation.json"):
        path = "evaluations/step_12/" + name
        assert (tmp_path / "run" / path).read_bytes() == (scored / path).read_bytes(), name
    assert "arc_easy    30 of 2,376" in ended.stdout and "± one standard error" in ended.stdout


def test_command_needs_the_run_folder_alone_to_score_another_task(scored, tmp_path, monkeypatch, task_data, capfd):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "empty"))
    shutil.copytree(scored, tmp_path / "run")
    options = ("--step=8", "--task=winogrande", f"--data={task_data}", "--limit=5")
    status, _, error = evaluate(capfd, f"--workdir={tmp_path}/run", *options)
    assert (status, error) == (0, "")
    record = read(tmp_path / "run" / "evaluations" / "step_8" / "winogrande_5.json")
    assert (record["items"], record["step"], record["data"]["items"]) == (5, 8, 20)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step=5"], "no checkpoint of step 5"),
        (["--task=arc_easy", "--limit=0"], "--limit (0) must be positive"),
        (["--task=helaswag", "--data=."], "did you mean hellaswag"),
        (["--task=hellaswag", "--data=."], "the folder holds no hellaswag.jsonl"),
        (["--task=hellaswag", "--data=missing"], "no such file or folder"),
        (["--data=README.md", "--task=arc_easy"], "unknown kind"),
        (["--data=README.md"], "one file for 2 tasks (arc_easy, winogrande); give a folder, or a task"),
        (["--data=.", "--task=,"], "--task names no task"),
    ],
)
def test_command_refuses_in_one_line(scored, arguments, message, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    status, printed, error = evaluate(capfd, "--workdir", scored, *arguments)
    assert (status, printed) == (2, "")
    assert message in error and error.startswith("jaxformer: ") and error.count("\n") == 1
