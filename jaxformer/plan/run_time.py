"""How long a run will take: from earlier runs here, from a timed step, or from data sheets."""

import dataclasses
import functools
import math
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import UserError, replace, require
from jaxformer.data.corpus import parts_of, source_bytes
from jaxformer.data.packing import Batch
from jaxformer.data.preparation import default_processes
from jaxformer.devices.device import peak_tflops
from jaxformer.devices.mesh import put_rows
from jaxformer.devices.options import fixed_options
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import (
    Experiment,
    evaluated_steps,
    make_state,
    run_mesh,
    shapes_of,
    trained_tokens,
    training_flops,
)
from jaxformer.host.console import is_terminal, show_status
from jaxformer.plan.compiled_step import compiled_bytes, lower_steps, lower_validation
from jaxformer.plan.device_fit import Fit, Target, choose_fit, compiled_here, device_to_come, fits
from jaxformer.plan.timed_loss import with_kept_loss
from jaxformer.plan.timed_step import kept_way
from jaxformer.run.durations import Durations, recall_durations
from jaxformer.step import compile_step

# Seconds for which steps are timed at least, after an untimed one; and the longest step that is timed.
_TIMED_SECONDS, _LONGEST_STEP = 2.0, 10.0

# Assumed share of a device's peak, or of the rate of its large matmuls, if no step is timed. Trainings of such models
# reach 0.25 to 0.5 of an H100's peak (llm.c, nanochat, TorchTitan), small ones the lower end.
_UTILISATION = 0.4

# Seconds until a process has imported what a run needs, on two cores.
IMPORTING = 3.0

# Seconds of parts that no run here has measured, from the baseline on two cores: a state and its check, without
# compiling the step; and compiling the first evaluation and sample.
_CHECKING, _COMPILING_EVALUATION = 4.0, 6.0

# Bytes of text per second, from the baseline on two cores: tokenised on each processor, and for training a tokenizer.
_TOKENISED, _LEARNED = 4e6, 8e6

# Bytes of text per token, about.
TOKEN_BYTES = 4


class Speed(NamedTuple):
    """How fast the steps of a run are."""

    step_seconds: float
    """Seconds of a step; of a run with phases, of the largest."""
    compiling: float
    """Seconds to compile it, if a run will have to; 0 if nothing was compiled."""
    how: str
    """The source of the numbers."""


class Seconds(NamedTuple):
    """The seconds of a run by its parts."""

    data: float
    """To prepare unprepared data; NaN if the amount of text is unknown."""
    start: float
    """From there until the first step is done."""
    steps: float
    evaluations: float
    """With saves, samples and pages."""

    @property
    def total(self) -> float:
        """Seconds of all known parts."""
        return sum(each for each in self if math.isfinite(each))


@fixed_options()
def estimate_run_seconds(experiment: Experiment) -> float:
    """Returns how long a run with prepared data will take here, from its start to its end; without its tasks.

    From earlier runs here; without one that had such a step, from a few steps on random tokens, or the rate of matmuls.
    """
    target = device_to_come(experiment)
    experiment = with_kept_loss(experiment, target)
    fit = fit_here(experiment, target)
    known = dataclasses.replace(recall_durations(fit.experiment), data=0.0)
    return run_seconds(experiment, known, speed_here(experiment, target, fit, known)).total


def fit_here(experiment: Experiment, target: Target) -> Fit:
    """Returns how a step is computed on this machine's device: as timed there, else by the estimate."""
    return kept_way(experiment, target) or choose_fit(
        experiment, target, compiled_here(experiment, target, experiment.model.vocabulary_size)
    )


def compiled_on_cpu(fit: Fit, speed: Speed) -> Fit:
    """Returns a way to compute a step with its compiled memory, or a validation's if that is more.

    This is for a CPU with a timed step, since the formula assumes XLA's layout on a GPU. The run finds the compiled
    programs in the cache.
    """
    experiment = fit.experiment
    if fit.target.platform != "cpu" or not speed.compiling:
        return fit
    show_status("compiling the run's programs")
    mesh, token_count = run_mesh(experiment), experiment.model.vocabulary_size
    lowered = [*lower_steps(experiment, mesh, token_count), lower_validation(experiment, mesh, token_count)]
    return dataclasses.replace(fit, compiled=max(compiled_bytes(each.compile()) for each in lowered))


