"""A queue runs every job once to its end, whoever dies on the way; its jobs here are a script that trains nothing."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxformer.config import UserError
from jaxformer.host.lock import LOCK, hold
from jaxformer.host.signals import Stopped
from jaxformer.jobs import queue
from jaxformer.jobs.dashboard import Dashboard, status_table
from jaxformer.jobs.launch import HEADER, Job, launch_local, launch_submitit
from jaxformer.jobs.queue import Queue, State, Status, _phase

pytestmark = [pytest.mark.device_free, pytest.mark.usefixtures("default_signals")]

# A job that saves every third step, keeps a lock, and does what `mode` says at step 5 of its first processes.
FAKE = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
from jaxformer.host.files import write_whole
from jaxformer.host.lock import Held, hold

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
workdir, steps, mode = Path(options["workdir"]), int(options["steps"]), options.get("mode", "")
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if mode == "refuse":
    print("a warning", "jaxformer: heads (6) must divide width (512)", "a farewell", sep="\\n", file=sys.stderr)
    sys.exit(2)
if (workdir / "summary.json").exists():
    sys.exit(0)
time.sleep(float(options.get("prepare", 0)))
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
    file.write("start\\n")
try:
    lock = hold(workdir / ".lock")
    lock.__enter__()
except Held as held:
    sys.exit(2)
path = workdir / "state.json"
state = json.loads(path.read_text()) if path.exists() else {"step": 0, "digest": options["seed"]}
metrics = workdir / "metrics.jsonl"
lines = metrics.read_text().splitlines() if metrics.exists() else []
metrics.write_text("".join(line + "\\n" for line in lines[: state["step"]]))
with metrics.open("a") as file:
    while state["step"] < steps:
        time.sleep(float(options.get("pause", 0.005)))
        if mode == "wait":
            while not (stopped or (workdir / "go").exists()):
                time.sleep(0.01)
        digest = hashlib.sha256(state["digest"].encode()).hexdigest()
        state = {"step": state["step"] + 1, "digest": digest}
        speed = {"train/tokens_per_second": 1000.0}
        file.write(json.dumps({"step": state["step"], "train/loss": int(digest[:4], 16) / 9999} | speed) + "\\n")
        file.flush()
        if state["step"] == 5 and mode == "fail":
            print("jaxformer: 8 steps in a row had a loss that is not finite", file=sys.stderr)
            sys.exit(1)
        starts = len((workdir / "starts").read_text().splitlines())
        if state["step"] == 5 and mode.startswith("crash") and starts <= int(mode[5:]):
            os.kill(os.getpid(), signal.SIGKILL)
        if state["step"] % 3 == 0 or stopped:
            write_whole(path, json.dumps(state).encode())
        if stopped:
            sys.exit(143)
summary = {"status": "finished", "digest": state["digest"], "device_hours": 0.25}
write_whole(workdir / "summary.json", json.dumps(summary).encode())
"""
STEPS = 12
# A queue as a process of its own, which is there in a moment since it imports no jax.
RUN_QUEUE = """
import functools, json, sys
from pathlib import Path
from jaxformer.jobs.launch import Job, launch_local
from jaxformer.jobs.queue import Queue
script, jobs = sys.argv[1], json.loads(sys.argv[2])
jobs = [Job("fake", seed, tuple(arguments), Path(workdir), 12, 60.0) for seed, arguments, workdir in jobs]
launch = functools.partial(launch_local, program=(sys.executable, script))
with Queue(jobs, parallel=2, launch=launch) as queue:
    for statuses in queue.watch(0.02):
        pass
assert "jax" not in sys.modules
sys.exit(any(status.state.value != "finished" for status in statuses))
"""


def fake_job(folder, seed, name="fake", needs=(), **options):
    workdir = folder / "runs" / name / f"seed_{seed}"
    fields = {"workdir": workdir, "seed": seed, "steps": STEPS} | options
    arguments = tuple(f"--{name}={value}" for name, value in fields.items())
    return Job(name, seed, arguments, workdir, STEPS, 60.0, needs)


