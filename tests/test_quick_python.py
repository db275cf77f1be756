"""The programs of a `QuickPython` do what those do whose place they take."""

import os
import signal
import subprocess
import time

import pytest
from quick_python import QuickPython

pytestmark = pytest.mark.device_free


@pytest.fixture(scope="module", autouse=True)
def cpu(cache):
    """Sets a variable that what is loaded has too: where its variables of JAX differ, a program loads the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield


@pytest.fixture(scope="module")
def programs(cpu):
    """The folder of the programs."""
    with QuickPython(os.environ, "jaxformer.commands.program", "jaxformer.train") as python:
        yield python.programs


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        ("print(6 * 7)", 0, "42\n"),
        ("import sys; print(sys.stdin.read()); sys.exit(3)", 3, "read\n"),
        ("raise SystemExit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; print(os.getcwd(), os.environ['A'])", 0, "{folder} b\n"),
    ],
)
def test_a_program_has_its_folder_variables_streams_and_status(programs, tmp_path, code, status, printed):
    done = subprocess.run(
        [programs / "python", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"A": "b"},
        input="read",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status
    assert printed.format(folder=tmp_path) in done.stdout


def test_a_signal_reaches_what_runs(programs):
    code = "import time\ntry: print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('INT')"
    with subprocess.Popen([programs / "python", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "INT\n"
    assert process.returncode == 0


def test_what_runs_ends_with_a_program_that_is_killed(programs, tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([programs / "python", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        process.kill()
    for _ in range(100):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_a_run_that_was_the_same_is_copied_and_not_trained_again(programs, tmp_path, experiment_files):
    printed, summaries = [], []
    for name, other_file in (("trained", ""), ("copied", ""), ("trained_again", "other")):
        folder = tmp_path / name
        folder.mkdir()
        if other_file:
            (folder / other_file).touch()
        words = ["train", f"--experiment={experiment_files['best_fit']}", "--training.steps=4"]
        options = {"stderr": subprocess.STDOUT, "text": True}
        printed.append(subprocess.check_output([programs / "jaxformer", *words], cwd=folder, **options))
        (summary,) = folder.glob("runs/*/seed_0/summary.json")
        summaries.append(summary.read_text())
    assert summaries[0] == summaries[1] != summaries[2]  # They hold times.
    assert printed[1] == f"{printed[0]}copied from a run that was the same\n"
    assert "step 4/4" in printed[2] and "copied" not in printed[2]
