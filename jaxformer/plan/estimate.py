"""What a run will cost, before any data is read: parameters, FLOPs, memory, disk and time."""

import functools
import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import nnx

from jaxformer.checkpoint.retention import most_kept
from jaxformer.config import UserError, require
from jaxformer.data.corpus import parts_of
from jaxformer.data.packing import Batch
from jaxformer.data.shards import id_dtype
from jaxformer.devices.device import peak_tflops
from jaxformer.devices.mesh import put_rows
from jaxformer.devices.options import fixed_options
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import (
    Experiment,
    make_state,
    run_mesh,
    shapes_of,
    spans_of,
    trained_tokens,
    training_flops,
)
from jaxformer.flops import describe_parameters
from jaxformer.host.console import format_duration, format_size, print_line, print_wrapped
from jaxformer.model import abstract_model
from jaxformer.optimizer import decay_start
from jaxformer.plan.device_fit import (
    Fit,
    Target,
    advise,
    choose_fit,
    compiled_here,
    computed_with,
    device_to_come,
    fits,
    named_device,
    ways,
)
from jaxformer.step import TrainState, compile_step

# Steps that are timed for the estimate, after one that is not; and the longest that a step may take to be timed.
_TIMED_STEPS = 3
_TIMED_SECONDS = 5.0

# Of a device's peak, or of the rate of its large matmuls, where no step is timed: assumed. Trainings of such models
# reach 0.25 to 0.5 of an H100's peak (llm.c, nanochat, TorchTitan), the small ones least.
_UTILISATION = 0.4

# Of the process beside a step's arrays on a CPU, where nothing is prepared or compiled yet: 0.96 GB of the baseline,
# with Python 3.11 and JAX 0.10.2.
_PROCESS_BYTES = 960_000_000

# Time of a run from which on the verdict calls it too slow: 60 days.
_TOO_LONG = 60 * 86400.0


class Speed(NamedTuple):
    """How fast the steps of a run are."""

    step_seconds: float
    """Seconds of a step; of a run with phases, of the largest."""
    start_seconds: float
    """Seconds of compiling the step; 0 where nothing was compiled."""
    how: str
    """Where the numbers come from."""


@fixed_options()
def estimate_run_seconds(experiment: Experiment) -> float:
    """Returns how long a run will take here: compilation, steps and validations.

    By a few steps on random tokens where they take no more than seconds, and the run is one process, else by the rate
    of matmuls. Preparing the corpus comes on top.
    """
    target = device_to_come(experiment)
    return _run_seconds(experiment, _speed_here(_largest(experiment), target, _fit_here(experiment, target)))


@fixed_options()
def print_plan(experiment: Experiment, where: str = "here") -> None:
    """Prints what a run will take, on the device at hand or on a GPU by its name.

    Raises:
        UserError: no such GPU is known.
    """
    is_here = where == "here"
    target = device_to_come(experiment) if is_here else named_device(experiment, where)
    fit = _fit_here(experiment, target) if is_here else choose_fit(experiment, target)
    model, largest = experiment.model, _largest(experiment)
    T = largest.packing.row_length
    speed = _speed_here(largest, target, fit) if is_here else _speed_of(largest, target, fit)
    seconds = _run_seconds(experiment, speed)
    print_wrapped(f"verdict     {_describe_verdict(experiment, target, fit, seconds)}")
    print_wrapped(f"parameters  {describe_parameters(model, T)}")
    flops = training_flops(experiment)
    per_token = flops / trained_tokens(experiment) / 1e6
    print_wrapped(f"compute     {per_token:,.1f} MFLOPs per token, {flops:.3g} FLOPs in all")
    _print_tokens(experiment)
    _print_memory(experiment, target, fit)
    _print_disk(experiment, target, fit)
    hours, rate = seconds * target.devices / 3600, trained_tokens(largest, 1) / speed.step_seconds
    print_wrapped(
        f"time        {_format_long(seconds)}, {hours:,.2f} device hours, validation included "
        f"({target.devices} x {target.kind})"
    )
    print_wrapped(f"            {f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} tokens/s, {speed.how}")
    print_wrapped("            preparing the corpus and scoring the tasks come on top")
    params = nnx.to_pure_dict(nnx.state(abstract_model(model)))
    print_line(parameter_overview.get_parameter_overview(params, include_stats=False))


