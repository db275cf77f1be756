"""Timing of functions on the device."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)


def milliseconds(
    functions: Mapping[Name, Callable[[], Any]], *, rounds: int = 7, round_seconds: float = 0.03
) -> tuple[dict[Name, float], dict[Name, str]]:
    """Returns `(times, failures)`: the median milliseconds of one call of each function, and why others raised.

    The functions take turns, so that a change of the machine's speed affects all of them. In a turn a function is
    called several times before waiting for the device, to measure its work and not the time to launch it.

    Args:
        functions: by name; each returns arrays. The first call, which compiles, is not counted.
        rounds: turns of each function.
        round_seconds: about how long a turn is.
    """
    calls: dict[Name, int] = {}
    failures: dict[Name, str] = {}
    for name, function in functions.items():
        try:
            jax.block_until_ready(function())
        except Exception as error:  # It may ask for more memory than this device has, or for another device.
            failures[name] = describe_failure(error)
        else:
            calls[name] = max(1, round(round_seconds / _seconds(function, 1)))
    turns: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, count in calls.items():
            turns[name].append(1e3 * _seconds(functions[name], count) / count)
    return {name: statistics.median(times) for name, times in turns.items()}, failures


def describe_failure(error: Exception) -> str:
    """Returns in a line why a function raised."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


def _seconds(function: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        result = function()
    jax.block_until_ready(result)
    return time.perf_counter() - started
