"""The run of an experiment, and the command `python -m jaxformer.train --experiment=NAME`."""

if __name__ == "__main__":
    import sys

    from jaxformer.__main__ import run

    run(["train", *sys.argv[1:]])  # Ends the process, and handles signals before the imports below.

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.attention.dispatch import Choice
from jaxformer.checkpoint.store import hush, saved_steps
from jaxformer.checkpoint.train_state import Checkpoints, abstract, open_checkpoints, restore
from jaxformer.config import TrainingFailure
from jaxformer.data.packing import Batch, make_phased_batches, seek
from jaxformer.data.phases import Span
from jaxformer.devices.device import choose_device, keep_compiled, out_of_memory_reported
from jaxformer.devices.mesh import rows_here
from jaxformer.devices.multihost import (
    arrays_from_first,
    folder_to_write,
    is_first,
    join_processes,
    leave,
    lost_process_reported,
    require_same_everywhere,
    silence_all_but_first,
    wait_for_all,
)
from jaxformer.devices.options import fixed_options, recorded_options
from jaxformer.evaluation.result_files import check_scores
from jaxformer.experiment.command_line import parse_arguments
from jaxformer.experiment.experiment import Experiment, make_state, run_mesh, spans_of
from jaxformer.experiment.lineage import Lineage, Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import command
from jaxformer.host.console import flush_streams, print_line, print_notice, print_wrapped, show_status
from jaxformer.host.files import require_json
from jaxformer.host.signals import stop_signals
from jaxformer.loop import Run, run_to_end
from jaxformer.optimizer import decay_start
from jaxformer.plan.device_fit import advise_here, choose_attention, device_at_hand, fit_to_device
from jaxformer.plan.estimate import print_plan
from jaxformer.plan.memory import Target
from jaxformer.plan.run_time import expected_durations, steps_seconds
from jaxformer.plan.timed_loss import with_fastest_loss
from jaxformer.plan.timed_step import fastest_way
from jaxformer.record import to_dict
from jaxformer.run.continuation import BegunRun, begin_extended_run, extend_run, read_run
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.folder import (
    check_disk,
    checkpoints_to_come,
    describe_environment,
    evaluations_folder,
    finished_summary,
    hold_folder,
    write_config,
)
from jaxformer.run.identity import (
    CONFIG,
    check_folder,
    check_tasks,
    code_digest,
    identify,
    read_config,
    read_sources,
)
from jaxformer.run.init_from import InitialWeights, check_fits, find_weights, load_params, with_tokenizer
from jaxformer.run.inputs import Data, contents, digests, prepare_data, task_digests
from jaxformer.run.metrics import Writer, check_recorded, read_metrics, validation_losses
from jaxformer.run.overview import print_overview
from jaxformer.run.page import RunPage
from jaxformer.run.progress import make_progress
from jaxformer.run.sanity_check import batch_to_check, check_loss, check_sanity
from jaxformer.step import TrainState
from jaxformer.tracking.config import check_installed
from jaxformer.tracking.tracker import Tracker, Trackers, open_trackers

_ADVICE = "the same command resumes from what is saved"


@fixed_options()
def train(
    experiment: Experiment,
    workdir: Path,
    *,
    seed: int,
    lineage: Lineage | None = None,
    trackers: Sequence[Tracker] = (),
) -> dict:
    """Runs an experiment in a folder, or resumes it there; returns its summary.

    Args:
        experiment: what is run.
        workdir: the run folder, which need not exist.
        seed: of initialisation and data order.
        lineage: how the experiment came about, for the run's record; None for one that stands alone.
        trackers: used beside those that `experiment.tracking` names.

    Raises:
        UserError: the configuration does not fit the data, the device or what the folder holds.
        TrainingFailure: non-finite steps, the disk or the validation end the run; its checkpoints stay.
        Stopped: a signal ended the run, once its state was saved.
    """
    started = time.perf_counter()
    with stop_signals(_ADVICE) as signals, contextlib.ExitStack() as stack:
        read_sources()
        device, mesh = choose_device(experiment.training.device), run_mesh(experiment)
        initial = find_weights(experiment.init_from, workdir)
        identity = identify(experiment, seed, initial.digest if initial else "")
        check_folder(workdir, identity, "identity")
        if summary := finished_summary(workdir, experiment):
            return summary
        own = stack.enter_context(folder_to_write(workdir))  # Several processes read one folder, and the first writes.
        stack.enter_context(hold_folder(own))
        print_line(f"jaxformer {importlib.metadata.version('jaxformer')}: {experiment.name}, seed {seed}, in {workdir}")
        require_same_run(experiment, identity)
        # Errors come before the run's first file is written.
        check_installed(experiment.tracking)
        target = device_at_hand(experiment)
        data, batches = prepare_inputs(experiment, seed, workdir, mesh, initial)
        prepared = time.perf_counter()
        firsts = first_batches(batches, spans_of(experiment))
        experiment, attention, fit = choose_ways(experiment, target, data, firsts, workdir, mesh)
        to_load = None if (is_begun := bool(saved_steps(workdir / "checkpoints"))) else initial
        state = make_checked_state(experiment, seed, data, firsts, workdir, mesh, attention, fit, to_load)
        belongs_to = {"identity": identity, "digests": digests(data)}
        checkpoints = stack.enter_context(open_checkpoints(workdir / "checkpoints", experiment.checkpoint))
        record = {**belongs_to, "seconds": 0.0}
        state, record = resume(checkpoints, abstract(state), batches, belongs_to) if is_begun else (state, record)
        recall_metrics(checkpoints, experiment, workdir, int(state.step))
        wait_for_all("the folder is read")
        environment = describe_environment(attention.implementation, device.device_kind, mesh.size)
        own_record = belongs_to | {"tasks": task_digests(data), "corpora": contents(data)}
        lineage = dataclasses.replace(lineage or Lineage(), init_from=initial and initial.record)
        write_config(own, experiment, lineage, own_record, environment, data.tokenizer, first_step := int(state.step))
        tracking = stack.enter_context(begin_tracking(experiment, own, trackers))
        writer = stack.enter_context(Writer(own, first_step, tracking))
        progress = make_progress(experiment, writer, expected_durations(experiment, target), target.kind, mesh.size)
        shared = checkpoints, progress, signals, mesh, tracking, RunPage(own, first_step)
        run = Run(experiment, own, data, *shared, record, started, prepared)
        return run_to_end(run, state, batches, seed, writer)


