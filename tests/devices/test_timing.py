"""Times on a clock that only the timed functions advance."""

from collections import Counter
from itertools import groupby, repeat

import pytest

import jaxformer.devices.timing
from jaxformer.devices.timing import milliseconds

pytestmark = pytest.mark.device_free


class Machine:
    """A clock in seconds, and a device that works off what it is given while the host goes on."""

    def __init__(self):
        self.now = 0.0
        self.ready = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def function(self, name, *, works, launches=0.0):
        """Returns a function whose calls take these seconds on the host and on the device: one number, or for each."""
        works = iter(works) if isinstance(works, list) else repeat(works)

        def call():
            self.calls.append(name)
            self.now += launches
            self.ready = max(self.ready, self.now) + next(works)
            return {"output": Pending(self, self.ready)}

        return call


class Pending:
    """An array that is there as soon as the device has computed it."""

    def __init__(self, machine, ready):
        self.machine, self.ready = machine, ready

    def block_until_ready(self):
        self.machine.now = max(self.machine.now, self.ready)
        return self


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(jaxformer.devices.timing, "time", machine)
    return machine


# Each function is called once to compile it and once to find how often it is called in a turn.


def test_time_is_the_median_of_the_turns(machine):
    slow = machine.function("slow", works=[0, 1, 5, 2, 90, 3, 4])
    fast = machine.function("fast", works=[0, 1, 0.5, 0.25, 0.125, 1, 2])
    times, failures = milliseconds({"slow": slow, "fast": fast}, rounds=5, round_seconds=1)
    assert times == {"slow": 4000, "fast": 500}
    assert failures == {}


def test_time_of_a_turn_is_that_of_one_of_its_calls(machine):
    # After the probe of 2 seconds a turn has 8 / 2 calls.
    function = machine.function("a", works=[0, 2, *[1, 2, 3, 6], *[2, 2, 2, 2], *[9, 9, 9, 9]])
    assert milliseconds({"a": function}, rounds=3, round_seconds=8)[0] == {"a": 3000}
    assert len(machine.calls) == 1 + 1 + 3 * 4


def test_turns_are_about_as_long_as_asked_whatever_a_function_takes(machine):
    functions = {name: machine.function(name, works=seconds) for name, seconds in (("a", 0.25), ("b", 4), ("c", 100))}
    assert milliseconds(functions, rounds=3, round_seconds=8)[0] == {"a": 250, "b": 4000, "c": 100_000}
    assert Counter(machine.calls) == {"a": 2 + 3 * 32, "b": 2 + 3 * 2, "c": 2 + 3 * 1}


def test_the_first_call_which_compiles_counts_neither_as_time_nor_for_the_length_of_a_turn(machine):
    function = machine.function("a", works=[1000, *[0.5] * 7])
    assert milliseconds({"a": function}, rounds=1, round_seconds=3)[0] == {"a": 500}
    assert len(machine.calls) == 2 + 6


def test_functions_take_turns(machine):
    functions = {name: machine.function(name, works=1 / 4) for name in "abc"}
    milliseconds(functions, rounds=3, round_seconds=1)
    turns = [(name, len(list(calls))) for name, calls in groupby(machine.calls)]
    assert turns == [("a", 2), ("b", 2), ("c", 2)] + 3 * [("a", 4), ("b", 4), ("c", 4)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("out of shared memory", "ValueError: out of shared memory"),
        ("\n  of two lines\nor three", "ValueError: of two lines"),
        ("", "ValueError: -"),
    ],
)
def test_a_function_that_raises_is_reported_with_its_reason_in_a_line_and_the_others_are_timed(
    machine, message, reason
):
    def refuses():
        machine.calls.append("refuses")
        raise ValueError(message)

    functions = {"a": machine.function("a", works=2), "refuses": refuses, "b": machine.function("b", works=3)}
    assert milliseconds(functions, rounds=3, round_seconds=1) == ({"a": 2000, "b": 3000}, {"refuses": reason})
    assert machine.calls.count("refuses") == 1
    assert milliseconds({"refuses": refuses}) == ({}, {"refuses": reason})


def test_a_function_that_fails_only_when_its_result_is_waited_for_is_reported_too(machine):
    class Failed:
        def block_until_ready(self):
            raise RuntimeError("illegal address")

    functions = {"a": Failed, "b": machine.function("b", works=2)}
    assert milliseconds(functions) == ({"b": 2000}, {"a": "RuntimeError: illegal address"})


def test_the_devices_work_counts_and_the_launch_of_a_call_does_not_where_the_device_is_still_at_work(machine):
    # The probe takes 1 + 4 seconds, a turn of eight calls 1 + 8 x 4: the first launch alone is waited for.
    function = machine.function("a", works=4, launches=1)
    assert milliseconds({"a": function}, rounds=3, round_seconds=40)[0] == {"a": 33_000 / 8}


def test_nothing_to_time_takes_no_time(machine):
    assert milliseconds({}) == ({}, {})
