"""Disks that are full or read-only: nothing that was saved is lost, and nothing waits.

The disks are real small ones where one can be mounted; where not, a limit on the size of files stands for a full disk.
"""

import os
import subprocess
from pathlib import Path

import pytest
from copies import Copies
from tiny_run import assert_same_run, command

from jaxformer.train import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled"), pytest.mark.device_free]

# Lets the disk fail from the step FIRST on, and no more from the step LAST on.
FAILING = """
import os, resource, signal, subprocess, sys, time
from pathlib import Path
from jaxformer.run.progress import Progress

how, first, last, folder = HOW, FIRST, LAST, Path(FOLDER)
filler = folder / "filler"
NONE = resource.RLIM_INFINITY

def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def make_read_only():
    checkpoints = folder / "run" / "checkpoints"
    subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True)
    # Refused as long as the save of step 4 goes on.
    while subprocess.run(["mount", "-o", "remount,bind,ro", checkpoints], capture_output=True).returncode:
        time.sleep(0.1)

BREAK = {
    "full": fill,
    "read_only": make_read_only,
    "limited": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, NONE)),
}
MEND = {
    "full": lambda: filler.unlink(),
    "limited": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (NONE, NONE)),
}
add = Progress.add

def failing_add(self, step, metrics):
    if step == first:
        while not (folder / "run" / "checkpoints" / "4").exists():  # It is being written.
            time.sleep(0.05)
        BREAK[how]()
    if step == last:
        MEND[how]()
    add(self, step, metrics)

Progress.add = failing_add
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of 3 MB of its own, skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("no disk can be mounted without the superuser's rights")
    yield folder
    subprocess.run(["umount", "-R", "-l", folder], check=True)


@pytest.fixture(scope="module")
def run_on(compiled):
    """A function from how a disk fails, when, which, and arguments to how the process ended that trained there."""
    with Copies(os.environ | compiled) as copies:

        def run(how, first, last, folder, arguments):
            values = {"HOW": how, "FIRST": first, "LAST": last, "FOLDER": str(folder)}
            before = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + FAILING
            # Orbax waits 300 s for a folder that cannot be made, unless it is asked not to.
            return copies.run(["train", *arguments], Path.cwd(), {}, before=before)

        yield run


def test_disk_that_is_full_for_a_while_costs_one_save_and_nothing_else(disk, run_on, experiment_files, uninterrupted):
    workdir = disk / "run"
    ended = run_on("full", 6, 10, disk, command(experiment_files["best_fit"], workdir))
    assert ended.status == 0, ended.err
    # The page that the metrics end on may hold a few lines more; they and the sample are written later.
    reported = [line for line in ended.err.splitlines() if "No space left on device" not in line]
    assert reported == [
        f"jaxformer: saving step 8 in {workdir}/checkpoints failed (no space left on the disk); step 4 is the newest "
        "that is kept; the next save tries again"
    ]
    assert_same_run(workdir, uninterrupted("best_fit"))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "4"]


def test_disk_that_stays_full_ends_the_run_with_the_older_steps_and_the_same_command_goes_on(
    disk, run_on, experiment_files, uninterrupted, capsys
):
    workdir = disk / "run"
    arguments = command(experiment_files["best_fit"], workdir)
    ended = run_on("full", 6, 99, disk, arguments)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        f"jaxformer: saving step 12 in {workdir}/checkpoints failed (no space left on the disk); step 4 is the newest "
        "that is kept; the same command resumes from there"
    )
    assert "Traceback" not in ended.err
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]
    (disk / "filler").unlink()
    assert main(arguments) == 0
    assert "resumed from step 4\n" in capsys.readouterr().out
    assert_same_run(workdir, uninterrupted("best_fit"))


def test_disk_that_becomes_read_only_ends_the_run_without_waiting(disk, run_on, experiment_files, uninterrupted):
    workdir = disk / "run"
    arguments = command(experiment_files["best_fit"], workdir)
    ended = run_on("read_only", 6, 99, disk, arguments)
    assert ended.status == 1
    assert "Read-only file system" in ended.err and "Traceback" not in ended.err
    assert "step 4 is the newest that is kept" in ended.err.splitlines()[-1]
    subprocess.run(["umount", workdir / "checkpoints"], check=True)
    assert main(arguments) == 0
    assert_same_run(workdir, uninterrupted("best_fit"))


@pytest.mark.parametrize("last", [10, 99])
def test_files_that_may_not_grow_are_as_a_full_disk(last, run_on, experiment_files, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    arguments = command(experiment_files["best_fit"], workdir)
    ended = run_on("limited", 6, last, tmp_path, arguments)
    assert "Traceback" not in ended.err
    assert len(ended.err.encode()) < 2048  # It goes to a file too, and was not cut.
    assert f"jaxformer: saving step 8 in {workdir}/checkpoints failed (" in ended.err
    assert f"jaxformer: {workdir}/metrics.jsonl: File too large; lines that cannot be written are kept" in ended.err
    if last == 10:
        assert ended.status == 0
        assert_same_run(workdir, uninterrupted("best_fit"))
    else:
        assert ended.status == 1
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]
        assert main(arguments) == 0
        assert_same_run(workdir, uninterrupted("best_fit"))


def test_disk_too_small_for_the_planned_checkpoints_is_refused_before_anything_is_written(
    disk, experiment_files, capfd
):
    (disk / "filler").write_bytes(bytes(2_700_000))
    assert main(command(experiment_files["best_fit"], disk / "run")) == 2
    error = capfd.readouterr().err
    assert "its checkpoints take up to 0.6 MB more, and 0.4 MB are free" in error
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_read_only_disk_is_refused(disk, experiment_files, capfd):
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for workdir in (disk / "run", disk / "new"):
        assert main(command(experiment_files["best_fit"], workdir)) == 2
        error = capfd.readouterr().err
        assert f"run folder {workdir}: Read-only file system; choose another --workdir" in error
        assert error.count("\n") == 1
    assert list(disk.rglob("*")) == [disk / "run"]
