"""Which way to compute a step is the fastest on this machine's GPU: a few are timed, if the run is long enough to pay.

They are those with the lowest estimated cost that fit once compiled. They are timed on the first batch of the run, or
of its first phase, with a state of their own that is freed: nothing of the run changes.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.attention.dispatch import Implementation
from jaxformer.data.packing import Batch
from jaxformer.devices.fastest import Fastest, Timer, take_fastest, time_ways
from jaxformer.devices.mesh import put_rows
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import Experiment, make_state, run_mesh
from jaxformer.host.console import print_notice, print_wrapped, show_status
from jaxformer.plan.device_fit import MOST_UNROLLED, TOO_MUCH_BY_FORMULA, Fit, Target, computed_with, fits, ways
from jaxformer.run.durations import step_digest
from jaxformer.run.identity import timed_with

# The most ways that are timed, and that are compiled to find those that fit.
_MOST_TIMED, _MOST_COMPILED = 4, 8

# Share of the time of a run's steps that compiling and timing may take.
_SHARE = 0.01

# Seconds to compile a step with a loop over blocks, and for each block of one without: from `MOST_UNROLLED` blocks,
# doubled for a busy host.
_COMPILING, _COMPILING_BLOCK = 20.0, 1.0

# Steps of each way: a warm-up, one to see how long it takes, and the timed ones.
_ROUNDS = 5
_STEPS = 2 + _ROUNDS

time_steps = functools.partial(milliseconds, rounds=_ROUNDS, round_seconds=0.0)


def kept_way(experiment: Experiment, target: Target) -> Fit | None:
    """Returns the way that was timed as the fastest here, if there is one and it fits."""
    return None if target.platform == "cpu" else _taken(experiment, target, lambda: None)


def fastest_way(
    experiment: Experiment,
    target: Target,
    compiled: Callable[[Fit], Fit],
    *,
    batch: Batch,
    token_count: int,
    attention: Implementation,
    seconds: Callable[[], float],
    timer: Timer = time_steps,
) -> Fit | None:
    """Returns the way timed as the fastest, now if no result is kept; None if the estimate should decide.

    That is so if the run is too short, if fewer than two ways are open and fit, and if several processes compute a step
    together: one in which a way fails would leave the others waiting.

    Args:
        compiled: as of `choose_fit`.
        batch: the first one of the run, on the host.
        token_count, attention: of the run.
        seconds: returns the estimated seconds of all steps of the run.
        timer: of steps.
    """

    def time() -> Fastest | None:
        if jax.process_count() > 1 or len({_kind(fit) for fit in _open_ways(experiment, target)}) < 2:
            return None
        most = affordable(experiment, seconds())
        candidates = ways_to_time(experiment, target, compiled, most) if most > 1 else []
        if len(candidates) < 2:
            return None
        show_status("timing the step")
        return _time(candidates, batch, token_count, attention, timer)

    return _taken(experiment, target, time)


def affordable(experiment: Experiment, seconds: float) -> int:
    """Returns how many ways may be compiled and timed, given the seconds of all steps of the run."""
    compiling = _COMPILING + _COMPILING_BLOCK * (experiment.model.depth if _can_unroll(experiment) else 0)
    each = compiling + _STEPS * seconds / experiment.training.steps
    return min(_MOST_COMPILED, int(_SHARE * seconds / each))


def ways_to_time(experiment: Experiment, target: Target, compiled: Callable[[Fit], Fit], most: int) -> list[Fit]:
    """Returns the compiled ways that fit with the lowest estimated cost; of equal ones, with the fewest micro-batches.

    A loop over the blocks and none are different ways, even if the formula gives them the same memory.

    Args:
        compiled: as of `choose_fit`.
        most: how many are compiled.
    """
    found: dict[tuple, Fit] = {}
    likely = (
        fit
        for fit in _open_ways(experiment, target)
        if _kind(fit) not in found and fit.memory.peak <= TOO_MUCH_BY_FORMULA * target.memory
    )
    for fit in itertools.islice(likely, most):
        fit = compiled(fit)
        if fit.program is not None and fits(fit):
            found[_kind(fit)] = fit
        if len(found) == _MOST_TIMED:
            break
    return [*found.values()]


def _open_ways(experiment: Experiment, target: Target) -> Iterator[Fit]:
    return ways(experiment, target, unrolls=(1, experiment.model.depth) if _can_unroll(experiment) else (1,))


def _kind(fit: Fit) -> tuple[str, int]:
    return fit.remat, fit.scan_unroll


def _can_unroll(experiment: Experiment) -> bool:
    return not experiment.model.scan_unroll and experiment.model.depth <= MOST_UNROLLED


def _time(
    candidates: Sequence[Fit], batch: Batch, token_count: int, attention: Implementation, timer: Timer
) -> Fastest:
    """Returns the fastest of several compiled ways, which take turns with one state; prints what each takes."""
    experiment, mesh = candidates[0].experiment, run_mesh(candidates[0].experiment)
    of_batch = jax.tree.leaves(put_rows(mesh if mesh.size > 1 else None, batch))
    left: list[list[jax.Array]] = []  # The arrays of the state after the last step; none if it failed.

    def take_step(program: Any) -> dict[str, jax.Array]:
        if not left:
            left.append(jax.tree.leaves(make_state(experiment, 0, attention, mesh, token_count=token_count)))
        of_state = left.pop()
        (state, batch), _ = jax.tree.unflatten(program.in_tree, [*of_state, *of_batch])
        state, metrics = program(state, batch)
        left.append(jax.tree.leaves(state))
        return metrics

    named = {str(fit): (_choice(fit), functools.partial(take_step, fit.program)) for fit in candidates}
    fastest = time_ways("step", named, timer, advice="set model.remat and training.micro_batches")
    for name, time in fastest.times.items():
        print_wrapped(f"memory      a step with {name} takes {time:.3g} ms")
    for name, reason in fastest.failures.items():
        print_notice(f"the step with {name} fails: {reason}")
    return fastest


def _choice(fit: Fit) -> dict[str, Any]:
    how = {"remat": fit.remat, "micro_batches": fit.micro_batches, "scan_unroll": fit.scan_unroll}
    return {**how, "bytes": fit.compiled}


def _taken(experiment: Experiment, target: Target, time: Callable[[], Fastest | None]) -> Fit | None:
    """Returns the way kept as an experiment's fastest, or timed now, if it fits."""
    on = {"data": target.data, "fsdp": target.fsdp, "memory_gb": target.memory // 10**9}
    of = {"attention": target.attention, "dtype": jnp.dtype(target.dtype).name, "step": step_digest(experiment)}
    fastest = take_fastest("step", {**timed_with(), **on, **of}, time)
    if fastest is None:
        return None
    how = {name: value for name, value in fastest.choice.items() if name != "bytes"}
    (fit,) = ways(computed_with(experiment, **how), target)
    count, best = len(fastest.times), next(iter(fastest.times.values()))
    timed = f"the fastest of {count} that were timed: {best:.3g} ms, on {fastest.date}"
    timed += "".join(f"; {name} failed ({reason})" for name, reason in fastest.failures.items())
    fit = replace(fit, compiled=fastest.choice["bytes"], timed=timed)
    return fit if fits(fit) else None
