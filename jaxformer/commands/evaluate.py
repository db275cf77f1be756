"""Evaluates a checkpoint on validation data and tasks.

Without --task and --data it validates the checkpoint and scores the tasks that the run's configuration names. With
them it only scores tasks, and needs nothing but the run folder. The results are written to RUN/evaluations/step_N. GPU
memory is not preallocated, so that a run can be evaluated while it trains.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

from jaxformer.config import require
from jaxformer.devices.device import keep_compiled, out_of_memory_reported
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.config import EvaluationConfig, task_names
from jaxformer.evaluation.result_files import (
    check_results,
    describe_scores,
    describe_validation,
    score_table,
    write_scores,
    write_validation,
)
from jaxformer.evaluation.task_scores import EncodedTask, encode_task, load_tasks, score_task
from jaxformer.evaluation.tasks import TASKS, Task, own_tasks
from jaxformer.evaluation.validation import validate, validation_scalars
from jaxformer.experiment.command_line import add_code_option
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line, print_notice
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.record import PartOfARecord, check_same
from jaxformer.run.folder import evaluations_folder, load_run
from jaxformer.run.identity import identify_evaluation
from jaxformer.run.init_from import with_tokenizer
from jaxformer.run.inputs import digests, prepare_data
from jaxformer.run.trained import Trained, load_trained


def validate_run(trained: Trained, config: EvaluationConfig) -> None:
    """Validates on the run's own corpus, and writes and prints the result."""
    experiment = trained.experiment
    if experiment.init_from:  # The weights that it started from may be gone.
        experiment = with_tokenizer(experiment, trained.workdir)
    data = prepare_data(experiment, trained.record["seed"])
    check_same(f"run folder {trained.workdir} belongs", digests(data), trained.record["digests"])
    losses = validate(trained.state, data.validation, config)
    path = write_validation(evaluations_folder(trained.workdir, trained.step), losses, identify(trained))
    scalars = validation_scalars(losses)
    print_line(f"step {trained.step}: {describe_validation(scalars)}; written to {path}")
    if len(losses) > 1:
        for one in losses:
            print_line(f"  {one.name}: {describe_validation(validation_scalars([one]))}")


def score_tasks(trained: Trained, tasks: Sequence[EncodedTask], rows_per_batch: int, limit: int | None) -> None:
    """Scores tasks, and writes and prints the results, each as soon as it is there."""
    folder = evaluations_folder(trained.workdir, trained.step)
    parts, started = [], time.perf_counter()
    for task in tasks:
        scores = score_task(
            trained.state,
            task,
            trained.experiment.packing,
            rows_per_batch=rows_per_batch,
            items=limit,
            label=task.data.task.name,
        )
        path = write_scores(folder, scores, identify(trained))
        print_line(f"step {trained.step}: {describe_scores(scores)}; written to {path}")
        parts.append(scores)
    requests = sum(len(nats) for scores in parts for nats in scores.log_likelihoods)
    print_line(
        f"{requests:,} requests in {time.perf_counter() - started:.1f} s\n\n{score_table(parts, output_columns())}"
    )


def _named(text: str | None, config: EvaluationConfig) -> tuple[str | Task, ...] | None:
    """Returns the tasks that a text names: the run's own, those of a given file, or jaxformer's."""
    if text is None:
        return None
    of_run = [task for task in config.tasks if isinstance(task, Task)]
    of_code = [task for task in of_run if type(task) is not PartOfARecord]
    own = {name: task for task in (*of_run, *own_tasks(), *of_code) for name in task_names([task])}
    return tuple(own.get(name, name) for name in task_names(text))


def identify(trained: Trained) -> dict:
    """Returns what the results depend on beside their data."""
    return identify_evaluation(trained.experiment, trained.record["seed"], trained.step, trained.tokenizer)


@command
@fixed_options()
def main(arguments: list[str]) -> int:
    """Evaluates a checkpoint; returns the exit status."""
    parser = Parser("jaxformer evaluate", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--workdir", type=local_path, required=True, metavar="RUN", help="run folder")
    add_code_option(parser)
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    tasks = ", ".join(TASKS)
    add("--task", metavar="NAME,...", help=f"tasks, separated by commas: {tasks} (default: the run's)")
    add(
        "--data",
        metavar="PATH",
        help="where the tasks' data are: a folder with a file named after each task (hellaswag.jsonl, "
        "arc_easy.parquet, ...), the file of a single task, or 'tfds' for what TensorFlow Datasets has prepared "
        "(default: the run's)",
    )
    add("--limit", type=int, metavar="N", help="score only N items of each task, always the same (default: all)")
    options = parser.parse_args(arguments)
    keep_compiled()
    require(options.limit is None or options.limit > 0, f"--limit ({options.limit}) must be positive")
    with out_of_memory_reported():
        config = load_run(options.workdir)[0].evaluation
        given = {"tasks": _named(options.task, config), "task_data": options.data}
        given = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(config, **given)
        has_tasks = bool(config.task_data and task_names(config.tasks))
        require(bool(config.task_data) or not given, "--task needs --data: where its data are")
        require(has_tasks or not given, "--task names no task")
        require(has_tasks or options.limit is None, "--limit limits tasks: give --data, and --task")
        # Errors come before anything is computed.
        data = load_tasks(config)
        trained = load_trained(options.workdir, options.step)
        tasks = [encode_task(each, trained.tokenizer, trained.experiment.packing.row_length) for each in data]
        check_results(evaluations_folder(trained.workdir, trained.step), data, options.limit)
        for each in data:
            print_notice(each.describe_equal_options())
        if not given:
            validate_run(trained, config)
        if tasks:
            score_tasks(trained, tasks, config.rows_per_batch, options.limit)
    return 0