def largest_shape(experiment: Experiment) -> Experiment:
    """Returns the one of `shapes_of` whose steps take the most operations; the others are scaled from it."""
    return max(shapes_of(experiment), key=training_flops)


def text_bytes(experiment: Experiment) -> float:
    """Returns the approximate bytes of text to prepare; 0 if some of it is not on this machine."""
    sizes = []
    for part in parts_of(experiment.corpus):
        try:
            size, budget = source_bytes(part), part.tokens * TOKEN_BYTES
        except UserError:  # It may exist before the run begins.
            return 0
        sizes.append(min(size, budget) if budget else size)
    return sum(sizes) if all(sizes) else 0


def run_seconds(experiment: Experiment, known: Durations, speed: Speed) -> Seconds:
    """Returns the seconds of a run, from earlier runs here if known."""
    data = known.data
    if math.isnan(data) and (size := text_bytes(experiment)):
        learned = 0 if experiment.tokenizer.path else min(size, experiment.tokenizer.training_bytes)
        data = 1 + size / (_TOKENISED * (experiment.tokenizer.processes or default_processes())) + learned / _LEARNED
    compiling = speed.compiling * len(shapes_of(experiment))
    start = known.start if math.isfinite(known.start) else _CHECKING + compiling
    steps = training_flops(experiment) / _step_flops(largest_shape(experiment)) * speed.step_seconds
    return Seconds(data, IMPORTING + start, steps, _evaluation_seconds(experiment, known, speed))


def _evaluation_seconds(experiment: Experiment, known: Durations, speed: Speed) -> float:
    """Returns the seconds of all evaluations. A validation token takes a third of the time of a training token."""
    evaluation, largest = experiment.evaluation, largest_shape(experiment)
    batch = evaluation.rows_per_batch * largest.packing.row_length
    batches = math.ceil(evaluation.validation_bytes / TOKEN_BYTES / batch)
    tokens = len(parts_of(experiment.corpus)) * max(1, batches) * batch
    each = tokens / trained_tokens(largest, 1) * speed.step_seconds / 3
    each = known.evaluation if math.isfinite(known.evaluation) else each
    compiling = known.compiled_evaluation if math.isfinite(known.compiled_evaluation) else _COMPILING_EVALUATION
    first = known.first_evaluation if math.isfinite(known.first_evaluation) else each + compiling
    last = known.last_evaluation if math.isfinite(known.last_evaluation) else each
    count = len(evaluated_steps(experiment))
    return first + (count > 1) * last + max(0, count - 2) * each


