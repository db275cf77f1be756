"""Whole runs of a tiny experiment: what a run leaves behind, and whose folder it is."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import ROWS, STEPS, T, command, read_checkpoint, read_metrics, run_until

import jaxformer.train
from jaxformer.attention.dispatch import Implementation
from jaxformer.experiment.resolution import load_experiment
from jaxformer.plan.device_fit import choose_attention
from jaxformer.record import to_dict
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


def test_second_process_in_a_run_folder_is_refused_with_the_name_of_the_first(experiment_files, tmp_path, capfd):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 3, arguments)
    code = "import sys; from jaxformer.run.folder import hold_folder; from pathlib import Path\n"
    code += "with hold_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert main(arguments) == 2
    finally:
        first.kill()
        first.communicate()
    errors = capfd.readouterr().err
    assert f"run folder {tmp_path}/run: process {first.pid} on " in errors and errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }


def test_choosing_the_attention_takes_no_batch_from_the_run(uninterrupted):
    assert read_checkpoint(uninterrupted("best_fit"))[2]["next_index"] == STEPS


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", "as the run began"), ("NVIDIA H200", "since pallas needs an NVIDIA GPU"), (None, "since pallas needs")],
)
def test_resumed_run_takes_the_attention_that_it_began_with_on_this_device(tmp_path, device, expected):
    if device:
        attention = dataclasses.asdict(Implementation("xla"))
        record = {"device": device, "attention": attention, "config": {"attention": {"implementation": "auto"}}}
        (tmp_path / "config.json").write_text(json.dumps(record))
    experiment = load_experiment("baseline", {"packing.row_length": "16", "training.rows_per_step": "2"})
    bounds = np.zeros((2, 16), np.int32)
    batch = SimpleNamespace(document_starts_BT=bounds, document_ends_BT=bounds + 16)
    choice = choose_attention(experiment, [batch], tmp_path)
    assert choice.implementation.name == "xla"
    assert expected in choice.reason


def test_finished_run_says_so_and_does_not_train(experiment_files, uninterrupted, monkeypatch, capsys):
    workdir = uninterrupted("best_fit")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    monkeypatch.setattr(jaxformer.train, "prepare_data", lambda *_: pytest.fail("data were prepared"))
    monkeypatch.setattr(jaxformer.train, "make_state", lambda *_: pytest.fail("a state was made"))
    capsys.readouterr()
    assert main(command(experiment_files["best_fit"], workdir)) == 0
    captured = capsys.readouterr()
    summary = json.loads((workdir / "summary.json").read_text())
    assert captured.out == (
        f"{workdir}: finished, 12 steps, validation {summary['validation/loss']:.4f} nats per token, "
        f"{summary['validation/bits_per_byte']:.4f} ± {summary['validation/bits_per_byte_standard_error']:.4f} "
        "bits per byte\n"
    )
    assert captured.err == ""
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_disk_that_fails_is_a_failed_training_and_no_mistake_of_the_user(
    experiment_files, tmp_path, monkeypatch, capsys
):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error", "shards/0")

    monkeypatch.setattr(jaxformer.train, "prepare_data", fail)
    assert main(command(experiment_files["best_fit"], tmp_path / "run")) == 1
    line = "jaxformer: [Errno 5] Input/output error: 'shards/0'; the same command resumes from what is saved\n"
    assert capsys.readouterr().err == line


def test_run_folder_holds_its_files_and_no_others(uninterrupted):
    workdir = uninterrupted("best_fit")
    names = {path.name for path in workdir.iterdir() if not path.name.startswith("events.out.tfevents")}
    files = {"config.json", "metrics.jsonl", "sample.txt", "samples.jsonl", "summary.json", "tokenizer.model"}
    assert names == {".lock", "checkpoints", "evaluations", "run.html", *files}
    evaluations = workdir / "evaluations" / "step_12"
    assert {path.name for path in evaluations.iterdir()} == {"validation.json", "validation.documents.jsonl"}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"8", "12"}


def test_config_file_reports_what_was_run(experiment_files, uninterrupted):
    config = json.loads((uninterrupted("best_fit") / "config.json").read_text())
    experiment = load_experiment(str(experiment_files["best_fit"]))
    keys = {"experiment", "seed", "config", "identity", "digests", "tasks", "code", "versions", "attention", "device"}
    keys |= {
        "question",
        "lineage",
        "forecast",
        "tracked_as",
        "starts",
        "cores",
        "devices",
        "git",
        "corpora",
        "environment",
    }
    assert set(config) == keys
    assert (config["experiment"], config["seed"]) == ("best_fit", 3)
    # As it was computed: with what it left open for the device.
    computed = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat="none"))
    assert config["config"] == to_dict(computed) and config["question"] == experiment.question
    assert config["lineage"]["parents"] == [] and config["lineage"]["change"] == config["lineage"]["overrides"] == {}
    assert config["identity"]["seed"] == 3 and config["identity"]["model.width"] == 16
    execution = {"training.micro_batches", "checkpoint.keep", "question", "attention.implementation"}
    assert not execution & set(config["identity"])
    assert set(config["digests"]) == {"tokenizer", "corpus.0", "plan.0"}
    (corpus,) = config["corpora"].values()
    assert (corpus["removed_documents"], corpus["contamination"]) == (0, {})
    assert {len(digest) for digest in [config["code"], *config["digests"].values()]} == {64}
    assert config["versions"]["jax"] == jax.__version__
    of_a_start = ("code", "git", "device", "devices", "cores", "versions", "environment")
    start = {"step": 0, **{name: config[name] for name in of_a_start}, "own_code": {}}
    assert config["starts"] == [start] and config["lineage"]["own_code"] == {}
    # Heads of 8 features, in rows of any number of documents, are for no other implementation on any device.
    assert config["attention"]["name"] == "xla"


def test_summary_reports_the_result(uninterrupted):
    workdir = uninterrupted("best_fit")
    summary = json.loads((workdir / "summary.json").read_text())
    losses = [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]
    validations = {line["step"]: line for line in read_metrics(workdir) if "validation/loss" in line}
    validation, best = validations[STEPS], min(validations, key=lambda step: validations[step]["validation/loss"])
    measured = ("seconds", "device_hours", "peak_memory_bytes")
    assert {name: value for name, value in summary.items() if name not in measured} == {
        "status": "finished",
        "experiment": "best_fit",
        "seed": 3,
        "steps": STEPS,
        "tokens": STEPS * ROWS * T,
        "train/loss": pytest.approx(np.mean(losses)),
        **{name: value for name, value in validation.items() if name.startswith("validation/")},
        "best_checkpoint": best,
    }
    assert summary["seconds"] > 0
    assert summary["device_hours"] == pytest.approx(summary["seconds"] / 3600 * jax.device_count())
    assert summary["peak_memory_bytes"] > 1 << 20


@pytest.mark.smoke
def test_metrics_hold_every_step_once_and_the_loss_falls(uninterrupted):
    lines = read_metrics(uninterrupted("best_fit"))
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, STEPS + 1))
    groups = ("embedding", "attention", "attention_norm", "feed_forward", "feed_forward_norm", "final_norm")
    norms = {f"train/{kind}_norm/{group}" for kind in ("parameter", "update") for group in groups}
    assert {frozenset(line) for line in training} == {
        frozenset(
            {
                "step",
                "train/loss",
                "train/gradient_norm",
                "train/learning_rate",
                "train/spike_score",
                "train/skipped_steps",
                "train/batch",
                *norms,
            }
        )
    }
    assert [line["step"] for line in lines if "validation/loss" in line] == [4, 8, 12]
    # From nearly ln 400, what a uniform guess costs.
    assert training[0]["train/loss"] == pytest.approx(np.log(400), rel=0.02)
    assert training[-1]["train/loss"] < training[0]["train/loss"] - 0.2


def test_printed_config_is_the_experiments(experiment_files, capsys):
    path = str(experiment_files["best_fit"])
    assert main([f"--experiment={path}", "--print_config", "--model.depth=3", "--packing.method=concat_and_split"]) == 0
    overrides = {"model.depth": "3", "packing.method": "concat_and_split"}
    assert json.loads(capsys.readouterr().out) == to_dict(load_experiment(path, overrides))


def test_plan_reports_size_and_cost_and_leaves_nothing(experiment_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"--experiment={experiment_files['best_fit']}", "--plan"]) == 0
    printed = capsys.readouterr().out
    # 416 x 16 of embedding; twice two norms and 12 x 16 x 16 of matrices; the last norm.
    assert f"parameters  {6656 + 2 * (32 + 3072) + 16:,}, {2 * (32 + 3072) + 16:,} without embeddings\n" in printed
    assert "128 a step, 1,536 in 12 steps" in printed
    for word in ("MFLOPs per token", "memory", "disk", "time"):
        assert word in printed
    assert list(tmp_path.iterdir()) == []


def test_run_folder_is_named_after_experiment_and_seed(monkeypatch):
    folders = []
    monkeypatch.setattr(jaxformer.train, "train", lambda _, workdir, seed, lineage: folders.append((workdir, seed)))
    assert main(["--experiment=baseline"]) == main(["--experiment=baseline", "--seed=5", "--model.depth=2"]) == 0
    assert folders[0] == (Path("runs/baseline/seed_0"), 0)
    (_, name, last), seed = folders[1][0].parts, folders[1][1]
    assert name.startswith("baseline~") and (last, seed) == ("seed_5", 5)
    assert main(["--experiment=baseline", "--name=mine", "--model.depth=2"]) == 0
    assert folders[2] == (Path("runs/mine/seed_0"), 0)


def test_checkpoints_of_another_run_are_refused_even_without_its_config_file(
    experiment_files, uninterrupted, tmp_path, capsys
):
    shutil.copytree(uninterrupted("best_fit") / "checkpoints", tmp_path / "run" / "checkpoints")
    arguments = [*command(experiment_files["best_fit"], tmp_path / "run"), "--model.width=24"]
    capsys.readouterr()
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert "belong to another configuration (model.width: 16 -> 24)" in errors and errors.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
