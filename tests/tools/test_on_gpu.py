"""The measurement of a GPU, tried without one: its parts run and write, and one that takes too long is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"
FAKE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def on_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import on_gpu

        yield on_gpu


def run_dry(folder, *arguments):
    """Runs the command, with what it keeps for the next call in a folder that is new; returns the folder of results."""
    command = [sys.executable, TOOLS / "on_gpu.py", "--dry", f"--out={folder / 'out'}", "--total=3000", *arguments]
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out" / "on_gpu.log").read_text() == done.stdout
    return folder / "out"


def read(path):
    result = json.loads(path.read_text())
    assert {"device", "versions", "date", "commit"} <= result.keys() and result["is_dry"]
    return result


def test_cheap_parts_run_without_a_gpu_and_write_what_they_measured(tmp_path):
    out = run_dry(tmp_path, "ceilings", "repeat")
    assert read(out / "ceilings.json")["copy_terabytes_per_second"] > 0
    repeated = read(out / "repeat.json")
    assert repeated["leaves"] > 30 and repeated["different"] == [], "a CPU repeats a step bit by bit"
    assert {path.name for path in out.iterdir()} == {"ceilings.json", "repeat.json", "on_gpu.json", "on_gpu.log"}


@pytest.mark.slow
def test_all_parts_run_without_a_gpu(tmp_path, on_gpu):
    out = run_dry(tmp_path)
    parts = json.loads((out / "on_gpu.json").read_text())
    assert parts.keys() == on_gpu.PARTS.keys() and {each["ended"] for each in parts.values()} == {"done"}
    assert read(out / "resume.json")["differences"] == []
    assert read(out / "attention.json")["lines"][0]["relative_error"].keys() == {"xla", "pallas"}
    lines = read(out / "step.json")["lines"]
    assert [line["remat"] for line in lines] == ["none", "none", "block"]
    assert all(line["several_documents"]["tokens_per_second"] > 0 for line in lines)
    kinds = {kind: each["measured"] for kind, each in read(out / "profile.json")["kinds"].items()}
    assert kinds["matmul"] > 0 and kinds["logits matmul"] > 0 and kinds["other"] < 0.5 * sum(kinds.values())
    if (out / "predicted.json").exists():  # Where JAX's CUDA plugin is installed.
        (line,) = read(out / "predicted.json")["lines"]
        assert line["milliseconds"] > 0 and line["kinds"]["attention"]["launches"] > 0


def is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_part_over_its_seconds_is_killed_with_its_children_and_keeps_its_lines(on_gpu):
    lines, begun = [], time.monotonic()
    slow = on_gpu.Process("slow", [sys.executable, "-c", FAKE], 4.0, os.environ)
    failing = on_gpu.Process("failing", [sys.executable, "-c", "print('x'); raise SystemExit(3)"], 60.0, os.environ)
    record = on_gpu.run_together([slow, failing], lines.append)
    assert (
        record["slow"]["ended"] == "killed, its 4 s were over" and record["failing"]["ended"] == "failed with status 3"
    )
    assert record["slow"]["seconds"] >= 4 and time.monotonic() - begun < 60
    (child,) = [int(line.split()[-1]) for line in lines if line.startswith("slow      child")]
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)
    assert "failing   x" in lines


def test_parts_that_no_time_is_left_for_are_named(on_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "repeat", f"--out={tmp_path}"])
    lines = []
    record = on_gpu.run_parts(on_gpu.parse_arguments(), time.monotonic() + 1, lines.append)
    assert record == {"repeat": {"ended": "not begun", "seconds": 0.0}}
    assert "== repeat: not begun, no time is left" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "sleep"], "on_gpu: unknown parts: sleep; known: ceilings, tests"),
        (["--nanogpt=/nowhere"], "on_gpu: --nanogpt (/nowhere) does not exist"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(on_gpu, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        on_gpu.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(message)


def test_without_a_gpu_it_says_so_and_how_to_try_it(default_signals, on_gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(on_gpu, "find_device", lambda: ("cpu", "cpu"))
    monkeypatch.setattr(on_gpu, "SCRATCH", tmp_path)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    assert on_gpu.main() == 2
    assert capsys.readouterr().err == "on_gpu: this is a cpu; try all of it without a GPU by --dry\n"


def test_packages_of_the_device_and_those_that_are_there_are_not_taken_along(on_gpu):
    pytest.importorskip("packaging")
    packages = on_gpu.on_gpu_prepare.needed_packages({"numpy", "scipy"})
    assert {"flax", "optax", "pytest", "etils"} <= packages
    assert not packages & {"jax", "jaxlib", "numpy", "scipy", "jaxformer", "tensorboard"}
