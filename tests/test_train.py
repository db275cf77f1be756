"""Whole runs of a tiny experiment: a resumed run is the uninterrupted one, and what a run leaves behind."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxformer.loop
import jaxformer.train
from jaxformer.attention import Implementation
from jaxformer.checkpoint import open_checkpoints
from jaxformer.config import to_dict
from jaxformer.experiment import load_experiment
from jaxformer.progress import Progress
from jaxformer.train import choose_attention, main

STEPS, ROWS, T = 12, 4, 32
REPOSITORY = Path(jaxformer.train.__file__).parents[1]
EXPERIMENT = """
from jaxformer.attention import AttentionConfig
from jaxformer.checkpoint import CheckpointConfig
from jaxformer.corpus import CorpusConfig
from jaxformer.evaluate import EvaluationConfig
from jaxformer.experiment import Experiment
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.packing import PackingConfig
from jaxformer.step import TrainingConfig
from jaxformer.tokenizer import TokenizerConfig

EXPERIMENT = Experiment(
    question="Does a run that was stopped end as if it had not been?",
    model=ModelConfig(vocabulary_size=400, width=16, depth=2, heads=2),
    corpus={corpus},
    tokenizer=TokenizerConfig(vocabulary_size=400, threads=1),
    packing=PackingConfig(row_length=32, method={method!r}, minimum_fill=0.5),
    attention=AttentionConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    training=TrainingConfig(steps=12, rows_per_step=4, micro_batches={micro_batches}, log_every_steps=1),
    checkpoint=CheckpointConfig(every_steps=4, keep=2),
    evaluation=EvaluationConfig(every_steps=4, validation_bytes=200, rows_per_batch=2, sample_tokens=5),
)
"""
VARIANTS = {
    "best_fit": {"method": "best_fit", "micro_batches": 1},
    "concat_and_split": {"method": "concat_and_split", "micro_batches": 1},
    "mixture_in_micro_batches": {"method": "best_fit", "micro_batches": 2},
}
# Of the metrics, those that tell how fast the machine was.
TIMES = ("train/tokens_per_second", "train/tflops")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Keeps compiled programs for the module: every run compiles the same few."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield options["jax_compilation_cache_dir"]
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def experiment_files(tmp_path_factory, make_texts):
    """The experiment file of each variant, beside the two corpora."""
    folder = tmp_path_factory.mktemp("experiments")
    corpora = []
    for seed, number in enumerate((300, 90)):
        path = folder / f"corpus_{seed}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(number, seed)))
        corpora.append(f"CorpusConfig(kind='jsonl', path={str(path)!r}, validation_share=0.1, weight={1 + 2 * seed})")
    mixture = f"CorpusConfig(kind='mixture', parts=({corpora[0]}, {corpora[1]}))"
    for name, fields in VARIANTS.items():
        corpus = mixture if name.startswith("mixture") else corpora[0]
        (folder / f"{name}.py").write_text(EXPERIMENT.format(corpus=corpus, **fields))
    return {name: folder / f"{name}.py" for name in VARIANTS}


@pytest.fixture(scope="module")
def uninterrupted(experiment_files, tmp_path_factory):
    """A function from a variant to the folder of its run, which nothing stopped."""
    folders = {}

    def run(variant):
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("uninterrupted") / variant
            assert main(command(experiment_files[variant], folders[variant])) == 0
        return folders[variant]

    return run


def command(experiment_file, workdir):
    return [f"--experiment={experiment_file}", f"--workdir={workdir}", "--seed=3"]


class Stopped(BaseException):
    """Raised in place of an interruption."""


def run_until(place, step, arguments):
    """Runs the command until it enters a place of the loop at a step, where it is stopped."""
    checkpoints, add, validate = [], Progress.add, jaxformer.loop.validate

    def open_and_remember(*arguments):
        checkpoints.append(open_checkpoints(*arguments))
        return checkpoints[-1]

    def stopping_add(self, at, metrics):
        if (place, step) == ("step", at):
            raise Stopped
        add(self, at, metrics)

    def stopping_validate(state, *arguments, **options):
        if (place, step) == ("validation", int(state.step)):
            raise Stopped
        return validate(state, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "add", stopping_add)
        patch.setattr(jaxformer.loop, "validate", stopping_validate)
        patch.setattr(jaxformer.train, "open_checkpoints", open_and_remember)
        with pytest.raises(Stopped):
            main(arguments)
        # Unlike in a process that ends, a save that is under way would go on beside the next run.
        checkpoints[0].close()


def read_metrics(workdir):
    """Returns the lines of `metrics.jsonl` without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def read_checkpoint(workdir):
    """Returns parameters, the rest of the state and the data state of the last step."""
    items = {
        "params": ocp.args.StandardRestore(),
        "rest": ocp.args.StandardRestore(),
        "record": ocp.args.JsonRestore(),
    }
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        restored = checkpoints.restore(STEPS, items)
    return restored["params"], restored["rest"], restored["record"]["data"]


