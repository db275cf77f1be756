"""The loop over a run's steps: it saves before it validates, and stops where nothing is lost."""

import contextlib
import functools
import math
import time
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.checkpoint.retention import best_step
from jaxformer.checkpoint.train_state import Checkpoints, save, save_and_wait
from jaxformer.config import TrainingFailure
from jaxformer.data.packing import Batch, batch_digest, seek
from jaxformer.data.phases import Span, span_at
from jaxformer.devices.mesh import put_rows, rows_here
from jaxformer.devices.multihost import AgreedStop, all_rows, is_first
from jaxformer.evaluation.generate import sample_text
from jaxformer.evaluation.result_files import describe_scores, describe_validation, write_scores, write_validation
from jaxformer.evaluation.scores import flatten_estimates
from jaxformer.evaluation.task_scores import EncodedTask, score_task
from jaxformer.evaluation.tasks import fixed_choice
from jaxformer.evaluation.validation import validate, validation_scalars
from jaxformer.experiment.experiment import Experiment, evaluated_steps, spans_of
from jaxformer.host.console import format_duration, print_line, print_notice
from jaxformer.host.files import write_json, write_whole
from jaxformer.host.paths import shell_word
from jaxformer.host.signals import Stopped, StopSignals
from jaxformer.run.durations import Durations, keep_durations
from jaxformer.run.failed_step import diagnose, write_fault
from jaxformer.run.folder import check_still_there, evaluations_folder, peak_memory, summarise
from jaxformer.run.identity import identify_evaluation
from jaxformer.run.inputs import Data
from jaxformer.run.metrics import Writer
from jaxformer.run.page import RunPage
from jaxformer.run.profile import profiled
from jaxformer.run.progress import NonFiniteSteps, Progress
from jaxformer.step import TrainState, compile_step
from jaxformer.tracking.tracker import Trackers


class Run(NamedTuple):
    """What the steps of a run have in common."""

    experiment: Experiment
    workdir: Path
    data: Data
    checkpoints: Checkpoints
    progress: Progress
    signals: StopSignals
    mesh: Mesh
    """Mesh of the devices that compute a step."""
    trackers: Trackers
    page: RunPage
    record: dict
    """Record of the checkpoints; its `seconds` count the run before `started`."""
    started: float
    """When this process began the run, by `time.perf_counter`."""
    prepared: float
    """When its data were ready."""

    def record_now(self) -> dict:
        """Returns the record with the seconds of the run so far, and its device seconds."""
        seconds = time.perf_counter() - self.started
        before = self.record["seconds"]
        return self.record | {
            "seconds": before + seconds,
            "device_seconds": self.record.get("device_seconds", before) + seconds * self.mesh.size,
        }


def run_to_end(run: Run, state: TrainState, batches: grain.DatasetIterator, seed: int, writer: Writer) -> dict:
    """Trains and finishes a run; returns its summary. If it ends early, its page shows why.

    Raises: as of `run_steps` and `finish`.
    """
    try:
        return finish(run, run_steps(run, state, batches), seed, writer)
    except (Exception, Stopped) as error:
        with contextlib.suppress(Exception):
            run.page.draw(run.record_now()["seconds"], spans_of(run.experiment), error)
        raise


