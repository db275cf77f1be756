"""A signal stops at once or where the run can be stopped, and until it is seen; a second one ends the process."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from jaxformer.config import TrainingFailure
from jaxformer.host.signals import SIGNALS, Stopped, interruptible, noted_signals, stop_signals

pytestmark = [pytest.mark.device_free, pytest.mark.smoke, pytest.mark.usefixtures("default_signals")]


def wait_to_be_stopped():
    time.sleep(60)
    pytest.fail("not stopped")


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_at_once_outside_of_a_deferred_block(number):
    expected = f"^stopped by {signal.Signals(number).name}; come again$"
    with pytest.raises(Stopped, match=expected) as stopped, stop_signals("come again"):
        os.kill(os.getpid(), number)
        wait_to_be_stopped()
    assert stopped.value.number == number


@pytest.mark.parametrize("number", SIGNALS)
def test_deferred_signal_is_noted_and_announced_and_stops_where_it_is_no_longer_deferred(number, capfd):
    with pytest.raises(Stopped), stop_signals() as signals:
        with signals.deferred():
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received == number
        wait_to_be_stopped()
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\njaxformer: {name}: saving after this step; a second signal stops at once\n"


def test_signal_stops_what_runs_at_once_within_a_deferred_block():
    with pytest.raises(Stopped), stop_signals() as signals, signals.deferred(), signals.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_to_be_stopped()


def test_signal_that_came_before_stops_what_would_run_at_once():
    with pytest.raises(Stopped), stop_signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.at_once():
            pytest.fail("not stopped")


def test_what_a_deferred_block_says_of_a_signal_stays_however_long_cleaning_up_takes():
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM; step 7 is saved$"), stop_signals("come again") as signals:
        try:
            with signals.deferred():
                with contextlib.suppress(Stopped), signals.at_once():
                    os.kill(os.getpid(), signal.SIGTERM)
                    wait_to_be_stopped()
                raise Stopped(signal.SIGTERM, "step 7 is saved")
        finally:
            time.sleep(0.5)  # The watching thread looks every 0.1 s.


def test_error_that_ends_a_deferred_block_is_what_ends_it_though_a_signal_came():
    with pytest.raises(RuntimeError, match="the save failed"), stop_signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the save failed")


def test_failure_of_what_a_signal_began_is_what_ends_the_block():
    with pytest.raises(TrainingFailure, match="the save failed"), stop_signals() as signals, signals.deferred():
        try:
            with signals.at_once():
                os.kill(os.getpid(), signal.SIGTERM)
                wait_to_be_stopped()
        except Stopped:
            raise TrainingFailure("the save failed") from None


def test_deferred_block_goes_on_after_what_ran_at_once():
    with pytest.raises(Stopped), stop_signals() as signals, signals.deferred():
        with signals.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


class _Dying:
    """Sends a signal in its `__del__`, where Python discards what a handler raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass


def lose_in_del():
    _Dying()


def lose_in_garbage_collection():
    def callback(phase, info):
        if phase == "start":
            lost.append(os.kill(os.getpid(), signal.SIGTERM))
            for _ in range(1000):
                pass

    lost = []
    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)
    assert lost


def swallow():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_to_be_stopped()
    except BaseException:
        pass


@pytest.mark.parametrize("lose", [lose_in_del, lose_in_garbage_collection, swallow])
def test_what_a_handler_raised_and_python_or_a_library_discarded_is_raised_again(lose, capfd):
    with pytest.raises(Stopped), stop_signals():
        lose()
        wait_to_be_stopped()
    assert capfd.readouterr().err == ""


def test_error_that_a_library_made_of_it_is_not_taken_for_one_of_the_block():
    with pytest.raises(Stopped) as stopped, stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_to_be_stopped()
        except Stopped:
            raise RuntimeError("INTERNAL: Stopped") from None
    assert isinstance(stopped.value.__cause__, RuntimeError)


def test_what_cleans_up_after_a_signal_is_not_interrupted_again():
    cleaned = []
    with pytest.raises(Stopped), stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_to_be_stopped()
        finally:
            time.sleep(0.5)
            cleaned.append(True)
    assert cleaned


def test_signal_that_was_only_noted_is_raised_when_the_block_ends():
    with pytest.raises(Stopped), stop_signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    with stop_signals():  # Another block begins anew.
        time.sleep(0.2)


def test_inner_block_is_part_of_the_outer_one():
    ended = []
    with stop_signals("outer") as outer:
        with pytest.raises(Stopped, match="inner"), stop_signals("inner") as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGTERM)
            wait_to_be_stopped()
        time.sleep(0.3)  # It was seen: nothing more is raised.
        ended.append(True)
    assert ended


def test_handlers_are_those_of_before_once_the_block_ends():
    def state():
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        handlers = [signal.getsignal(each) for each in (*SIGNALS, signal.SIGURG)]
        return handlers, wakeup, sys.unraisablehook, threading.active_count()

    before = state()
    with pytest.raises(Stopped), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        wait_to_be_stopped()
    with noted_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGINT, signal.SIGTERM]
    assert state() == before


def test_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None


def test_nothing_is_taken_outside_of_the_main_thread():
    def run():
        with stop_signals() as signals, signals.deferred(), signals.at_once(), noted_signals() as received:
            done.append(received)

    done = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [[]]


# What a process prints once it is to be sent a signal, what it does then, and how it ends.
PROCESS = """
import hashlib, os, time
from jaxformer.host.signals import stop_signals

with stop_signals() as signals, signals.deferred():
    if {forks}:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"x")
            time.sleep(60)
        os.read(reading, 1)
        os.kill(child, 15)
        os.kill(child, 15)
        assert os.waitpid(child, 0)[1] == 15
        assert signals.received is None
    print("ready", flush=True)
    {then}
"""


@contextlib.contextmanager
def started(then: str, *, forks: bool = False) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-W", "ignore", "-c", PROCESS.format(then=then, forks=forks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            yield process
        finally:
            process.kill()


SLEEPS = "time.sleep(60)"
# As in a compilation: no instruction of Python, and so no handler, runs in the main thread.
COMPUTES = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize("then", [SLEEPS, COMPUTES])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_process_whatever_it_does(then, number):
    with started(then) as process:
        process.send_signal(number)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_signal_during_a_computation_is_announced_before_that_ends():
    with started(COMPUTES) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr
        assert process.stderr.readline() + process.stderr.readline() == (
            b"\njaxformer: SIGTERM: stopping once what is being computed is done; a second signal stops at once\n"
        )


def test_signals_within_a_moment_are_one():
    with started("time.sleep(1)") as process:
        # As `timeout` sends them, to the process and to its group.
        subprocess.run(["sh", "-c", f"kill -TERM {process.pid}; kill -TERM {process.pid}"], check=True)
        _, errors = process.communicate(timeout=30)
        assert b"Stopped: stopped by SIGTERM" in errors and process.returncode == 1


def test_block_ends_though_a_forked_process_outlives_it():
    begin = time.monotonic()
    with stop_signals():
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    took = time.monotonic() - begin
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert took < 20


def test_signals_of_a_forked_process_are_its_own():
    with started("pass", forks=True) as process:
        assert process.wait(30) == 0


def test_interruption_is_for_the_block_that_takes_it_and_the_next_one_stops():
    with pytest.raises(Stopped, match="SIGINT"), stop_signals():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), interruptible():
                signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped, match="SIGTERM"), stop_signals(), interruptible():
        signal.raise_signal(signal.SIGTERM)