def assert_same_run(workdir, expected):
    """Parameters, optimizer, guard and data state bit by bit, every line of the metrics, and the results."""
    (params, rest, data), (other_params, other_rest, other_data) = map(read_checkpoint, (workdir, expected))
    assert params.keys() == other_params.keys() and rest.keys() == other_rest.keys()
    for name in params:
        np.testing.assert_array_equal(params[name], other_params[name], err_msg=name)
    for name in rest:
        np.testing.assert_array_equal(rest[name], other_rest[name], err_msg=name)
    assert data == other_data
    assert read_metrics(workdir) == read_metrics(expected)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (workdir, expected)]
    for name in ("status", "steps", "tokens", "train/loss", "validation/loss", "validation/bits_per_byte"):
        assert summaries[0][name] == summaries[1][name], name
    assert (workdir / "sample.txt").read_text() == (expected / "sample.txt").read_text()


# Checkpoints are saved after steps 4, 8 and 12, each before the validation of the step.
@pytest.mark.parametrize(
    ("variant", "stops"),
    [
        ("best_fit", [("step", 2), ("step", 7)]),
        ("best_fit", [("validation", 8)]),
        ("best_fit", [("validation", 12)]),
        ("concat_and_split", [("step", 10)]),
        ("mixture_in_micro_batches", [("step", 7)]),
    ],
    ids=["twice", "before_a_validation", "before_the_last_validation", "concat_and_split", "mixture_in_micro_batches"],
)
def test_resumed_run_equals_the_uninterrupted_one(variant, stops, experiment_files, uninterrupted, tmp_path):
    arguments = command(experiment_files[variant], tmp_path / "run")
    for place, step in stops:
        run_until(place, step, arguments)
    assert main(arguments) == 0
    assert_same_run(tmp_path / "run", uninterrupted(variant))


# Runs the command with something happening at step 6, when the checkpoint of step 4 may be written in the background.
ACCIDENT = """
import math, os, signal, sys, time, jaxformer.loop, jaxformer.train
from jaxformer.progress import Progress

def kill(self, step, metrics):
    os.kill(os.getpid(), signal.SIGKILL)

def interrupt(self, step, metrics):
    os.kill(os.getpid(), signal.SIGINT)
    add(self, step, metrics)

def terminate(self, step, metrics):
    os.kill(os.getpid(), signal.SIGTERM)
    add(self, step, metrics)

def terminate_twice(self, step, metrics):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def terminate_in_validation(self, step, metrics):
    def validate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    jaxformer.loop.validate = validate
    add(self, step, metrics)

def fail_in_validation(self, step, metrics):
    def validate(state, *arguments):
        if int(state.step) == 8:
            raise RuntimeError("a shard\\nis gone")
        return validate_before(state, *arguments)

    validate_before, jaxformer.loop.validate = jaxformer.loop.validate, validate
    add(self, step, metrics)

def fail_in_every_validation(self, step, metrics):
    def validate(*arguments):
        raise MemoryError

    jaxformer.loop.validate = validate
    add(self, step, metrics)

add, accident = Progress.add, globals()[sys.argv[1]]
Progress.add = lambda self, step, metrics: (accident if step == 6 else add)(self, step, metrics)
sys.exit(jaxformer.train.main(sys.argv[2:]))
"""