def fake_jobs(folder, number, **options):
    return [fake_job(folder, seed, **options) for seed in range(number)]


def fake_launch(folder):
    script = folder / "fake.py"
    script.write_text(FAKE)
    return functools.partial(launch_local, program=(sys.executable, str(script)))


def run_to_the_end(jobs, launch, **options):
    """Runs a queue until all is over, and returns the last statuses."""
    with Queue(jobs, launch=launch, **options) as running:
        *_, statuses = running.watch(0.02)
    return statuses


def watch_until(statuses_over_time, condition):
    """Returns the first statuses that fulfil a condition."""
    give_up = time.monotonic() + 60
    for statuses in statuses_over_time:
        if condition(statuses):
            return statuses
        assert time.monotonic() < give_up, statuses
    raise AssertionError("all was over before")


def starts(job):
    path = job.workdir / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def states(statuses):
    return [status.state for status in statuses]


def records(jobs):
    """Returns what the jobs have computed."""
    names = ("summary.json", "metrics.jsonl", "state.json")
    return [[(job.workdir / name).read_text() for name in names] for job in jobs]


def test_what_waits_takes_as_much_longer_than_estimated_as_what_is_finished(tmp_path):
    jobs = fake_jobs(tmp_path, 3)  # Each estimated at 60 s.
    one = Queue(jobs)
    jobs[0].workdir.mkdir(parents=True)
    (jobs[0].workdir / "summary.json").write_text('{"status": "finished"}')
    assert [status.seconds_left for status in one.statuses()] == [0, 60, 60]
    finished = one._runs[jobs[0].workdir]
    finished.seconds = 90.0
    assert [status.seconds_left for status in one.statuses()] == [0, 90, 90]
    finished.first_step = 6
    assert [status.seconds_left for status in one.statuses()] == [0, 60, 60], "it took that for a part of its steps"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What four jobs compute that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    jobs = fake_jobs(folder, 4)
    assert states(run_to_the_end(jobs, fake_launch(folder), parallel=2)) == [State.FINISHED] * 4
    return records(jobs)


def test_jobs_are_run_once_and_a_finished_queue_starts_nothing(tmp_path, undisturbed):
    jobs, launch = fake_jobs(tmp_path, 4), fake_launch(tmp_path)
    for _ in range(2):
        statuses = run_to_the_end(jobs, launch, parallel=3)
        assert states(statuses) == [State.FINISHED] * 4
        assert [(status.step, status.seconds_left, status.device_hours) for status in statuses] == [(12, 0, 0.25)] * 4
    assert [starts(job) for job in jobs] == [1] * 4
    assert records(jobs) == undisturbed
    assert jobs[2].log.read_text().count(HEADER) == 1


def test_job_waits_until_what_it_needs_is_seen_to_train_while_others_overtake_it(tmp_path):
    parent = fake_job(tmp_path, 0, mode="wait", prepare=1)
    jobs = [parent, fake_job(tmp_path, 1, needs=(parent.workdir,)), fake_job(tmp_path, 2)]
    with Queue(jobs, parallel=2, launch=fake_launch(tmp_path)) as running:
        watching = running.watch(0.02)
        watch_until(watching, lambda s: states(s) == [State.RUNNING, State.WAITING, State.FINISHED])
        parent.workdir.mkdir(parents=True, exist_ok=True)
        (parent.workdir / "go").touch()
        *_, statuses = watching
    assert states(statuses) == [State.FINISHED] * 3


