"""A signal stops at once or where the run can be stopped; the second one is the system's."""

import os
import signal

import pytest

from jaxformer.host.signals import SIGNALS, Stopped, StopSignals

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_at_once_outside_of_a_deferred_block(number):
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name}") as stopped, StopSignals():
        os.kill(os.getpid(), number)
        pytest.fail("not stopped")
    assert stopped.value.number == number


@pytest.mark.parametrize("number", SIGNALS)
def test_deferred_signal_is_noted_said_and_the_next_is_left_to_the_system(number, capfd):
    with StopSignals() as signals, signals.deferred():
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * len(SIGNALS)
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\njaxformer: {name}: saving after this step; a second signal stops at once\n"


def test_signal_stops_what_runs_at_once_within_a_deferred_block():
    with pytest.raises(Stopped), StopSignals() as signals, signals.deferred(), signals.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not stopped")


def test_signal_that_came_before_stops_what_would_run_at_once():
    with pytest.raises(Stopped), StopSignals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.at_once():
            pytest.fail("not stopped")


def test_deferred_block_goes_on_after_what_ran_at_once():
    with StopSignals() as signals, signals.deferred():
        with signals.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_handlers_are_those_of_before_once_the_block_ends():
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped), StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