@pytest.fixture
def run_into(compiled):
    """A function from an accident and arguments to the process that had it."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }

    def run(accident, arguments):
        command = [sys.executable, "-W", "ignore", "-c", ACCIDENT, accident, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


# The status, what stands on standard error, and the step that the same command resumes from.
SAVING = "\njaxformer: {0}: saving after this step; a second signal stops at once\njaxformer: stopped by {0}; "
ACCIDENTS = {
    "kill": (-signal.SIGKILL, "", 4),
    "interrupt": (130, SAVING.format("SIGINT") + "step 6 is saved, and the same command goes on from there\n", 6),
    "terminate": (143, SAVING.format("SIGTERM") + "step 6 is saved, and the same command goes on from there\n", 6),
    "terminate_twice": (-signal.SIGTERM, SAVING.format("SIGTERM").split("jaxformer: stopped")[0], 4),
    "terminate_in_validation": (
        143,
        "jaxformer: stopped by SIGTERM; the same command goes on from what is saved\n",
        8,
    ),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_run_that_was_stopped_says_so_and_resumed_equals_the_uninterrupted_one(
    accident, run_into, experiment_files, uninterrupted, tmp_path, capsys
):
    status, errors, step = ACCIDENTS[accident]
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into(accident, arguments)
    assert (ended.returncode, ended.stderr) == (status, errors)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(arguments) == 0
    # The checkpoint of step 4 may not have been whole when the process died.
    printed = capsys.readouterr().out
    assert f"resumed from step {step}\n" in printed or (status < 0 and "resumed" not in printed)
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))


def test_validation_that_fails_is_told_and_the_run_goes_on(run_into, experiment_files, uninterrupted, tmp_path):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into("fail_in_validation", arguments)
    assert ended.returncode == 0
    assert ended.stderr == (
        "jaxformer: validation at step 8 failed (RuntimeError: a shard is gone); while its checkpoint is kept, "
        f"`python tools/evaluate.py --workdir={tmp_path}/run --step=8` does it later\n"
    )
    expected = [
        line for line in read_metrics(uninterrupted("best_fit")) if line["step"] != 8 or "validation/loss" not in line
    ]
    assert read_metrics(tmp_path / "run") == expected


def test_run_whose_last_validation_fails_is_finished_by_the_same_command(
    run_into, experiment_files, uninterrupted, tmp_path
):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    ended = run_into("fail_in_every_validation", arguments)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "jaxformer: all 12 steps are trained and saved; the same command validates and finishes"
    )
    assert len(ended.stderr.splitlines()) == 3
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(arguments) == 0
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", uninterrupted("best_fit"))
    ]
    assert summaries[0]["validation/loss"] == summaries[1]["validation/loss"]


def test_damaged_newest_checkpoint_is_told_and_the_run_ends_as_the_uninterrupted_one(
    experiment_files, uninterrupted, tmp_path, capsys
):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 10, arguments)
    folder = tmp_path / "run" / "checkpoints"
    path = max((folder / "8" / "rest").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    capsys.readouterr()
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxformer: checkpoint 8 in {folder} is damaged (")
    assert captured.err.count("\n") == 1
    assert "resumed from step 4\n" in captured.out
    assert_same_run(tmp_path / "run", uninterrupted("best_fit"))
    shutil.rmtree(folder / "8.damaged")
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]


def poison(monkeypatch, steps):
    """Makes the batches of these steps, from 1, end in a loss that is not a number."""
    make = jaxformer.train.make_batches

    class Poisoned:
        def __init__(self, batches):
            self._batches = batches

        def __next__(self):
            batch = next(self._batches)
            bad = self._batches.get_state()["next_index"] in steps
            return batch._replace(loss_weights_BT=batch.loss_weights_BT * np.float32(np.nan if bad else 1))

        def __getattr__(self, name):
            return getattr(self._batches, name)

    monkeypatch.setattr(jaxformer.train, "make_batches", lambda *args, **options: Poisoned(make(*args, **options)))


def test_steps_that_are_not_finite_are_counted_and_the_run_goes_on(experiment_files, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {3, 7, 8})
    assert main(command(experiment_files["best_fit"], tmp_path / "run")) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["step"] for line in lines if line["train/loss"] == "nan"] == [3, 7, 8]
    assert [line["train/skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    # The schedule waits with the optimizer state.
    rates = [line["train/learning_rate"] for line in lines]
    assert rates[2] == rates[3] and rates[6] == rates[7] == rates[8]
    assert "step 12/12  loss " in (printed := capsys.readouterr().out) and "  3 skipped  " in printed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_run_that_is_not_finite_for_long_ends_with_a_file_that_replays_it(
    experiment_files, tmp_path, monkeypatch, capfd
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, range(3, 13))
        assert main(command(experiment_files["best_fit"], workdir)) == 1
    path = workdir / "faults" / "step_3.npz"
    errors = capfd.readouterr().err
    assert errors == (
        "jaxformer: 8 steps in a row had a loss or a gradient that is not finite; the first is step 3, with loss nan "
        f"and gradient norm nan; `python tools/replay_step.py {path}` replays it\n"
    )
    assert not (workdir / "summary.json").exists()
    replayed = subprocess.run(
        [sys.executable, "tools/replay_step.py", str(path)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert "the same, bit by bit, as when it failed" in replayed.stdout
    assert "blocks.qkv" in replayed.stdout
    # What was right about the run goes on, with nothing of the steps that failed.
    assert main(command(experiment_files["best_fit"], workdir)) == 0
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines if line["train/loss"] == "nan"] == list(range(3, 11))


def test_second_process_in_a_run_folder_is_refused_with_the_name_of_the_first(experiment_files, tmp_path, capfd):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 3, arguments)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = "import sys; from jaxformer.run_folder import hold_folder; from pathlib import Path\n"
    code += "with hold_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
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
    ("written", "autotune", "expected"),
    [
        ({"config": {"attention": {"autotune": True}}, "device": "cpu"}, False, "as timed when the run began"),
        ({"config": {"attention": {"autotune": True}}, "device": "cpu"}, True, "as timed when the run began"),
        ({"config": {"attention": {"autotune": True}}, "device": "NVIDIA H200"}, True, "the fastest of xla"),
        ({"config": {"attention": {"autotune": False}}, "device": "cpu"}, True, "the fastest of xla"),
        (None, True, "the fastest of xla"),
        (None, False, "since pallas needs an NVIDIA GPU"),
    ],
)
def test_resumed_run_takes_the_attention_that_was_timed_on_this_device(tmp_path, written, autotune, expected):
    if written:
        record = {**written, "attention": dataclasses.asdict(Implementation("xla"))}
        (tmp_path / "config.json").write_text(json.dumps(record))
    experiment = load_experiment(
        "baseline",
        {"packing.row_length": "16", "training.rows_per_step": "2", "attention.autotune": str(autotune)},
    )
    bounds = np.zeros((2, 16), np.int32)
    batch = SimpleNamespace(document_starts_BT=bounds, document_ends_BT=bounds + 16)
    choice = choose_attention(experiment, batch, tmp_path)
    assert choice.implementation.name == "xla"
    assert expected in choice.reason


def test_resumed_run_says_where_it_resumes(experiment_files, tmp_path, capsys):
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 6, arguments)
    assert "resumed from" not in capsys.readouterr().out
    run_until("step", 7, arguments)
    assert "resumed from step 4\n" in capsys.readouterr().out


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
        f"{summary['validation/bits_per_byte']:.4f} bits per byte\n"
    )
    assert captured.err == ""
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_run_folder_holds_its_files_and_no_others(uninterrupted):
    workdir = uninterrupted("best_fit")
    names = {path.name for path in workdir.iterdir() if not path.name.startswith("events.out.tfevents")}
    assert names == {".lock", "checkpoints", "config.json", "metrics.jsonl", "sample.txt", "summary.json"}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"8", "12"}


def test_config_file_tells_what_was_run(experiment_files, uninterrupted):
    config = json.loads((uninterrupted("best_fit") / "config.json").read_text())
    experiment = load_experiment(str(experiment_files["best_fit"]))
    keys = {"experiment", "seed", "config", "identity", "digests", "code", "versions", "attention", "device"}
    assert set(config) == keys
    assert (config["experiment"], config["seed"]) == ("best_fit", 3)
    assert config["config"] == to_dict(experiment)
    assert config["identity"]["seed"] == 3 and config["identity"]["model.width"] == 16
    execution = {"training.micro_batches", "checkpoint.keep", "question", "attention.implementation"}
    assert not execution & set(config["identity"])
    assert set(config["digests"]) == {"tokenizer", "corpus.0", "plan.0"}
    assert {len(digest) for digest in [config["code"], *config["digests"].values()]} == {64}
    assert config["versions"]["jax"] == jax.__version__
    # Heads of 8 features, in rows of any number of documents, are for no other implementation on any device.
    assert config["attention"]["name"] == "xla"


def test_summary_tells_the_result(uninterrupted):
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
        "validation/loss": validation["validation/loss"],
        "validation/bits_per_byte": validation["validation/bits_per_byte"],
        "best_checkpoint": best,
    }
    assert summary["seconds"] > 0
    assert summary["device_hours"] == pytest.approx(summary["seconds"] / 3600 * jax.device_count())
    assert summary["peak_memory_bytes"] > 1 << 20


def test_metrics_hold_every_step_once_and_the_loss_falls(uninterrupted):
    lines = read_metrics(uninterrupted("best_fit"))
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, STEPS + 1))
    assert {frozenset(line) for line in training} == {
        frozenset(
            {
                "step",
                "train/loss",
                "train/gradient_norm",
                "train/learning_rate",
                "train/spike_score",
                "train/skipped_steps",
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


def test_plan_tells_size_and_cost_and_leaves_nothing(experiment_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"--experiment={experiment_files['best_fit']}", "--plan"]) == 0
    printed = capsys.readouterr().out
    # 400 x 16 of embedding; twice two norms and 12 x 16 x 16 of matrices; the last norm.
    assert f"parameters  {6400 + 2 * (32 + 3072) + 16:,}, {2 * (32 + 3072) + 16:,} without embeddings\n" in printed
    assert "128 a step, 1,536 in 12 steps" in printed
    for word in ("MFLOPs per token", "memory", "disk", "time"):
        assert word in printed
    assert list(tmp_path.iterdir()) == []


def test_run_folder_is_named_after_experiment_and_seed(monkeypatch):
    folders = []
    monkeypatch.setattr(jaxformer.train, "train", lambda _, workdir, seed: folders.append((workdir, seed)))
    assert main(["--experiment=baseline"]) == main(["--experiment=baseline", "--seed=5", "--model.depth=2"]) == 0
    assert folders[0] == (Path("runs/baseline/seed_0"), 0)
    (_, name, last), seed = folders[1][0].parts, folders[1][1]
    assert name.startswith("baseline~") and (last, seed) == ("seed_5", 5)


def test_checkpoints_of_another_run_are_refused_even_without_its_config_file(experiment_files, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted("best_fit") / "checkpoints", tmp_path / "run" / "checkpoints")
    arguments = [*command(experiment_files["best_fit"], tmp_path / "run"), "--model.width=24"]
    ended = subprocess.run([sys.executable, "-m", "jaxformer.train", *arguments], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "belong to another configuration (model.width: 16 -> 24)" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