@pytest.mark.parametrize(("mode", "end"), [("fail", "failed"), ("refuse", "refused")])
def test_nothing_is_started_that_needs_a_job_without_a_result(tmp_path, mode, end):
    parent, other = fake_job(tmp_path, 0, mode=mode), fake_job(tmp_path, 0, name="other")
    child = fake_job(tmp_path, 0, name="child", needs=(parent.workdir,))
    grandchild = fake_job(tmp_path, 0, name="grandchild", needs=(child.workdir,))
    statuses = run_to_the_end([parent, child, grandchild, other], fake_launch(tmp_path))
    assert statuses[0].state.value == end
    assert states(statuses[1:]) == [State.BLOCKED, State.BLOCKED, State.FINISHED]
    assert {status.note for status in statuses[1:3]} == {f"fake seed 0 {end}: {statuses[0].note}"}
    assert not child.log.exists() and not grandchild.log.exists()


def test_what_runs_is_saved_and_ended_when_the_job_that_it_needs_fails(tmp_path, undisturbed):
    parent = fake_job(tmp_path, 0, name="parent")
    child = fake_job(tmp_path, 0, mode="wait", needs=(parent.workdir,))
    launch = fake_launch(tmp_path)
    fail_once_the_child_runs = f"""
import pathlib, sys, time
pathlib.Path({str(parent.workdir)!r}).mkdir(parents=True)
metrics = pathlib.Path({str(parent.workdir / "metrics.jsonl")!r})
metrics.write_text('{{"step": 2, "train/loss": 1.0, "train/gradient_norm": "nan"}}\\n')
time.sleep(0.3)
assert not pathlib.Path({str(child.log)!r}).exists(), "it does not train yet"
metrics.write_text('{{"step": 2, "train/loss": 1.0, "train/gradient_norm": 1.0}}\\n')
while not pathlib.Path({str(child.workdir / "starts")!r}).exists():
    time.sleep(0.01)
sys.exit("jaxformer: 8 steps in a row had a loss that is not finite")
"""

    def start(job, slot, slots):
        if job is child:
            return launch(job, slot, slots)
        return launch_local(job, slot, slots, program=(sys.executable, "-c", fail_once_the_child_runs))

    statuses = run_to_the_end([parent, child], start, parallel=2)
    assert states(statuses) == [State.FAILED, State.BLOCKED]
    assert starts(child) == 1 and json.loads((child.workdir / "state.json").read_text())["step"] == 1
    # Once the parent is put right, the same queue goes on with it.
    (parent.workdir / "metrics.jsonl").unlink()
    jobs = [parent, fake_job(tmp_path, 0, needs=(parent.workdir,))]
    assert states(run_to_the_end(jobs, launch, parallel=2)) == [State.FINISHED] * 2
    assert records(jobs[1:]) == undisturbed[:1]


def test_a_job_that_cannot_be_started_stops_no_other(tmp_path):
    jobs = [fake_job(tmp_path, 0, name="blocked"), fake_job(tmp_path, 1)]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "blocked").write_text("a file where the folder of its log should be")
    statuses = run_to_the_end(jobs, fake_launch(tmp_path))
    assert states(statuses) == [State.FAILED, State.FINISHED]
    assert statuses[0].note.startswith("it could not be started ([Errno")


@pytest.mark.parametrize("set_by_user", ["", "glibc.malloc.perturb=1"])
def test_job_has_its_large_arrays_in_huge_pages_unless_the_user_has_set_otherwise(tmp_path, monkeypatch, set_by_user):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if set_by_user:
        monkeypatch.setenv("GLIBC_TUNABLES", set_by_user)
    job = fake_job(tmp_path, 0)
    code = "import os; print(os.environ['GLIBC_TUNABLES'])"
    assert launch_local(job, 0, 1, program=(sys.executable, "-c", code)).wait() == 0
    assert job.log.read_text().splitlines()[-1] == (set_by_user or "glibc.malloc.hugetlb=1")


def test_a_refusal_that_names_the_run_folder_is_that_folders_alone(tmp_path):
    jobs = fake_jobs(tmp_path, 2)
    launch = fake_launch(tmp_path)

    def start(job, slot, slots):
        if job.seed == 1:
            return launch(job, slot, slots)
        code = f"import sys; print('jaxformer: {job.workdir}/config.json: unreadable'); sys.exit(2)"
        return launch_local(job, slot, slots, program=(sys.executable, "-c", code))

    assert states(run_to_the_end(jobs, start)) == [State.REFUSED, State.FINISHED]


