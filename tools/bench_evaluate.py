"""Measures the scoring of tasks beside the plain forward pass of the same model, in turn.

    python tools/bench_evaluate.py --workdir=RUN --data=FOLDER [--task=NAME,...] [--parts=8] [--json=RESULT.json]

Tokens of a request are its inputs, and padding is none of them. The plain forward pass makes all logits of full rows.
"""

import argparse
import json
import logging
import os
import statistics
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np
from versions import versions

from jaxformer.evaluation.config import task_names
from jaxformer.evaluation.loglikelihood import score
from jaxformer.evaluation.task_scores import encode_task
from jaxformer.evaluation.tasks import load_task
from jaxformer.run.trained import Trained, load_trained


def plain_forward(trained: Trained):
    """Returns a function that computes the logits of full rows, and the tokens in them."""
    B, T = trained.experiment.evaluation.rows_per_batch, trained.experiment.packing.row_length
    tokens_BT = np.random.default_rng(0).integers(3, trained.tokenizer.vocabulary_size, (B, T), dtype=np.int32)
    inputs = (tokens_BT, np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1)))
    forward = jax.jit(lambda state: state.model(*inputs))
    return (lambda: forward(trained.state)), B * T


def measure(trained: Trained, requests: list, parts: int) -> dict[str, float]:
    """Returns the tokens per second of scoring and of the plain forward pass, and the median of their ratios."""
    experiment = trained.experiment
    forward, tokens_per_batch = plain_forward(trained)

    def score_part(part: list) -> float:
        started = time.perf_counter()
        score(
            trained.state,
            part,
            experiment.packing,
            rows_per_batch=experiment.evaluation.rows_per_batch,
        )
        return sum(len(request.tokens) - 1 for request in part) / (time.perf_counter() - started)

    def forward_part(batches: int) -> float:
        started = time.perf_counter()
        computing = deque()
        for _ in range(batches):
            computing.append(forward())
            if len(computing) > 2:  # As many ahead as in scoring.
                jax.block_until_ready(computing.popleft())
        jax.block_until_ready(list(computing))
        return batches * tokens_per_batch / (time.perf_counter() - started)

    score_part(requests[:1])
    forward_part(1)
    speeds = []
    for number in range(parts):
        part = requests[number::parts]
        batches = max(1, sum(len(request.tokens) for request in part) // tokens_per_batch)
        speeds.append((score_part(part), forward_part(batches)))
    return {
        "scoring_tokens_per_second": statistics.median(speed for speed, _ in speeds),
        "forward_tokens_per_second": statistics.median(speed for _, speed in speeds),
        "ratio": statistics.median(scoring / forward for scoring, forward in speeds),
    }


def main() -> None:
    """Measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--data", required=True, help="folder with a file named after each task")
    parser.add_argument("--task", default="hellaswag,arc_easy,winogrande")
    parser.add_argument("--parts", type=int, default=8, help="parts of each task, between which the two take turns")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    trained = load_trained(options.workdir)
    tasks = {}
    for name in task_names(options.task):
        started = time.perf_counter()
        data = load_task(name, options.data)
        _, encoded = encode_task(data, trained.tokenizer, trained.experiment.packing.row_length)
        prepared = time.perf_counter() - started
        tokens = sum(len(request.tokens) - 1 for request in encoded.requests)
        figures = measure(trained, encoded.requests, options.parts)
        seconds = prepared + tokens / figures["scoring_tokens_per_second"]
        tasks[name] = {"items": len(data.items), "requests": len(encoded.requests), "tokens": tokens}
        tasks[name] |= {"prepare_seconds": prepared, "seconds": seconds, **figures}
        print(
            f"{name:13} {len(encoded.requests):6,} requests, {tokens:9,} tokens: {seconds:6.1f} s; "
            f"{figures['scoring_tokens_per_second']:8,.0f} tokens/s, {figures['ratio']:.2f} x the plain forward pass"
        )
    if options.json:
        where = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "model": trained.experiment.name}
        packages = versions("jax", "flax")
        options.json.write_text(
            json.dumps({**where, "versions": packages, "tasks": tasks}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