def _describe_verdict(experiment: Experiment, target: Target, fit: Fit, seconds: float) -> str:
    """Returns in a line whether a run fits the memory, and how long it takes."""
    memory, needed = target.memory or _host_memory(), fit.peak if target.memory else fit.peak + _PROCESS_BYTES
    does_fit = fits(fit) if target.memory else needed <= memory
    of_whom = f"{target.kind}'s" if target.memory else "this machine's"
    share = f"{format_size(needed)} of {of_whom} {format_size(memory)}"
    if not does_fit:
        return f"does not fit: {share}"
    return f"fits: {share}; {'but too slow: ' if seconds > _TOO_LONG else ''}takes {_format_long(seconds)}"


def _host_memory() -> int:
    """Returns the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _format_long(seconds: float) -> str:
    """Returns a time that may be of years."""
    days = seconds / 86400
    if days < 3:
        return format_duration(seconds)
    return f"{days:,.0f} days" if days < 730 else f"{days / 365.25:,.0f} years"


def _fit_here(experiment: Experiment, target: Target) -> Fit:
    return choose_fit(experiment, target, compiled_here(experiment, target, experiment.model.vocabulary_size))


def _largest(experiment: Experiment) -> Experiment:
    """Returns of `shapes_of` the one whose steps take the most operations, by which the others are reckoned."""
    return max(shapes_of(experiment), key=training_flops)


def _print_tokens(experiment: Experiment) -> None:
    first, *later = spans_of(experiment)
    tokens, steps = trained_tokens(experiment), experiment.training.steps
    each = "" if later else f"{first.tokens_per_step:,} a step, "
    print_wrapped(f"tokens      {each}{tokens:,} in {steps:,} steps{_passes(experiment, tokens)}")
    for span in (first, *later) if later else ():
        print_wrapped(f"            from step {span.first_step:,}: {span}")


def _passes(experiment: Experiment, tokens: int) -> str:
    """Returns how often a token is seen, where it is said how many there are."""
    known = [part.tokens for part in parts_of(experiment.corpus)]
    return f", {tokens / known[0]:.2g} x those of the corpus" if len(known) == 1 and known[0] else ""


def _print_memory(experiment: Experiment, target: Target, fit: Fit) -> None:
    m, rows = fit.memory, _largest(experiment).training.rows_per_step // fit.micro_batches // target.devices
    limit = f"; JAX may take {format_size(target.memory)} ({target.kind})" if target.memory else ""
    # There the blocks stand one after another, and XLA finds more room: up to a quarter is saved.
    about = "at most about " if target.platform == "cpu" else ""
    by = f"by the compiler ({format_size(m.peak)} by formula, whose parts follow)" if fit.compiled else "by formula"
    print_wrapped(f"memory      {about}{format_size(fit.peak)} on each device at a step's peak, {by}{limit}")
    state, gradients = m.parameters + m.optimizer, m.gradients + m.kernels + m.batch
    print_wrapped(
        f"            {format_size(state)} of state: {format_size(m.parameters)} parameters, the rest moments"
    )
    print_wrapped(f"            {format_size(gradients)} of gradients and of kernels in {jnp.dtype(target.dtype).name}")
    print_wrapped(
        f"            {format_size(m.saved)} kept for the backward pass: {format_size(m.attention)} by attention, "
        f"{format_size(m.feed_forward)} by feed-forwards, {format_size(m.stream)} of the stream"
    )
    most = "logits" if m.loss > m.backward else "a block's backward pass"
    print_wrapped(f"            {format_size(max(m.loss, m.backward))} at the peak alone: {most}")
    parts = f"{fit.micro_batches} micro-batch{'es' if fit.micro_batches > 1 else ''} of {rows} row{'s' * (rows > 1)}"
    print_wrapped(f"recompute   remat {fit.remat}, {parts}{_why(experiment, target, fit)}")


def _why(experiment: Experiment, target: Target, fit: Fit) -> str:
    fastest = next(ways(experiment, target))
    if target.memory and not fits(fit):
        return f": too much; {advise(experiment, target)}"
    if (fit.remat, fit.micro_batches) == (fastest.remat, fastest.micro_batches):
        return ""
    return (
        f": the cheapest that fits, at an estimated {fit.cost:.1%} more time; "
        f"the fastest, remat {fastest.remat} in {fastest.micro_batches}, would take "
        f"{format_size(fastest.memory.peak)}"
    )


def _print_disk(experiment: Experiment, target: Target, fit: Fit) -> None:
    known = [part.tokens for part in parts_of(experiment.corpus)]
    # Compression saves what the frames of records take (measured on prose).
    token_bytes = np.dtype(id_dtype(experiment.model.vocabulary_size)).itemsize
    size = (
        f"{format_size(sum(known) * token_bytes)}, {sum(known):,} tokens at most, twice that while preparing"
        if all(known)
        else "by its length"
    )
    checkpoint = (fit.memory.parameters + fit.memory.optimizer) * target.fsdp
    steps = experiment.training.steps
    most = most_kept(experiment.checkpoint, steps, decay_start(experiment.optimizer, steps))
    print_wrapped(f"disk        the corpus as tokens: {size}")
    print_wrapped(
        f"            {format_size(checkpoint * most)} of checkpoints at most, for {most} of {format_size(checkpoint)}"
    )


def _run_seconds(experiment: Experiment, speed: Speed) -> float:
    """Returns the seconds of compilation, steps and validations.

    A validation's tokens, of 4 bytes each, take a third of a training step's.
    """
    evaluation, largest = experiment.evaluation, _largest(experiment)
    tokens = len(parts_of(experiment.corpus)) * evaluation.validation_bytes / 4
    validations = -(-experiment.training.steps // evaluation.every_steps)
    steps = training_flops(experiment) / _step_flops(largest) + validations * tokens / (3 * trained_tokens(largest, 1))
    return speed.start_seconds * len(shapes_of(experiment)) + speed.step_seconds * steps


def _speed_here(experiment: Experiment, target: Target, fit: Fit) -> Speed:
    """Returns the speed of steps on random tokens, or, where those would take long, what matmuls say of it."""
    rate = _matmul_rate(target)
    estimated = _step_flops(experiment) * (1 + fit.cost) / (rate * target.devices * _UTILISATION)
    is_alone = experiment.mesh.processes == 1
    if is_alone and estimated <= _TIMED_SECONDS and (not target.memory or fits(fit)):
        training, V = experiment.training, experiment.model.vocabulary_size
        batch = random_batch(training.rows_per_step, experiment.packing.row_length, V)
        state = make_state(
            computed_with(experiment, fit.remat, fit.micro_batches), seed=0, mesh=run_mesh(experiment), token_count=V
        )
        compiled, seconds = _time_steps(state, batch)
        how = f"in {_TIMED_STEPS} steps on random tokens, after {compiled:.0f} s of compilation"
        return Speed(seconds, compiled, how)
    return Speed(estimated, 0.0, f"an estimate: {_UTILISATION:.0%} of what matmuls reach here, {_teraflops(rate)}")


def _speed_of(experiment: Experiment, target: Target, fit: Fit) -> Speed:
    tflops = peak_tflops(target.kind)
    if tflops is None:
        raise UserError(f"the peak of GPU {target.kind!r} is not known")
    peak = tflops * 1e12 * target.devices
    seconds = _step_flops(experiment) * (1 + fit.cost) / (peak * _UTILISATION)
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


def _time_steps(state: TrainState, batch: Batch) -> tuple[float, float]:
    """Returns the seconds that compiling the step takes, and those of a step; the state is used up."""
    started = time.perf_counter()
    batch = put_rows(state.mesh, batch)
    step = compile_step(state).lower(state, batch).compile()
    compiled = time.perf_counter() - started
    state, metrics = jax.block_until_ready(step(state, batch))
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return compiled, (time.perf_counter() - started) / _TIMED_STEPS


def random_batch(rows: int, row_length: int, vocabulary_size: int) -> Batch:
    """Returns rows of random tokens, one document each: the dearest case for attention."""
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