def test_crashed_job_is_resumed_twice_and_then_given_up(tmp_path, undisturbed):
    jobs = [fake_job(tmp_path, 0, mode="crash2"), fake_job(tmp_path, 1, mode="crash3"), fake_job(tmp_path, 2)]
    statuses = run_to_the_end(jobs, fake_launch(tmp_path))
    assert states(statuses) == [State.FINISHED, State.FAILED, State.FINISHED]
    assert statuses[1].note == f"crashed 3 times, the last by SIGKILL (as when memory runs out); see {jobs[1].log}"
    assert [starts(job) for job in jobs] == [3, 3, 1]
    assert records(jobs[:1]) == undisturbed[:1]
    # A new queue tries again: the cause may be gone.
    assert states(run_to_the_end(jobs, fake_launch(tmp_path))) == [State.FINISHED] * 3
    assert records(jobs) == undisturbed[:3]


def test_failed_training_is_not_tried_again_and_stops_no_other(tmp_path):
    jobs = [fake_job(tmp_path, 0, mode="fail"), fake_job(tmp_path, 1)]
    statuses = run_to_the_end(jobs, fake_launch(tmp_path))
    assert states(statuses) == [State.FAILED, State.FINISHED]
    assert statuses[0].note == "8 steps in a row had a loss that is not finite"
    assert starts(jobs[0]) == 1 and statuses[0].step == 5


def test_refused_job_reports_why_and_the_same_experiment_is_not_started_again(tmp_path):
    jobs = [fake_job(tmp_path, 0, mode="refuse"), fake_job(tmp_path, 1), fake_job(tmp_path, 0, name="other")]
    statuses = run_to_the_end(jobs, fake_launch(tmp_path))
    assert states(statuses) == [State.REFUSED, State.REFUSED, State.FINISHED]
    assert statuses[0].note == "heads (6) must divide width (512)"
    assert statuses[1].note == "as fake seed 0 is" and not jobs[1].log.exists()


def test_job_that_ends_well_without_a_summary_has_failed(tmp_path):
    job = fake_job(tmp_path, 0)
    launch = functools.partial(launch_local, program=(sys.executable, "-c", "pass"))
    ((_, state, *_, note),) = run_to_the_end([job], launch)
    assert state is State.FAILED and note == f"it ended well without a summary.json; see {job.log}"


def test_job_that_is_stopped_early_saves_and_is_left_alone_from_then_on(tmp_path):
    jobs = [fake_job(tmp_path, 0, mode="wait"), fake_job(tmp_path, 1)]
    with Queue(jobs, launch=fake_launch(tmp_path)) as running:
        watching = running.watch(0.02)
        watch_until(watching, lambda s: (jobs[0].workdir / "metrics.jsonl").exists())
        running.stop(jobs[0], "worse than its parent")
        *_, statuses = watching
        running.stop(jobs[1], "it is finished, so that this does nothing")
    reported = json.loads((jobs[0].workdir / "stopped_early.json").read_text())
    assert (reported["step"], reported["reason"]) == (1, "worse than its parent")
    assert json.loads((jobs[0].workdir / "state.json").read_text())["step"] == 1
    for _ in range(2):
        assert states(statuses) == [State.STOPPED_EARLY, State.FINISHED]
        assert statuses[0].note == "worse than its parent" and statuses[0].device_hours == reported["device_hours"] > 0
        statuses = run_to_the_end(jobs, fake_launch(tmp_path))
    assert starts(jobs[0]) == 1


