"""The loop over a run's steps: it saves before it validates, and stops where nothing is lost."""

import time
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp

from jaxformer.checkpoint import Checkpoints, save, save_and_wait
from jaxformer.config import TrainingFailure
from jaxformer.data import Data
from jaxformer.evaluate import validate
from jaxformer.experiment import Experiment
from jaxformer.fault import diagnose, write_fault
from jaxformer.generate import sample_text
from jaxformer.metrics import Writer
from jaxformer.packing import seek
from jaxformer.progress import NonFiniteSteps, Progress, describe_validation, duration
from jaxformer.retention import best_step
from jaxformer.run_folder import summarise, write_json
from jaxformer.step import TrainState, train_step
from jaxformer.stop_signals import Stopped, StopSignals


class Run(NamedTuple):
    """What the steps of a run have in common.

    record: of the checkpoints; its `seconds` are those of the run before `started`.
    """

    experiment: Experiment
    workdir: Path
    data: Data
    checkpoints: Checkpoints
    progress: Progress
    signals: StopSignals
    record: dict
    started: float

    def record_now(self) -> dict:
        """Returns the record with the seconds of the run so far."""
        return {**self.record, "seconds": self.record["seconds"] + time.perf_counter() - self.started}


def run_steps(run: Run, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
    """Returns the state after the last step, which is saved.

    Raises:
        Stopped: by a signal, with the state saved.
        TrainingFailure: the numbers or the disk end the run.
    """
    steps, every = run.experiment.training.steps, run.experiment.checkpoint.every_steps
    validate_every = run.experiment.evaluation.every_steps
    jitted_step = jax.jit(train_step, donate_argnums=0)
    with run.signals.deferred():
        for step in range(int(state.step), steps):
            # Validated after it was saved, and again if the run stopped in between.
            if step > 0 and step % validate_every == 0:
                with run.signals.at_once():
                    try_to_validate(run, state, step)
            batch = next(batches)
            data_state = batches.get_state()
            state, metrics = jitted_step(state, batch)
            # A step's metrics are fetched after the next one is dispatched: the device does not wait for the host.
            is_due = (step + 1) % every == 0 or (step + 1) % validate_every == 0
            try:
                run.progress.add(step + 1, metrics)
                stop = run.signals.received
                if is_due or stop or step + 1 == steps:
                    run.progress.flush()
            except NonFiniteSteps as failure:
                raise keep_fault(run, state, batches, data_state, failure) from failure
            if stop or step + 1 == steps:
                for line in save_and_wait(run.checkpoints, state, data_state, run.record_now()):
                    run.progress.note(line)
            elif is_due:
                run.progress.note(save(run.checkpoints, state, data_state, run.record_now()))
            run.progress.note(run.checkpoints.check())
            if stop:
                raise Stopped(stop, f"step {step + 1} is saved, and the same command goes on from there")
    return state


def try_to_validate(run: Run, state: TrainState, step: int) -> dict[str, float] | None:
    """Validates a state, which is saved; a failure is told, and never ends the run."""
    try:
        validation = validate(state, run.data.validation, run.experiment.evaluation)
    except Exception as error:
        run.progress.note(
            f"validation at step {step} failed ({type(error).__name__}: {error}); while its checkpoint is kept, "
            f"`python tools/evaluate.py --workdir={run.workdir} --step={step}` does it later"
        )
        return None
    run.progress.add_validation(step, validation)
    run.checkpoints.validation_losses[step] = validation["loss"]
    return validation


def keep_fault(
    run: Run, state: TrainState, batches: grain.DatasetIterator, data_state: dict, failure: NonFiniteSteps
) -> TrainingFailure:
    """Keeps the batch where the numbers failed and the state, which has not changed since; returns the failure."""
    saved = int(state.step)
    seek(batches, failure.first_step - 1)
    fault = diagnose(state, next(batches), step=failure.first_step, checkpoint=saved)
    path = run.workdir / "faults" / f"step_{failure.first_step}.npz"
    write_fault(path, fault)
    # The same command may go on after them.
    state = state.replace(guard=state.guard.replace(non_finite_in_a_row=jnp.zeros((), jnp.int32)))
    for line in save_and_wait(run.checkpoints, state, data_state, run.record_now()):
        run.progress.note(line)
    return TrainingFailure(f"{failure}; `python tools/replay_step.py {path}` replays it")


def finish(run: Run, state: TrainState, seed: int, writer: Writer) -> dict:
    """Validates the last state, writes summary and sample, and returns the summary.

    Raises:
        TrainingFailure: the validation or the disk failed; the same command tries again.
    """
    experiment, workdir = run.experiment, run.workdir
    steps = experiment.training.steps
    validation = try_to_validate(run, state, steps)
    writer.close()
    if validation is None:
        raise TrainingFailure(f"all {steps} steps are trained and saved; the same command validates and finishes")
    seconds = run.record_now()["seconds"]
    best = best_step(run.checkpoints.steps(), run.checkpoints.validation_losses)
    summary = summarise(experiment, seed, workdir, seconds, validation, best)
    try:
        text = None
        if experiment.evaluation.sample_tokens:
            length = experiment.evaluation.sample_tokens
            text = sample_text(state.model, run.data.tokenizer, tokens=length, seed=seed)
            (workdir / "sample.txt").write_text(text, encoding="utf-8")
        write_json(workdir / "summary.json", summary)
    except OSError as error:
        raise TrainingFailure(
            f"{workdir}: {error.strerror}; all {steps} steps are trained and saved, and the same command finishes"
        ) from error
    if text is not None:
        print(f"a sample ({workdir / 'sample.txt'}):\n{text}\n")
    print(f"finished in {duration(seconds)}: validation {describe_validation(validation)}; results in {workdir}")
    return summary