def speed_here(experiment: Experiment, target: Target, fit: Fit, known: Durations) -> Speed:
    """Returns the speed of steps: from runs here, else from some steps on random tokens, else from matmuls.

    If a step would take long, one with fewer rows is timed.
    """
    if math.isfinite(known.step):
        return Speed(known.step, 0.0, "as in such runs here")
    largest, rate = largest_shape(experiment), _matmul_rate(target)
    estimated = _step_flops(largest) * (1 + fit.cost) / (rate * target.devices * _UTILISATION)
    rows, parts, share = largest.training.rows_per_step, fit.micro_batches, 1
    while estimated / share > _LONGEST_STEP and rows % (2 * share * max(1, parts // (2 * share)) * target.devices) == 0:
        share *= 2
    # Micro-batches are not larger than those that fit.
    values = {"training.rows_per_step": rows // share, "training.micro_batches": max(1, parts // share)}
    timed = replace(largest, values | {"model.remat": fit.remat, "model.scan_unroll": fit.scan_unroll})
    can_be_timed = estimated / share <= _LONGEST_STEP and (not target.memory or fits(fit))
    if experiment.mesh.processes == 1 and can_be_timed:
        return _time_steps(timed, share)
    return Speed(estimated, 0.0, f"an estimate: {_UTILISATION:.0%} of what matmuls reach here, {_teraflops(rate)}")


def expected_durations(experiment: Experiment, target: Target) -> Durations:
    """Returns what the parts of a run will take, as far as is known without running a step.

    Without a run here that had such steps, a terminal, which shows the time left, gets an estimate from matmuls.
    """
    known = recall_durations(experiment)
    if math.isfinite(known.step) or not is_terminal(sys.stdout):
        return known
    first, *_ = shapes_of(experiment)
    step = _step_flops(first) / (_matmul_rate(target) * target.devices * _UTILISATION)
    return dataclasses.replace(known, step=step)


def steps_seconds(experiment: Experiment, target: Target) -> float:
    """Returns the seconds of all steps of a run on this machine's device, from the rate of matmuls."""
    return training_flops(experiment) / (_matmul_rate(target) * target.devices * _UTILISATION)


def speed_of(experiment: Experiment, target: Target, fit: Fit) -> Speed:
    """Returns the speed of steps on another GPU, from its data sheet.

    Raises:
        UserError: its peak is unknown.
    """
    tflops = peak_tflops(target.kind)
    if tflops is None:
        raise UserError(f"the peak of GPU {target.kind!r} is unknown")
    peak = tflops * 1e12 * target.devices
    seconds = _step_flops(largest_shape(experiment)) * (1 + fit.cost) / (peak * _UTILISATION)
    return Speed(seconds, 0.0, f"an estimate: {_UTILISATION:.0%} of the peak, {_teraflops(peak)}; nothing was run")


def _step_flops(experiment: Experiment) -> float:
    """Returns the operations of a step of an experiment without phases."""
    return training_flops(experiment) / experiment.training.steps


def _matmul_rate(target: Target) -> float:
    """Returns the floating-point operations per second of a large matmul here."""
    size = 1024 if target.platform == "cpu" else 8192
    x = jnp.ones((size, size), target.dtype)
    times, failures = milliseconds({"matmul": functools.partial(jax.jit(jnp.matmul), x, x)})
    require(not failures, f"a matmul of {size} x {size} fails on this device: {failures}")
    return 2 * size**3 / (times["matmul"] / 1e3)


def _time_steps(experiment: Experiment, share: int) -> Speed:
    """Returns the speed of an experiment's steps on random tokens; each stands for a step `share` times as long."""
    V, mesh = experiment.model.vocabulary_size, run_mesh(experiment)
    batch = random_batch(experiment.training.rows_per_step, experiment.packing.row_length, V)
    state = make_state(experiment, seed=0, mesh=mesh, token_count=V)
    show_status("compiling a step to time it")
    batch, started = put_rows(state.mesh, batch), time.perf_counter()
    lowered = compile_step(state).lower(state, batch)
    # The run finds this compiled step in the cache, if there is one and it has the same rows.
    is_kept = share == 1 and jax.config.values["jax_compilation_cache_dir"] is not None
    compiling = time.perf_counter() - started
    step = lowered.compile()
    compiling = compiling if is_kept else time.perf_counter() - started
    state, _ = jax.block_until_ready(step(state, batch))
    show_status("timing a step")
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _TIMED_SECONDS:
        state, _ = jax.block_until_ready(step(state, batch))
        count += 1
    rows = f" of 1/{share} of the rows" if share > 1 else ""
    return Speed(seconds / count * share, compiling, f"in {count} step{'s' * (count > 1)}{rows} on random tokens")


def random_batch(rows: int, row_length: int, vocabulary_size: int) -> Batch:
    """Returns rows of random tokens, one document each: the most expensive case for attention."""
    tokens_BT = np.random.default_rng(0).integers(0, vocabulary_size, (rows, row_length), dtype=np.int32)
    zeros_BT = np.zeros_like(tokens_BT)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=tokens_BT,
        loss_weights_BT=np.ones(tokens_BT.shape, np.float32),
        segment_ids_BT=zeros_BT + 1,
        positions_BT=zeros_BT + np.arange(row_length, dtype=np.int32),
        document_starts_BT=zeros_BT,
        document_ends_BT=zeros_BT + row_length,
    )


def _teraflops(rate: float) -> str:
    return f"{rate / 1e12:,.4g} TFLOP/s"