def run_steps(run: Run, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
    """Returns the state after the last step, which is saved.

    Raises:
        Stopped: by a signal, with the state saved.
        TrainingFailure: the numbers or the disk end the run.
    """
    steps, every = run.experiment.training.steps, run.experiment.checkpoint.every_steps
    to_evaluate = set(evaluated_steps(run.experiment))
    to_save = to_evaluate | {run.checkpoints.decay_start}
    first_step, agreed_stop = int(state.step), AgreedStop()
    data_state, spans = batches.get_state(), spans_of(run.experiment)
    first_rows = {span.rows_per_step: rows_here(run.mesh, span.rows_per_step).start for span in spans}
    to_profile, folder = run.experiment.training.profiled_steps, run.workdir / "profile"
    step_function = profiled(compile_step(state), to_profile, first_step + 1, folder, run.progress)
    run.progress.begin(first_step)
    with run.signals.deferred(), step_function as jitted_step:
        for step in range(first_step, steps):
            # Validated after saving, and again if the run stopped in between; before the first step only if it starts
            # from trained weights.
            if step in to_evaluate:
                with run.signals.at_once() if jax.process_count() == 1 else contextlib.nullcontext():
                    try_to_evaluate(run, state, step)
            span = span_at(spans, step)
            if 0 < step == span.first_step:
                begin_phase(run, state, batches, span)
            before = time.perf_counter()
            batch = next_batch(run, state, batches, data_state)
            waited = time.perf_counter() - before
            data_state, digest = batches.get_state(), batch_digest(batch, first_rows[span.rows_per_step])
            state, metrics = jitted_step(state, put_rows(state.mesh, batch))
            agreed_stop.ask(run.signals.received, metrics["loss"])
            is_due = (step + 1) % every == 0 or step + 1 in to_save
            try:
                # A step's metrics are fetched after the next one is dispatched: the device does not wait for the host.
                run.progress.add(step + 1, metrics | {"batch": digest, "waited": waited})
                if is_due or agreed_stop.answer(run.signals.received):
                    run.progress.flush()
            except NonFiniteSteps as failure:
                raise keep_fault(run, state, batches, failure) from failure
            if is_due:
                check_still_there(run.workdir)
                print_notice(save(run.checkpoints, state, data_state, run.record_now()))
                run.progress.resume_clock()
            print_notice(run.checkpoints.check())
            received = agreed_stop.answer(run.signals.received)
            if received or step + 1 == steps:
                save_now(run, state, data_state)
                agreed_stop.settle(run.signals.received, metrics["loss"])
                received = agreed_stop.answer(run.signals.received)
            if received:
                raise stopped_after(step + 1, received)
    return state


def next_batch(run: Run, state: TrainState, batches: grain.DatasetIterator, data_state: dict) -> Batch:
    """Returns the next batch. If the data fail, or a signal ends the wait, the state is saved.

    Args:
        data_state: the present state of the batches.

    Raises:
        Stopped: by a signal.
    """
    is_alone = jax.process_count() == 1  # Other processes would have to save too, and do not know of it.
    try:
        with run.signals.at_once() if is_alone else contextlib.nullcontext():
            return next(batches)
    except (Exception, Stopped) as raised:
        error = raised  # Handled below, so that a failure there is not shown as caused by it.
    if is_alone:
        try:
            run.progress.flush()
        except NonFiniteSteps as failure:
            raise keep_fault(run, state, batches, failure) from failure
        save_now(run, state, data_state)
    if isinstance(error, Stopped):
        raise stopped_after(int(state.step), error.number)
    raise error


def begin_phase(run: Run, state: TrainState, batches: grain.DatasetIterator, span: Span) -> None:
    """Prints that another phase begins, once the steps before it are done.

    Raises:
        TrainingFailure: too many of those steps were not finite.
    """
    try:
        run.progress.begin_phase(span.first_step, str(span))
    except NonFiniteSteps as failure:
        raise keep_fault(run, state, batches, failure) from failure


def stopped_after(step: int, number: int) -> Stopped:
    """Returns the error of a run that a signal stops after a step, which is saved unless it is 0."""
    text = f"step {step} is saved, and the same command resumes from there"
    return Stopped(number, text if step else "nothing is trained yet, and the same command starts again")


def save_now(run: Run, state: TrainState, data_state: dict) -> None:
    """Saves a state, unless it is the one before the first step, and waits until it is on the disk."""
    if int(state.step):
        check_still_there(run.workdir)
        for line in save_and_wait(run.checkpoints, state, data_state, run.record_now()):
            print_notice(line)


def try_to_evaluate(run: Run, state: TrainState, step: int) -> dict[str, float] | None:
    """Validates a state, scores its tasks, samples and draws the page; returns the scalars, or None if some fail.

    The state is saved, except before the first step. A failure is reported and never ends the run.
    """
    is_last = step == run.experiment.training.steps
    evaluations = {"validation": validate_now}
    if is_last or run.experiment.evaluation.task_items:
        evaluations |= {task.data.task.name: functools.partial(score_now, task=task) for task in run.data.tasks}
    scalars, is_whole = {}, True
    for what, evaluate in evaluations.items():
        try:
            found, text = evaluate(run, state, step, is_last=is_last)
        except Exception as error:
            if jax.process_count() > 1:  # The others wait for this one within the evaluation.
                raise
            is_whole = False
            again = f"`jaxformer evaluate --workdir={shell_word(run.workdir)} --step={step}`"
            advice = f"; while its checkpoint is kept, repeat with {again}" if step else ""  # None is saved at step 0.
            print_notice(f"{what} at step {step} failed ({type(error).__name__}: {error}){advice}")
        else:
            run.progress.add_evaluation(step, found, text)
            scalars |= found
    if run.experiment.evaluation.sample_tokens:
        try_to_sample(run, state, step)
    if not is_last:  # The last page is drawn once all is known.
        try_to_draw(run, step)
    run.progress.resume_clock()
    return scalars if is_whole else None


def validate_now(run: Run, state: TrainState, step: int, *, is_last: bool) -> tuple[dict[str, float], str]:
    """Validates a state; returns the scalars, and a text about them. The last step also writes a file by document."""
    losses = validate(state, run.data.validation, run.experiment.evaluation)
    validation = validation_scalars(losses)
    run.checkpoints.validation_losses[step] = validation["loss"]
    scalars = {f"validation/{name}": value for name, value in validation.items()}
    parts = [f"{one.name} {validation[f'{one.name}/bits_per_byte']:.4f}" for one in losses if len(losses) > 1]
    if is_last:
        write_validation(evaluations_folder(run.workdir, step), losses, _identify(run, step))
    return scalars, "; ".join([f"validation: {describe_validation(validation)}", *parts])


def score_now(
    run: Run, state: TrainState, step: int, *, task: EncodedTask, is_last: bool
) -> tuple[dict[str, float], str]:
    """Scores a fixed choice of a task's items, or all after the last step; returns as `validate_now` does."""
    evaluation = run.experiment.evaluation
    scores = score_task(
        state,
        task,
        run.experiment.packing,
        rows_per_batch=evaluation.rows_per_batch,
        items=None if is_last else evaluation.task_items,
        label=task.data.task.name,
    )
    parts = [scores]
    if is_last and 0 < evaluation.task_items < len(scores.chosen):  # The curve of the fixed choice ends here too.
        parts.append(scores.among(fixed_choice(len(scores.chosen), evaluation.task_items)))
    estimates = {f"{each.name}/{name}": value for each in parts for name, value in each.estimates().items()}
    if is_last:
        write_scores(evaluations_folder(run.workdir, step), scores, _identify(run, step))
    return flatten_estimates(estimates), describe_scores(scores)


def _identify(run: Run, step: int) -> dict:
    return identify_evaluation(run.experiment, run.record["identity"]["seed"], step, run.data.tokenizer)


def keep_fault(run: Run, state: TrainState, batches: grain.DatasetIterator, failure: NonFiniteSteps) -> TrainingFailure:
    """Saves the state before the non-finite steps, and the batch of the first of them; returns the run's failure.

    The same command resumes after the failed steps, and loses no batch read since, however late the host noticed.
    """
    guard = state.guard.replace(non_finite_in_a_row=jnp.zeros((), jnp.int32))
    state = state.replace(step=jnp.asarray(failure.last_step, jnp.int32), guard=guard)
    path = run.workdir / "faults" / f"step_{failure.first_step}.npz"
    try:
        seek(batches, failure.last_step)
        save_now(run, state, batches.get_state())
        seek(batches, failure.first_step - 1)
        batch = next(batches)
        fault = diagnose(state, put_rows(state.mesh, batch), step=failure.first_step, checkpoint=failure.last_step)
        write_fault(path, fault._replace(batch=all_rows(batch)))
    except Exception as error:
        return TrainingFailure(f"{failure}; they could not be saved for a replay ({type(error).__name__}: {error})")
    return TrainingFailure(f"{failure}; `jaxformer replay-step {shell_word(path)}` replays it")


def finish(run: Run, state: TrainState, seed: int, writer: Writer) -> dict:
    """Validates the last state, writes its sample, summary and page, and returns the summary.

    Raises:
        TrainingFailure: the validation or the disk failed; the same command tries again.
    """
    experiment, workdir = run.experiment, run.workdir
    steps = experiment.training.steps
    evaluation = try_to_evaluate(run, state, steps)
    writer.close()
    if evaluation is None:
        raise TrainingFailure(f"all {steps} steps are trained and saved; the same command evaluates and finishes")
    record = run.record_now()
    best = best_step(run.checkpoints.steps(), run.checkpoints.validation_losses)
    summary = summarise(experiment, seed, workdir, record["seconds"], record["device_seconds"], evaluation, best)
    # Before the summary: trackers may be interrupted while they send, and a run with a summary does not reopen them.
    run.trackers.end_step()
    run.trackers.log_summary(summary)
    run.trackers.close()
    try:
        write_json(workdir / "summary.json", summary)
    except OSError as error:
        raise TrainingFailure(
            f"{workdir}: {error.strerror}; all {steps} steps are trained and saved, and the same command finishes"
        ) from error
    if is_first() and not run.record["seconds"]:  # This process did all of it.
        keep_durations(experiment, measure_durations(run))
    validation = {name.removeprefix("validation/"): value for name, value in evaluation.items()}
    taken = format_duration(record["seconds"])
    page = run.page.path if try_to_draw(run, steps) else workdir
    print_line(f"finished in {taken}: validation {describe_validation(validation)}; see {page}")
    return summary


def measure_durations(run: Run) -> Durations:
    """Returns how long the parts of a run took; this process did it from the first step to the last."""
    progress, ends = run.progress, evaluated_steps(run.experiment)
    first, *further = (progress.seconds_beside[step] for step in ends)
    between = sum(further[:-1]) / len(further[:-1]) if further[:-1] else math.nan
    before = first if ends[0] == 0 else 0.0  # An evaluation of the weights that a run starts from.
    return Durations(
        data=run.prepared - run.started,
        start=progress.first_step_ended - run.prepared - before,
        step=progress.step_seconds if len(spans_of(run.experiment)) == 1 else math.nan,
        first_evaluation=first,
        evaluation=between,
        last_evaluation=further[-1] if further else math.nan,
        compiled_evaluation=first - between if first > between else math.nan,
        peak_memory=peak_memory(),
        corpus_tokens=sum(corpus.tokens for corpus in run.data.corpora),
    )


def try_to_sample(run: Run, state: TrainState, step: int) -> None:
    """Appends a sample of the model to those of earlier steps, drawn with the same seed; the last is also printed.

    A failure is reported and never ends the run. A sample that a full disk refuses is written with the next.
    """
    tokens, seed = run.experiment.evaluation.sample_tokens, run.record["identity"]["seed"]
    try:
        text = sample_text(state.model, run.data.tokenizer, tokens=tokens, seed=seed)
        run.trackers.log(step, {"sample": text})
        run.page.add_sample(step, text)
        if step == run.experiment.training.steps:
            write_whole(path := run.workdir / "sample.txt", text.encode())
            print_line(f"a sample ({path}):\n{text}\n")
    except Exception as error:
        print_notice(f"the sample of step {step} is not written ({type(error).__name__}: {error})")


def try_to_draw(run: Run, step: int) -> bool:
    """Draws the page after a step and prints its warnings; returns whether it was written.

    A failure is reported and never ends the run.
    """
    try:
        for alarm in run.page.draw(run.record_now()["seconds"], spans_of(run.experiment)):
            print_notice(f"step {step}/{run.experiment.training.steps}: {alarm}; see {run.page.path}")
    except Exception as error:
        print_notice(f"{run.page.path} is not drawn ({type(error).__name__}: {error})")
        return False
    return True
