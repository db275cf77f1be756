"""A tiny experiment that trains in seconds, how its runs are stopped, and how two of them are compared."""

import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxformer.loop
import jaxformer.train
from jaxformer.checkpoint.train_state import open_checkpoints
from jaxformer.run.progress import TIMES, Progress
from jaxformer.train import main

STEPS, ROWS, T = 12, 4, 32
REPOSITORY = Path(jaxformer.train.__file__).parents[1]
EXPERIMENT = """
from jaxformer.experiment import (
    AttentionConfig, CheckpointConfig, CorpusConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig,
    PackingConfig, TokenizerConfig, TrainingConfig
)

EXPERIMENT = Experiment(
    question="Does a run that was stopped end as if it had not been?",
    model=ModelConfig(vocabulary_size=416, width=16, depth=2, heads=2),
    corpus={corpus},
    tokenizer=TokenizerConfig(vocabulary_size=400, processes=1),
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


def damage(step):
    """Changes the files of a checkpoint with the state beside the parameters; once more, and they are as they were.

    Every byte, since not all that TensorStore writes is read again.
    """
    for path in (step / "rest").rglob("d/*"):
        path.write_bytes(bytes(byte ^ 16 for byte in path.read_bytes()))


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
    for name in ("sample.txt", "samples.jsonl"):
        assert (workdir / name).read_text() == (expected / name).read_text(), name
