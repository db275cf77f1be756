"""Worker processes give what one process gives, and end with it."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import jaxformer
from jaxformer.config import UserError
from jaxformer.host import workers as module
from jaxformer.host.workers import Ready, Workers, usable_memory, usable_processors

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def waited(argument: float) -> float:
    """Returns the argument after so many seconds: the first of some is not the first to be done."""
    time.sleep(argument)
    return argument


def refused_at(number: int, argument: int) -> int:
    if argument == number:
        raise UserError(f"{argument} is refused")
    return argument


def own_process(argument: int) -> int:
    return os.getpid()


def killed(argument: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(argument: int) -> float:
    return argument / 0


def computed(function, arguments, count: int) -> list:
    """Returns the results in order up to the first error, and that."""
    found = []
    try:
        with Workers(count, advice="try less") as workers:
            found.extend(workers.map(function, arguments))
    except (UserError, ArithmeticError) as error:
        found.append(error)
    return found


def test_results_come_in_order_whichever_is_done_first_and_whether_they_are_there_already():
    arguments = [0.2, 0.0, Ready(5), 0.1, 0.0, Ready(6), 0.0]
    assert computed(waited, arguments, 3) == computed(waited, arguments, 1) == [0.2, 0.0, 5, 0.1, 0.0, 6, 0.0]


def test_several_functions_are_computed_by_the_same_processes():
    with Workers(2) as workers:
        first = set(workers.map(own_process, range(20)))
        assert list(workers.map(waited, [0.0])) == [0.0]
        assert first >= set(workers.map(own_process, range(20))) and os.getpid() not in first


def test_arguments_are_taken_a_few_ahead_and_none_for_one_who_takes_no_more_results():
    taken = []
    with Workers(2) as workers:
        results = workers.map(waited, (taken.append(i) or 0.0 for i in range(99)))
        next(results)
        results.close()
        assert len(taken) == 5


def broken_off(numbers):
    """Yields numbers, and then raises what a reader raises."""
    yield from numbers
    raise UserError("the file ends here")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("number", "last"), [(2, "2 is refused"), (6, "6 is refused"), (9, "the file ends here")])
def test_the_first_error_in_order_ends_them_whoever_raises_it(number, last, count):
    *results, error = computed(partial(refused_at, number), broken_off(range(8)), count)
    assert results == list(range(min(number, 8))) and str(error) == last


def test_a_fault_of_a_worker_is_raised_with_its_kind_and_place():
    (error,) = computed(wrong, [1], 2)
    assert isinstance(error, ZeroDivisionError) and "in wrong" in error.__notes__[0]


def test_a_worker_that_the_system_kills_ends_them_in_one_line():
    (error,) = computed(killed, [1], 2)
    assert str(error) == "a worker process was killed by SIGKILL, as the system does where memory runs out; try less"


PARENT = """
import os, sys, time
from jaxformer.host.workers import Workers
from test_workers import own_process, waited
with Workers(2) as idle, Workers(2) as busy:
    results = busy.map(waited, [0, 60])
    next(results)
    print(next(idle.map(own_process, [0])), flush=True)
    next(results)
"""


def state_and_parent(process: int) -> tuple[str, int]:
    """Returns the letter of a process's state, 'Z' for one that has ended, and the process that started it."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return state, int(parent)
    except OSError:
        return "Z", 0


def is_running(process: int) -> bool:
    return state_and_parent(process)[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux shows them")
def test_workers_ignore_the_signals_of_their_group_and_end_with_who_started_them():
    places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=places) as parent:
        assert parent.stdout and int(parent.stdout.readline())
        processes = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        workers = [each for each in processes if state_and_parent(each)[1] == parent.pid]
        assert len(workers) == 3
        for each in workers:
            os.kill(each, signal.SIGINT)
            os.kill(each, signal.SIGTERM)
        time.sleep(0.2)
        assert all(map(is_running, workers))
        parent.kill()
    end = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < end, "a worker outlives the process that started it"
        time.sleep(0.05)


def test_worker_computes_with_this_package_whatever_the_path_and_the_folder_hold(tmp_path):
    """As of a notebook that has changed its folder, where another version is installed."""
    decoy = tmp_path / "decoy" / "jaxformer"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise SystemExit('the decoy')")
    package = Path(jaxformer.__file__).parents[1]
    program = f"""
import os, sys
decoy, package = {os.fspath(tmp_path / "decoy")!r}, {os.fspath(package)!r}
sys.path[:] = ["", decoy, *[each for each in sys.path if each not in ("", package)]]
import jaxformer
os.chdir({os.fspath(tmp_path)!r})
from jaxformer.host.workers import Workers
with Workers(2) as workers:
    print(*workers.map(len, [[1, 2]]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-"], input=program, cwd=package, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_worker_that_cannot_start_is_reported_with_its_reason(monkeypatch):
    monkeypatch.setattr("jaxformer.host.workers._SERVE", "raise SystemExit('no such library')")
    (error,) = computed(waited, [0.0], 2)
    assert str(error) == "a worker process ended with status 1 (no such library)"


def test_worker_whose_memory_does_not_hold_an_argument_ends(monkeypatch):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)); "
    monkeypatch.setattr("jaxformer.host.workers._SERVE", limited + module._SERVE)
    (error,) = computed(len, [bytes(500 << 20)], 2)
    assert str(error).startswith("a worker process ended with status 1")


def test_processors_and_memory_are_no_more_than_a_container_has(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("jaxformer.host.workers._QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for text, expected in (("max 100000", 64), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 64)):
        quota.write_text(text)
        assert usable_processors() == expected
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("jaxformer.host.workers._MEMORY_LIMIT", limit)
    whole = usable_memory()
    for text, expected in (("max", whole), ("1000000", 1_000_000), (str(2**60), whole)):
        limit.write_text(text)
        assert usable_memory() == expected