def require_same_run(experiment: Experiment, identity: dict) -> None:
    """Raises `UserError` where another process of the run would compute something else."""
    settings = [to_dict(experiment), identity["init_from"], code_digest(), jax.__version__, recorded_options()]
    require_same_everywhere(settings, "other settings, other weights or another version")


def prepare_inputs(
    experiment: Experiment, seed: int, workdir: Path, mesh: Mesh, initial: InitialWeights | None
) -> tuple[Data, grain.DatasetIterator[Batch]]:
    """Returns the data of a run, and the batches of this process's rows from the first step on.

    Args:
        initial: what the run starts from.

    Raises:
        UserError: the data are missing, or differ from those that the folder's run or another process began with; or
            the weights that the run starts from do not fit it.
    """
    show_status("preparing the data")
    if initial:
        check_fits(experiment, initial)
        experiment = with_tokenizer(experiment, initial.folder)
    data = prepare_data(experiment, seed)
    require_same_everywhere(digests(data), "other data")
    check_folder(workdir, digests(data), "digests")
    check_tasks(workdir, task_digests(data))
    last = evaluations_folder(workdir, experiment.training.steps)
    for task in data.tasks:  # Fails now if the last evaluation could not write its scores.
        check_scores(last, task.data, np.arange(len(task.data.items)))
        print_notice(task.data.describe_equal_options())
    rows, spans = functools.partial(rows_here, mesh), spans_of(experiment)
    batches = make_phased_batches(data.shards, data.plans, spans, experiment.packing, seed=seed, rows_here=rows)
    return data, batches


def first_batches(batches: grain.DatasetIterator[Batch], spans: Sequence[Span]) -> list[Batch]:
    """Returns a batch of each shape in the spans, one with something to check, and rewinds the batches."""
    found = {}
    for span in spans:
        shape = span.rows_per_step, span.row_length
        if shape not in found:
            seek(batches, span.first_step)
            own = () if span is spans[-1] else (span.steps,)  # What follows those has another shape.
            found[shape] = arrays_from_first(batch_to_check(batches, *own))
    seek(batches, 0)
    return [*found.values()]


def choose_ways(
    experiment: Experiment, target: Target, data: Data, firsts: Sequence[Batch], workdir: Path, mesh: Mesh
) -> tuple[Experiment, Choice, str]:
    """Returns the experiment as its step is computed here, its attention, and the text of `fit_to_device`.

    Choices that a run on a GPU leaves open are timed here, before its state takes memory.

    Args:
        firsts: of `first_batches`.

    Raises:
        UserError: the attention cannot run here, or computes something else.
    """
    show_status("choosing how to compute")
    attention = choose_attention(experiment, firsts, workdir, mesh.size)
    target = target._replace(attention=attention.implementation.name)
    experiment = with_fastest_loss(experiment, target, record=read_config(workdir))
    of_run = {"token_count": data.tokenizer.vocabulary_size, "attention": attention.implementation}
    seconds = functools.partial(steps_seconds, experiment, target)
    fastest = functools.partial(fastest_way, batch=firsts[0], seconds=seconds, **of_run)
    experiment, fit = fit_to_device(experiment, target, record=read_config(workdir), fastest=fastest, **of_run)
    return experiment, attention, fit