def test_job_can_be_stopped_before_it_is_started(tmp_path):
    job = fake_job(tmp_path, 0)
    with Queue([job], launch=fake_launch(tmp_path)) as running:
        running.stop(job, "not needed any more")
        *_, statuses = running.watch(0.02)
    assert states(statuses) == [State.STOPPED_EARLY] and not job.log.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_queue_that_is_stopped_by_a_signal_lets_its_jobs_save(tmp_path, undisturbed, number):
    jobs = fake_jobs(tmp_path, 2, mode="wait")
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, Queue(jobs, parallel=2, launch=fake_launch(tmp_path)) as running:
        watching = running.watch(0.02)
        watch_until(watching, lambda _: all((job.workdir / "metrics.jsonl").exists() for job in jobs))
        os.kill(os.getpid(), number)
        for _ in watching:
            pass
    assert stopped.value.number == number and signal.getsignal(number) == before
    assert states(running.statuses()) == [State.WAITING] * 2
    for job in jobs:
        assert json.loads((job.workdir / "state.json").read_text())["step"] == 1
        (job.workdir / "go").touch()
    assert states(run_to_the_end(jobs, fake_launch(tmp_path))) == [State.FINISHED] * 2
    assert records(jobs) == undisturbed[:2]


def test_second_signal_kills_what_does_not_end(tmp_path):
    job = fake_job(tmp_path, 0)
    deaf = (
        "import os, signal, time; signal.signal(15, lambda *_: os.kill(os.getppid(), 15)); print('deaf', flush=True)\n"
        "while True: time.sleep(1)"
    )
    launch = functools.partial(launch_local, program=(sys.executable, "-c", deaf))
    handles = []
    with pytest.raises(KeyError), Queue([job], launch=lambda *a: handles.append(launch(*a)) or handles[0]) as running:
        watch_until(running.watch(0.02), lambda _: "deaf\n" in job.log.read_text())
        raise KeyError  # Whatever ends the block ends the jobs.
    assert handles[0].poll() == -signal.SIGKILL


def test_jobs_of_a_queue_that_was_killed_are_waited_for_and_not_started_again(tmp_path):
    job, other = fake_job(tmp_path, 0, mode="wait", prepare=0.5), fake_job(tmp_path, 1)
    # As a queue that was killed leaves it: nobody waits for it, and it has not come to the lock of its folder yet.
    orphan = fake_launch(tmp_path)(job, 0, 1)
    with Queue([job, other], launch=fake_launch(tmp_path)) as running:
        watching = running.watch(0.02)
        watch_until(watching, lambda s: starts(job) == 1)
        assert states(running.statuses()) == [State.ELSEWHERE, State.WAITING]
        (job.workdir / "go").touch()
        assert orphan.wait(60) == 0
        *_, statuses = watching
    assert states(statuses) == [State.FINISHED] * 2 and starts(job) == 1


def test_run_that_somebody_started_by_hand_is_waited_for(tmp_path):
    job = fake_job(tmp_path, 0)
    job.workdir.mkdir(parents=True)
    with Queue([job], launch=fake_launch(tmp_path)) as running:
        watching = running.watch(0.02)
        with hold(job.workdir / LOCK):
            for _ in range(3):
                (status,) = next(watching)
                assert status.state is State.ELSEWHERE and status.note.startswith(f"process {os.getpid()} on ")
        *_, (status,) = watching
    assert status.state is State.FINISHED and starts(job) == 1


def test_job_that_goes_on_reports_its_phase_and_no_speed_of_an_earlier_process(tmp_path):
    job = fake_job(tmp_path, 0)
    job.workdir.mkdir(parents=True)
    metrics, go = job.workdir / "metrics.jsonl", tmp_path / "go"
    lines = [json.dumps({"step": n, "train/loss": 3.0, "train/tokens_per_second": 1000.0}) + "\n" for n in (2, 3)]
    metrics.write_text(lines[0])
    code = f"""
import pathlib, time
print("device".ljust(12), flush=True)  # The log begins with this code.
while not pathlib.Path({str(go)!r}).exists():
    time.sleep(0.01)
print("first step".ljust(12), flush=True)
pathlib.Path({str(metrics)!r}).write_text({"".join(lines)!r})
time.sleep(60)
"""
    launch = functools.partial(launch_local, program=(sys.executable, "-c", code))
    with Queue([job], launch=launch) as running:
        watching = running.watch(0.02)
        (status,) = watch_until(watching, lambda s: s[0].note == "compiling")
        assert status.step == 2 and math.isnan(status.tokens_per_second)
        go.touch()
        (status,) = watch_until(watching, lambda s: s[0].step == 3)
        assert (status.note, status.tokens_per_second) == ("", 1000.0)


