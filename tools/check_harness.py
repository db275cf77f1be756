"""Scores tasks by lm-evaluation-harness, with the extra `lm-eval`, and by jaxformer, and compares.

    python tools/check_harness.py --workdir=RUN --data=FOLDER [--task=NAME,...] [--exported=FOLDER]

Requests must be equal as text, log-likelihoods within 1e-3 nats, and accuracies the same, item by item. The data are
the official rows in files named after the tasks (`hellaswag.jsonl`, ...), of JSON lines or Parquet. With --exported
the harness scores what `jaxformer export` wrote of the run, by its own `hf` model, which needs torch and transformers.
"""

import argparse
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # The data are here.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from jaxformer.config import UserError
from jaxformer.evaluation.config import task_names
from jaxformer.evaluation.task_scores import TaskScores, encode_task, score_task
from jaxformer.evaluation.tasks import TASKS, TaskData, load_task
from jaxformer.run.lm_eval_model import JaxformerLM

TOLERANCE = 1e-3  # nats


def ask_harness(model: LM, data: TaskData) -> dict:
    """Returns what the harness makes of the same file: its samples by row, and its results."""
    task = {
        "include": str(_definition(data.task.equals.split()[0])),
        "task": f"{data.task.name}_from_file",
        "dataset_path": "parquet" if data.source.endswith(".parquet") else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: data.source for split in ("train", "validation", "test")}},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "task.yaml").write_text(json.dumps(task), encoding="utf-8")
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[task["task"]],
            num_fewshot=0,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=TaskManager(include_path=folder, include_defaults=False),
        )
    samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    return {"samples": samples, "results": found["results"][task["task"]]}


def requests_of_harness(data: TaskData) -> list[list[tuple[str, str]]]:
    """Returns the pairs of context and continuation of each item that the harness would ask, without a model."""
    asked = ask_harness(get_model("dummy")(), data)["samples"]
    return [[tuple(pair) for pair in sample["arguments"]] for sample in asked]


def _definition(name: str) -> Path:
    """Returns the file of one of the harness's tasks; an index of all 14,000 takes it half a minute."""
    line = re.compile(f"^task: {re.escape(name)}$", re.MULTILINE)
    files = sorted(Path(inspect.getfile(lm_eval)).with_name("tasks").rglob("*.yaml"))
    found = [path for path in files if line.search(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise UserError(f"{len(found)} files of the harness define the task {name}, not one: {found}")
    return found[0]


def open_exported(folder: Path) -> LM:
    """Returns the harness's own model of a folder for Hugging Face transformers."""
    return get_model("hf")(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)


def compare(ours: TaskScores, theirs: dict, tolerance: float = TOLERANCE) -> list[str]:
    """Returns what differs, in words, after a line with the largest difference.

    Args:
        ours: the scores.
        theirs: of `ask_harness`.
        tolerance: of log-likelihoods, nats.
    """
    data = ours.task.data
    problems, largest = [], 0.0
    if len(theirs["samples"]) != len(data.items):
        return [f"{len(data.items)} items here, {len(theirs['samples'])} in the harness"]
    rows = zip(data.items, ours.log_likelihoods, theirs["samples"], strict=True)
    for number, (item, nats, sample) in enumerate(rows):
        requests = [tuple(pair) for pair in sample["arguments"]]
        if requests != [tuple(option) for option in item.options]:
            problems.append(f"item {number}: requests differ: {requests} and {item.options}")
        else:
            difference = max(abs(float(each[0]) - value) for each, value in zip(_scores(sample), nats, strict=True))
            largest = max(largest, difference)
            if not difference <= tolerance:
                problems.append(f"item {number}: log-likelihoods differ by {difference:.2e} nats")
        for name in ("acc", "acc_norm"):
            if name in sample and float(sample[name]) != getattr(ours.items, name)[number]:
                problems.append(f"item {number}: {name} is {sample[name]} in the harness")
    estimates = ours.estimates()
    for name, value in theirs["results"].items():
        metric, _, _ = name.partition(",")
        if metric in estimates and not np.isclose(value, estimates[metric].mean, rtol=0, atol=1e-12):
            problems.append(f"{metric} is {value} in the harness, {estimates[metric].mean} here")
    accuracies = ", ".join(f"{name} {estimates[name].mean:.4%}" for name in ("acc", "acc_norm") if name in estimates)
    requests = sum(len(item.options) for item in data.items)
    print(
        f"{data.task.name}: {len(data.items):,} items, {requests:,} requests, {accuracies}; largest difference of "
        f"log-likelihoods {largest:.1e} nats; {len(problems)} problems"
    )
    return problems


def _scores(sample: dict) -> list[tuple]:
    return [tuple(each) if isinstance(each, list | tuple) else (each,) for each in sample["filtered_resps"]]


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with a file named after each task")
    parser.add_argument("--task", default="hellaswag,arc_easy,winogrande", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--exported", type=Path, help="folder of `jaxformer export`, scored in place of the run")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    problems = []
    try:
        model = JaxformerLM(options.workdir, batch_size=5)  # Other batches than below: other rounding.
        trained, config = model.trained, model.trained.experiment
        asked = open_exported(options.exported) if options.exported else model
        for name in task_names(options.task):
            data = load_task(name, str(options.data))
            ours = score_task(
                trained.state,
                encode_task(data, trained.tokenizer, config.packing.row_length),
                config.packing,
                rows_per_batch=config.evaluation.rows_per_batch,
                label=name,
            )
            problems += compare(ours, ask_harness(asked, data))
    except (UserError, OSError) as error:
        print(f"check_harness: {error}", file=sys.stderr)
        return 2
    print("\n".join(problems[:20]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