def make_checked_state(
    experiment: Experiment,
    seed: int,
    data: Data,
    firsts: Sequence[Batch],
    workdir: Path,
    mesh: Mesh,
    attention: Choice,
    fit: str,
    initial: InitialWeights | None,
) -> TrainState:
    """Returns the state before the first step, checked on a first batch; prints what will run.

    Args:
        firsts: of `first_batches`.
        fit: the text of `fit_to_device`.
        initial: the weights to start from; None where the seed draws them, or the run resumes.

    Raises:
        UserError: the loss cannot run here, the disk is too small, or a document sees another.
    """
    show_status("making the state, and checking it on a first batch")
    token_count = data.tokenizer.vocabulary_size
    params = initial and load_params(initial, experiment.model, mesh)
    state = make_state(experiment, seed, attention.implementation, mesh, token_count=token_count, params=params)
    print_overview(experiment, state, data, attention, fit)
    if loss := check_loss(experiment.model, state.compute_dtype, token_count):
        print_wrapped(f"loss        {loss}")
    if initial:
        print_wrapped(f"start       from {initial}")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    check_disk(workdir, size * checkpoints_to_come(experiment, workdir), "its checkpoints")
    if experiment.training.startup_proof:
        batch = next((each for each in firsts if each.segment_ids_BT.max() > 1), firsts[0])
        is_masked, is_drawn = experiment.packing.document_mask, initial is None
        proof = check_sanity(state, batch, token_count, document_mask=is_masked, is_drawn=is_drawn)
        print_wrapped(f"proof       {proof}")
    return state


def resume(
    checkpoints: Checkpoints, state: TrainState, batches: grain.DatasetIterator, belongs_to: dict[str, dict]
) -> tuple[TrainState, dict]:
    """Returns the newest undamaged state and its record; the batches continue after it.

    Args:
        state: only its shapes, since two states may be more than the device holds.

    Raises:
        UserError: the checkpoints belong to another run.
    """
    restored = restore(checkpoints, state, belongs_to=belongs_to)
    for line in restored.damaged:
        print_notice(line)
    batches.set_state(restored.data_state)
    print_line(f"resumed from step {int(restored.state.step)}")
    return restored.state, restored.record


def recall_metrics(checkpoints: Checkpoints, experiment: Experiment, workdir: Path, first_step: int) -> None:
    """Gives the checkpoints the losses that decide which are kept; prints which steps are missing in the metrics."""
    lines = read_metrics(workdir)
    print_notice(check_recorded(workdir, lines, first_step))
    checkpoints.validation_losses = validation_losses(lines)
    checkpoints.decay_start = decay_start(experiment.optimizer, experiment.training.steps)


def begin_tracking(experiment: Experiment, workdir: Path, own: Sequence[Tracker]) -> Trackers:
    """Returns the started trackers of a run, in the first process; prints where they show it.

    Args:
        workdir: with its `config.json`.
        own: the trackers passed to `train`.
    """
    print_wrapped(f"metrics     {workdir / 'metrics.jsonl'}")
    if not is_first():
        return Trackers()
    record = require_json(workdir / CONFIG)
    name = f"{experiment.name} seed {record['seed']}"
    opened = open_trackers(experiment.tracking, workdir, name, experiment.name, record["tracked_as"])
    for tracker in opened.values():
        print_wrapped(f"            {tracker.address}")
    tracking = Trackers([*((type(tracker).__name__, tracker) for tracker in own), *opened.items()])
    tracking.log_hyperparameters(record)
    return tracking


def find_run(options: argparse.Namespace, overrides: Mapping[str, str], resolved: Resolved | None) -> BegunRun:
    """Returns the run that a command line means: one of a resolved experiment, or one that continues another."""
    if resolved:
        workdir = options.workdir or Path("runs", resolved.name, f"seed_{options.seed}")
        return BegunRun(resolved.experiment, workdir, options.seed, resolved.lineage)
    run = read_run(options.resume, overrides)
    return run if options.extend_to is None else extend_run(run, options.extend_to, options.workdir)


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status: 0 done, 1 a failed training, 2 an error that the user can correct."""
    options, overrides = parse_arguments(arguments)
    resolved = None if options.resume else resolve(options.experiment, overrides, parent=options.parent)
    experiment, workdir, seed, lineage = run = find_run(options, overrides, resolved)
    if options.print_config:
        print_line(json.dumps(to_dict(experiment, to_print=True), indent=2))
    elif options.plan is not None:
        choose_device(experiment.training.device)
        with out_of_memory_reported():
            if resolved and (initial := find_weights(experiment.init_from, workdir)):
                check_fits(experiment, initial)
            print_plan(experiment, options.plan)
    else:
        join_processes(experiment.mesh.processes)
        advice = functools.partial(advise_here, experiment)
        with lost_process_reported(), out_of_memory_reported(advice), silence_all_but_first():
            choose_device(experiment.training.device)  # Before anything looks for devices.
            if resolved and workdir.parent.name == experiment.name:
                check_earlier_runs(workdir.parent.parent, resolved)
            if options.extend_to is not None:
                lineage = begin_extended_run(run, read_run(options.resume))
            try:
                train(experiment, workdir, seed=seed, lineage=lineage)
            except OSError as error:  # A disk or a store that fails; errors of the user are `UserError`.
                raise TrainingFailure(f"{error}; the same command resumes from what is saved") from error
    return 0


@command
def run_command(arguments: list[str]) -> int:
    """Runs the command as a process of its own, which should exit with the returned status."""
    hush()
    keep_compiled()
    status = main(arguments)
    flush_streams()
    leave(status)
    return status