def processes(folder):
    """Returns the numbers of the fake jobs' processes in a folder, by run folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        for argument in arguments:
            if argument.startswith(f"--workdir={folder}/"):
                found.setdefault(argument, []).append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_queue_and_jobs_that_are_killed_at_random_compute_the_same(tmp_path, undisturbed):
    fake_launch(tmp_path)
    jobs = fake_jobs(tmp_path, 4, pause=0.08)
    reported = json.dumps([(job.seed, job.arguments, str(job.workdir)) for job in jobs])
    command = [sys.executable, "-c", RUN_QUEUE, str(tmp_path / "fake.py"), reported]
    choices, returned, kills = random.Random(0), None, 0
    while returned != 0:
        assert kills < 50
        with subprocess.Popen(command) as process:
            try:
                # At last it is left alone.
                returned = process.wait(choices.uniform(0.2, 0.6) if kills < 8 else None)
            except subprocess.TimeoutExpired:
                kills += 1
                running = processes(tmp_path)
                assert all(len(numbers) == 1 for numbers in running.values()), running
                victims = [number for numbers in running.values() for number in numbers if choices.random() < 0.5]
                for number in [process.pid, *victims]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
    assert kills and records(jobs) == undisturbed


def test_jobs_at_once_have_equal_shares_of_the_cores(tmp_path):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system pins no process to cores")
    program = (sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))")
    cores = os.sched_getaffinity(0)
    shares = {}
    for slots in (1, 2, len(cores) + 1):
        for slot in range(slots):
            job = fake_job(tmp_path, slot, name=f"of_{slots}")
            assert launch_local(job, slot, slots, program=program).wait() == 0
            shares[slots, slot] = set(json.loads(job.log.read_text().splitlines()[-1]))
    assert os.sched_getaffinity(0) == cores == shares[1, 0]
    sizes = {slots: {len(share) for (of, _), share in shares.items() if of == slots} for slots, _ in shares}
    assert sizes[2] == {max(1, len(cores) // 2)} and sizes[len(cores) + 1] == {1}
    if len(cores) > 1:
        assert not shares[2, 0] & shares[2, 1]


def test_jobs_at_once_compute_on_different_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    program = (sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    for name, devices, expected in (("one", 1, ["0", "1", "2", "3"]), ("two", 2, ["0,1", "2,3", "0,1", "2,3"])):
        for slot, gpus in enumerate(expected):
            job = dataclasses.replace(fake_job(tmp_path, slot, name=name), devices=devices)
            assert launch_local(job, slot, 4, program=program).wait() == 0
            assert job.log.read_text().splitlines()[-1] == gpus


def test_queue_refuses_jobs_that_cannot_be_run(tmp_path):
    first, second = fake_jobs(tmp_path, 2)
    with pytest.raises(UserError, match="two jobs have the run folder"):
        Queue([first, first])
    with pytest.raises(UserError, match=r"fake seed 1 needs .*/seed_0, which no job before it makes"):
        Queue([fake_job(tmp_path, 1, needs=(first.workdir,)), first])
    with pytest.raises(UserError, match=r"jobs at once \(0\) must be at least 1"):
        Queue([first], parallel=0)
    with pytest.raises(UserError, match="lack --workdir="):
        Job("fake", 0, ("--seed=0",), second.workdir, 1, 1.0)


def test_progress_is_read_from_the_end_of_the_metrics_whatever_half_lines_they_have(tmp_path):
    assert queue._progress(tmp_path)[0] == 0
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "train/loss": 9.0 - step / 1000} for step in range(1, 4001)]
    lines[3980]["train/tokens_per_second"] = 123.0
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4000, "validation/loss": 3.0}])
    for end in ("", '{"step": 4001, "trai', "[1]\n", '{"step": 4001, "train/loss": []}\n', "7\n"):
        path.write_text(text + end)
        assert queue._progress(tmp_path) == (4000, 5.0, 123.0)
    path.write_text(text + '{"step": 4001, "train/loss": "nan"}\n')
    step, loss, _ = queue._progress(tmp_path)
    assert step == 4001 and loss != loss


def statuses_to_show(folder):
    waiting, running, finished = (fake_job(folder, seed) for seed in range(3))
    nan = float("nan")
    return [
        Status(finished, State.FINISHED, 12, 3.14159, 98765.4, 0.0, 0.5, ""),
        Status(running, State.RUNNING, 6, 3.5, 1234.0, 1800.0, 0.25, "is stopped: \x1b[31m"),
        Status(waiting, State.WAITING, 0, nan, nan, 3600.0, 0.0, ""),
    ]


def test_table_reports_states_progress_and_totals(tmp_path):
    assert status_table(statuses_to_show(tmp_path), parallel=2, price_per_hour=2.0).splitlines() == [
        "experiment  seed  state      step   loss  tokens/s     left  device h",
        "fake           2  finished  12/12  3.142    98,765               0.50",
        "fake           1  running    6/12  3.500     1,234    30:00      0.25  is stopped: \\x1b[31m",
        "fake           0  waiting    -/12      -         -  1:00:00         -",
        "3 jobs: 1 waiting, 1 running, 1 finished; 0.75 device hours spent; about 1.50 to come, over in 1:00:00; "
        "price 1.50 + 3.00",
    ]
    assert "over in 1:30:00" in status_table(statuses_to_show(tmp_path), parallel=1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_board_draws_in_place_on_a_terminal_and_fits_it(tmp_path, monkeypatch):
    statuses, terminal = statuses_to_show(tmp_path), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    board = Dashboard()
    for columns, lines in ((40, 24), (40, 4)):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
        board.draw(statuses)
    first, second = terminal.getvalue().split("\033[8A")
    assert first.removeprefix("\r\033[J").splitlines() == [
        "ex...nt  seed  state      step     left",
        "fake        2  finished  12/12",
        "fake        1  running    6/12    30:00",
        "  is stopped: \\x1b[31m",
        "fake        0  waiting    -/12  1:00:00",
        "3 jobs: 1 waiting, 1 running, 1",
        "finished; 0.75 device hours spent;",
        "about 1.50 to come, over in 1:30:00",
    ]
    assert second.removeprefix("\r\033[J").splitlines() == [
        "ex...nt  seed  state      step     left",
        "fake        1  running    6/12    30:00",
        "3 jobs: 1 waiting, 1 running, 1",
    ]


@pytest.mark.parametrize("columns", [59, 79, 119, 199])
def test_table_fits_and_keeps_state_step_and_time_left(tmp_path, columns):
    nan = float("nan")
    name, note = "mixture_100m_gated_attention_without_bias", f"crashed 3 times, see {tmp_path}/seed_0.log"
    jobs = [dataclasses.replace(fake_job(tmp_path, seed, name=name), steps=610_352) for seed in range(2)]
    statuses = [
        Status(jobs[0], State.RUNNING, 123_456, 3.5, 1_234_567.0, 360_000.0, 123.25, ""),
        Status(jobs[1], State.FAILED, 0, nan, nan, 0.0, 0.0, note),
    ]
    lines = status_table(statuses, columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(word in lines[1] for word in ("running", "123,456/610,352", "100:00:00"))
    assert ("1,234,567" in lines[1], "123.25" in lines[1]) == {59: (False, False), 79: (False, False)}.get(
        columns, (True, True)
    )
    assert any("crashed 3" in line for line in lines)


def test_board_prints_elsewhere_only_what_has_changed(tmp_path, capsys):
    waiting, board = statuses_to_show(tmp_path)[2:], Dashboard()
    for status in (waiting, waiting, [waiting[0]._replace(state=State.FAILED, note="no disk")]):
        board.draw(status)
    assert capsys.readouterr().out == "fake seed 0: failed: no disk\n", "that all wait is no news"


def test_jobs_are_submitted_resumed_and_finished_through_submitit(tmp_path, undisturbed):
    pytest.importorskip("submitit")
    fake_launch(tmp_path)
    program = (sys.executable, str(tmp_path / "fake.py"))
    launch = launch_submitit(tmp_path / "submitit", {"timeout_min": 5}, cluster="local", program=program)
    jobs = [fake_job(tmp_path, 0, mode="crash1"), fake_job(tmp_path, 1, mode="fail")]
    statuses = run_to_the_end(jobs, launch, parallel=2)
    assert states(statuses) == [State.FINISHED, State.FAILED]
    assert statuses[1].note == "8 steps in a row had a loss that is not finite"
    assert records(jobs[:1]) == undisturbed[:1] and [starts(job) for job in jobs] == [2, 1]
    assert json.loads((jobs[0].workdir.parent / "seed_0.job").read_text())["cluster"] == "local"
    with pytest.raises(UserError, match=r"submitit: .*no_such_parameter"):
        launch_submitit(tmp_path / "submitit", {"no_such_parameter": 1}, cluster="local")


def test_submitted_job_that_is_stopped_early_saves(tmp_path):
    pytest.importorskip("submitit")
    fake_launch(tmp_path)
    program = (sys.executable, str(tmp_path / "fake.py"))
    launch = launch_submitit(tmp_path / "submitit", {"timeout_min": 5}, cluster="local", program=program)
    job = fake_job(tmp_path, 0, mode="wait")
    with Queue([job], launch=launch) as running:
        watching = running.watch(0.02)
        watch_until(watching, lambda s: (job.workdir / "metrics.jsonl").exists())
        running.stop(job, "enough")
        *_, statuses = watching
    assert states(statuses) == [State.STOPPED_EARLY]
    assert json.loads((job.workdir / "state.json").read_text())["step"] == 1


def test_what_was_submitted_by_a_queue_that_was_killed_is_found_again(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    job = fake_job(tmp_path, 0)
    launch = launch_submitit(tmp_path / "submitit", {}, cluster="local", program=("false",))
    record = {"cluster": "slurm", "folder": str(tmp_path / "submitit"), "id": "7"}
    job.log.parent.mkdir(parents=True)
    job.log.with_suffix(".job").write_text(json.dumps(record))
    asked = []
    monkeypatch.setattr(submitit.SlurmJob, "done", lambda self, force_check=False: asked.append(self.job_id) or False)
    handle = launch(job, 0, 1)
    assert handle.poll() is None and asked == ["7", "7"] and not job.log.exists()


def test_missing_submitit_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'jaxformer\[slurm\]'"):
        launch_submitit(tmp_path, {})


@pytest.mark.parametrize(
    ("lines", "phase"),
    [
        ([], "starting"),
        (
            ["jaxformer 0.1.0: fake, seed 0, in runs/fake/seed_0", "sampling a for the tokenizer: 5%"],
            "training a tokenizer",
        ),
        (["sampling a for the tokenizer: 100%", "tokenising a: 3%"], "tokenising"),
        (["tokenising a: 100%", "device      1 x cpu, float32 matmuls", "proof       no gradient flows"], "compiling"),
        (["device      1 x cpu, float32 matmuls", "first step  after 7.9 s, compilation included"], ""),
    ],
)
def test_phase_of_a_run_is_told_by_what_its_last_process_printed(tmp_path, lines, phase):
    log = tmp_path / "seed_0.log"
    assert _phase(log) == "starting"
    before = ["--- of an earlier process", "first step  after 1.0 s, compilation included", "step 1/9"]
    log.write_text("\n".join([*before, "--- 2026-01-01 on host: train", *lines]) + "\n")
    assert _phase(log) == phase
