"""Measures the ratio of a variant's and its parent's time per token: the steps of both in turns, on one device.

Taking turns, both arms share whatever slows the machine. The compiled training step on real batches of each arm is
timed, without reading data, validation and checkpoints.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.ablation.clock import LEVEL, Clock, median_interval, write_clock
from jaxformer.ablation.finished_runs import FinishedRun, load_finished_run
from jaxformer.attention.dispatch import Implementation, implementation_from
from jaxformer.config import require
from jaxformer.data.packing import make_phased_batches, seek
from jaxformer.data.phases import span_at
from jaxformer.devices.device import choose_device, keep_compiled, out_of_memory_reported
from jaxformer.devices.mesh import put_rows
from jaxformer.devices.options import fixed_options
from jaxformer.experiment.experiment import Experiment, make_state, run_mesh, spans_of
from jaxformer.experiment.files import load_parts
from jaxformer.run.folder import describe_environment
from jaxformer.run.init_from import with_tokenizer
from jaxformer.run.inputs import prepare_data
from jaxformer.step import compile_step

# About how long a turn is, in seconds: long compared with a wait for the device.
_TURN_SECONDS = 0.05

# The fewest rounds. A round is four turns.
_FEWEST_ROUNDS = 12

# Half-width of the ratio's interval that is narrow enough, and one that is enough after some seconds: on a busy machine
# it is worth waiting until equal arms do not seem different.
_PRECISION, _COARSE_PRECISION = 0.01, 0.03
_SECONDS, _MOST_SECONDS = 40.0, 160.0

# Batches that the steps of an arm take in turn: how long attention takes may depend on the documents.
_BATCHES = 8

# Batches of a run with phases, spread over the run: a phase of a twentieth of the steps gives one of them. All of them
# count as one step.
_PHASED_BATCHES = 20

# Keys of a run's record that must be the same here.
_SAME_HERE = ("code", "device", "devices", "environment")


class TimedSteps(NamedTuple):
    """The training steps of an experiment."""

    take: Callable[[int], None]
    """Takes so many steps, and returns when the device is done."""
    tokens: int
    """Tokens of a step, or of the batches that count as one."""


def measure_clock(parent_run: Path, variant_run: Path, own_files: Sequence[Path] = ()) -> None:
    """Measures two arms, given by run folders of one seed, and writes the result beside the variant's runs.

    Call it in a process of its own: it takes the number of cores that the runs had, or the fewer of both, and the
    device.

    Args:
        own_files: with the code of their own parts, which are run.

    Raises:
        UserError: their data or own code are gone, or device or code differ from theirs.
    """
    for path in own_files:
        load_parts(path)
    parent, variant = load_finished_run(parent_run), load_finished_run(variant_run)
    cores = min(parent.record["cores"], variant.record["cores"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    keep_compiled()
    choose_device(parent.experiment.training.device)
    with fixed_options(), out_of_memory_reported(lambda: "it must hold the states of both at once"):
        arms = [_steps_of(run, cores) for run in (parent, variant)]
        write_clock(Clock(tuple(time_in_turns(arms))), parent, variant)


def clock_seconds(arms: Sequence[Experiment], step_seconds: float) -> float:
    """Returns the most seconds to measure two arms, without compiling their steps, on a quiet machine.

    Args:
        step_seconds: of a step of the slower arm.
    """
    as_one = _PHASED_BATCHES if any(len(spans_of(each)) > 1 for each in arms) else 1
    return max(_SECONDS, 4 * _FEWEST_ROUNDS * max(as_one * step_seconds, _TURN_SECONDS))


def _steps_of(run: FinishedRun, cores: int) -> TimedSteps:
    experiment, record = run.experiment, run.record
    attention = implementation_from(record["attention"])
    here = describe_environment(attention, jax.devices()[0].device_kind, run_mesh(experiment).size)
    for name in _SAME_HERE:
        require(record.get(name) == here[name], f"{run.workdir} ran with {name} {record.get(name)}, here: {here[name]}")
    is_like = jax.default_backend() != "cpu" or here["cores"] == cores
    require(is_like, f"{run.workdir} ran with {record['cores']} cores, here: {here['cores']}")
    if experiment.init_from:  # Its weights do not matter: only the tokenizer is needed, and the run has kept it.
        experiment = with_tokenizer(experiment, run.workdir)
    return make_timed_steps(experiment, run.seed, attention)


def make_timed_steps(experiment: Experiment, seed: int, attention: Implementation | None = None) -> TimedSteps:
    """Returns the compiled training steps of an experiment, from initial values drawn by the seed.

    Raises:
        UserError: its data cannot be prepared, or its device is missing.
    """
    data, spans = prepare_data(experiment, seed), spans_of(experiment)
    state = make_state(experiment, seed, attention, run_mesh(experiment), token_count=data.tokenizer.vocabulary_size)
    batches = make_phased_batches(data.shards, data.plans, spans, experiment.packing, seed=seed)
    numbers, of_one, tokens = list(range(_BATCHES)), 1, spans[0].tokens_per_step
    if len(spans) > 1:  # Steps spread evenly over the run then count as one.
        of_one = _PHASED_BATCHES
        numbers = [(2 * i + 1) * experiment.training.steps // (2 * of_one) for i in range(of_one)]
        tokens = sum(span_at(spans, number).tokens_per_step for number in numbers)
    ready = []
    for number in numbers:
        seek(batches, number)
        ready.append(jax.device_put(put_rows(state.mesh, next(batches))))
    jitted, steps_by_shape = compile_step(state), {}
    for batch in ready:
        shape = batch.tokens_BT.shape
        if shape not in steps_by_shape:
            steps_by_shape[shape] = jitted.lower(state, batch).compile()
    turn = itertools.cycle(ready)

    def take(steps: int) -> None:
        nonlocal state
        for batch in itertools.islice(turn, steps * of_one):
            state, _ = steps_by_shape[batch.tokens_BT.shape](state, batch)
        jax.block_until_ready(state)

    return TimedSteps(take, tokens)


def time_in_turns(arms: Sequence[TimedSteps], seconds: Callable[[], float] = time.perf_counter) -> list[float]:
    """Returns, for each round, the logarithm of the second arm's time per token over the first's.

    A round is ABBA or BAAB, so that an even speed-up or slow-down of the machine affects both alike. The order is drawn
    at random, so that nothing periodic, such as a limit of processor time, keeps step with the turns. Rounds follow
    until the interval of their median is narrow, wherever it lies, or time is up; a wide interval decides nothing.

    A turn is as many tokens of either arm. The median of short turns is less disturbed than that of long ones, which
    would make equal arms seem different. (With turns of equal seconds, by an estimate for each arm, two pairs of equals
    differed by 6 and 8 % on a machine with ten processes for each core.)

    Args:
        arms: the parent's and the variant's.
        seconds: the clock.
    """

    def time_of(arm: TimedSteps, steps: int) -> float:
        before = seconds()
        arm.take(steps)
        return seconds() - before

    # The first call of a compiled step is slower.
    slowest = max(min([time_of(arm, 1) for _ in range(6)][1:]) / arm.tokens for arm in arms)
    tokens = max(_TURN_SECONDS / slowest, *(arm.tokens for arm in arms))
    counts = [round(tokens / arm.tokens) for arm in arms]
    random, started, found = np.random.default_rng(0), seconds(), []
    while True:
        outer = int(random.integers(2))
        logs = [0.0, 0.0]
        for i in (outer, 1 - outer, 1 - outer, outer):
            logs[i] += math.log(time_of(arms[i], counts[i]) / (counts[i] * arms[i].tokens))
        found.append((logs[1] - logs[0]) / 2)
        if len(found) >= _FEWEST_ROUNDS and len(found) % 4 == 0:
            low, high = median_interval(found, LEVEL)
            elapsed = seconds() - started
            precision = _PRECISION if elapsed < _SECONDS else _COARSE_PRECISION
            if high - low <= 2 * precision or elapsed >= _MOST_SECONDS:
                return found
