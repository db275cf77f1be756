"""What a run will cost, before any data is read: parameters, FLOPs, memory, disk and time."""

import math

import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import nnx

from jaxformer.checkpoint.retention import most_kept
from jaxformer.data.corpus import parts_of
from jaxformer.data.shards import id_dtype
from jaxformer.devices.device import PROCESS_BYTES
from jaxformer.devices.options import fixed_options
from jaxformer.experiment.experiment import Experiment, spans_of, trained_tokens, training_flops
from jaxformer.flops import describe_parameters
from jaxformer.host.console import format_duration, format_size, print_line, print_wrapped, show_status
from jaxformer.host.workers import usable_memory
from jaxformer.model import abstract_model
from jaxformer.optimizer import decay_start
from jaxformer.plan.device_fit import (
    Fit,
    Target,
    advise,
    choose_fit,
    device_to_come,
    fits,
    named_device,
    ways,
)
from jaxformer.plan.run_time import (
    TOKEN_BYTES,
    Seconds,
    Speed,
    compiled_on_cpu,
    fit_here,
    largest_shape,
    run_seconds,
    speed_here,
    speed_of,
    text_bytes,
)
from jaxformer.plan.timed_loss import with_kept_loss
from jaxformer.run.durations import Durations, recall_durations

# A longer run is called too slow: 60 days.
_TOO_LONG = 60 * 86400.0


@fixed_options()
def print_plan(experiment: Experiment, where: str = "here") -> None:
    """Prints what a run will take, on this machine's device or on a GPU by its name.

    Raises:
        UserError: no such GPU is known.
    """
    show_status("planning the run")
    is_here = where == "here"
    target = device_to_come(experiment) if is_here else named_device(experiment, where)
    experiment = with_kept_loss(experiment, target) if is_here else experiment
    fit = fit_here(experiment, target) if is_here else choose_fit(experiment, target)
    known = recall_durations(fit.experiment) if is_here else Durations()
    speed = speed_here(experiment, target, fit, known) if is_here else speed_of(experiment, target, fit)
    fit = compiled_on_cpu(fit, speed)
    seconds, model = run_seconds(experiment, known, speed), experiment.model
    show_status()
    print_wrapped(f"verdict     {_describe_verdict(target, fit, known, seconds.total)}")
    print_wrapped(f"parameters  {describe_parameters(model, largest_shape(experiment).packing.row_length)}")
    flops = training_flops(experiment)
    per_token = flops / trained_tokens(experiment) / 1e6
    print_wrapped(f"compute     {per_token:,.1f} MFLOPs per token, {flops:.3g} FLOPs in all")
    _print_tokens(experiment, known)
    _print_memory(experiment, target, fit)
    _print_disk(experiment, target, fit)
    _print_time(experiment, target, known, speed, seconds)
    params = nnx.to_pure_dict(nnx.state(abstract_model(model)))
    print_line(parameter_overview.get_parameter_overview(params, include_stats=False))


def _describe_verdict(target: Target, fit: Fit, known: Durations, seconds: float) -> str:
    """Returns a line on whether a run fits the memory, and how long it takes."""
    needed = known.peak_memory  # Of an earlier run here, which fitted.
    is_cpu, has_fitted = target.platform == "cpu", math.isfinite(needed)
    if not has_fitted:
        needed = fit.peak + (PROCESS_BYTES if is_cpu else 0)
    if not target.memory:
        word, share = "memory unknown", f"{format_size(needed)} of a {target.kind}'s"
    else:
        word = "fits" if has_fitted or fits(fit) else "does not fit"
        has, whose = (usable_memory(), "this machine's") if is_cpu else (target.memory, f"{target.kind}'s")
        share = f"{format_size(needed)} of {whose} {format_size(has)}"
    if word == "does not fit":
        return f"{word}: {share}"
    return f"{word}: {share}; {'but too slow: ' if seconds > _TOO_LONG else ''}takes {_format_long(seconds)}"


def _format_long(seconds: float) -> str:
    """Returns a time as text, up to years."""
    days = seconds / 86400
    if days < 3:
        return format_duration(seconds)
    return f"{days:,.0f} days" if days < 730 else f"{days / 365.25:,.0f} years"


def _print_tokens(experiment: Experiment, known: Durations) -> None:
    first, *later = spans_of(experiment)
    tokens, steps = trained_tokens(experiment), experiment.training.steps
    each = "" if later else f"{first.tokens_per_step:,} a step, "
    print_wrapped(f"tokens      {each}{tokens:,} in {steps:,} steps{_passes(experiment, known, tokens)}")
    for span in (first, *later) if later else ():
        print_wrapped(f"            from step {span.first_step:,}: {span}")


def _passes(experiment: Experiment, known: Durations, tokens: int) -> str:
    """Returns how often a token is seen, if the number of tokens is known."""
    if math.isfinite(known.corpus_tokens):
        return f", {tokens / known.corpus_tokens:.2g} x the corpus"
    if size := text_bytes(experiment):
        return f", about {tokens / (size / TOKEN_BYTES):.2g} x the corpus ({format_size(size)} of text)"
    budgets = [part.tokens for part in parts_of(experiment.corpus)]
    return f", {tokens / budgets[0]:.2g} x the corpus" if len(budgets) == 1 and budgets[0] else ""


def _print_time(experiment: Experiment, target: Target, known: Durations, speed: Speed, seconds: Seconds) -> None:
    hours = seconds.total * target.devices / 3600
    print_wrapped(
        f"time        {_format_long(seconds.total)}, {hours:,.2f} device hours ({target.devices} x {target.kind})"
    )
    parts = zip(("preparing the data", "starting and compiling", "steps", "evaluations"), seconds, strict=True)
    shares = ", ".join(f"{_format_long(each)} {what}" for what, each in parts if math.isfinite(each))
    print_wrapped(f"            {shares}")
    rate = trained_tokens(largest_shape(experiment), 1) / speed.step_seconds
    print_wrapped(f"            {f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} tokens/s, {speed.how}")
    on_top = ["preparing the corpus"] if math.isnan(seconds.data) else []
    are_scored = experiment.evaluation.task_data and math.isnan(known.first_evaluation)
    on_top += ["scoring the tasks"] if are_scored else []
    if on_top:
        print_wrapped(f"            {' and '.join(on_top)} come{'s' * (len(on_top) == 1)} on top")


def _print_memory(experiment: Experiment, target: Target, fit: Fit) -> None:
    m, rows = fit.memory, largest_shape(experiment).training.rows_per_step // fit.micro_batches // target.devices
    limit = f"; JAX may take {format_size(target.memory)} ({target.kind})" if target.memory else ""
    about = "about " if target.platform == "cpu" else ""
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
    print_wrapped(f"            {format_size(max(m.loss, m.backward))} only at the peak: {most}")
    if target.platform != "cpu":
        host = format_size(PROCESS_BYTES + state * target.devices)
        print_wrapped(f"            and about {host} of the host's memory, with a copy of the state while it is saved")
    parts = f"{fit.micro_batches} micro-batch{'es' if fit.micro_batches > 1 else ''} of {rows} row{'s' * (rows > 1)}"
    print_wrapped(f"recompute   remat {fit.remat}, {parts}{_why(experiment, target, fit)}")


def _why(experiment: Experiment, target: Target, fit: Fit) -> str:
    fastest = next(ways(experiment, target))
    if target.memory and not fits(fit):
        return f": too much; {advise(experiment, target)}"
    if fit.timed:
        return f": {fit.timed}"
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
