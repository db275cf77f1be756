"""Measures on a GPU all that can be measured there, in nine minutes: `python tools/on_gpu.py [PART...]`.

Parts run in this order, each in a process of its own that is killed when its seconds are over and keeps what it wrote:

    ceilings   rates of a copy and of matmuls, what the other figures are held against
    tests      the tests that need a GPU, and those of attention; at the same time as the two that follow
    resume     a run that is killed and resumed, compared bit by bit with one that nothing stopped
    predicted  what the steps are predicted to take, by their compiled programs and the ceilings
    attention  attention of the largest size beside all alternatives, on rows of several documents and of one
    step       tokens/s and MFU of the sizes as a run computes them that times nothing, and in other ways
    profile    the time of the largest size's step by kind of kernel, beside the prediction
    repeat     which arrays differ when a step is repeated from the same state
    nanogpt    nanoGPT's step by torch.compile beside ours, from the checkout that `--nanogpt` names

Results are JSON files in `--out`, beside all that was printed, on_gpu.log. For a machine without a network,
`--prepare=FOLDER` lays packages, a corpus and its token shards in a folder, on a machine with the same version of
Python; the run takes what is there by `--prepared=FOLDER`.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import on_gpu_prepare

TOOLS = Path(__file__).resolve().parent
# Compiled programs, runs and installed packages, kept for the next call.
SCRATCH = Path(tempfile.gettempdir()) / f"on_gpu_{os.getuid()}"
# Seconds that must be left for a part to begin.
LEAST_SECONDS = 10


class Part(NamedTuple):
    """Seconds after which a part is killed, flags of XLA, whether it runs beside the one before, other variables."""

    seconds: float
    flags: str = ""
    is_beside: bool = False
    variables: Mapping[str, str] = {}


# Tuning takes the longest of the first start of a program. Where it decides no figure there is less of it.
_CUBLAS_ALONE = "--xla_gpu_enable_triton_gemm=false"
PARTS = {
    "ceilings": Part(45),
    "tests": Part(150, "--xla_gpu_autotune_level=0"),
    "resume": Part(175, _CUBLAS_ALONE, is_beside=True),
    "predicted": Part(175, is_beside=True, variables={"CUDA_VISIBLE_DEVICES": ""}),
    "attention": Part(125, _CUBLAS_ALONE),
    "step": Part(180),
    "profile": Part(45),
    "repeat": Part(30),
    "nanogpt": Part(150),
}


def main() -> int:
    """Runs the parts; returns 1 where one failed, and 2 where nothing can be measured."""
    options = parse_arguments()
    if options.prepare:
        return on_gpu_prepare.prepare(options.prepare, options.have)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    deadline = time.monotonic() + options.total
    SCRATCH.mkdir(parents=True, exist_ok=True)
    try:
        on_gpu_prepare.install(options.prepared, SCRATCH / "site")
        device, platform = find_device()
    except subprocess.CalledProcessError as failed:
        print(f"on_gpu: {(failed.stderr or failed.stdout).strip()}", file=sys.stderr)
        return 2
    if platform != "gpu" and not options.dry:
        print(f"on_gpu: this is a {device}; try all of it without a GPU by --dry", file=sys.stderr)
        return 2
    name = re.sub(r"[^a-z0-9]+", "_", device.lower().removeprefix("nvidia "))
    default = Path(tempfile.mkdtemp(prefix="on_gpu_")) if options.dry else TOOLS / "results" / f"gpu_{name}"
    options.out = options.out or default
    options.out.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    with (options.out / "on_gpu.log").open("a", encoding="utf-8") as log:

        def print_line(line: str) -> None:
            with lock:
                print(line, flush=True)
                print(line, file=log, flush=True)

        print_line(f"{device}, results in {options.out}")
        record = run_parts(options, deadline, print_line)
    return int(any(each["ended"] != "done" for each in record.values()))


def parse_arguments() -> argparse.Namespace:
    """Returns the options, checked; so do the processes of the parts, which are given the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on whatever device is there, to try all of it")
    parser.add_argument("--out", type=Path, help="results (tools/results/gpu_DEVICE; with --dry a temporary folder)")
    parser.add_argument("--total", type=float, default=540, help="seconds for all parts (default: 540)")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--prepared", type=Path, default=Path("data/on_gpu"), help="data/on_gpu by default")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="lay there what is needed without a network")
    parser.add_argument("--have", type=Path, metavar="FILE", help="what `pip freeze` prints there: not laid in FOLDER")
    options = parser.parse_args()
    for name in ("out", "nanogpt", "prepared", "prepare"):
        setattr(options, name, getattr(options, name) and getattr(options, name).resolve())
    if unknown := set(options.parts) - set(PARTS):
        parser.exit(2, f"on_gpu: unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}\n")
    for name in ("nanogpt", "have"):
        if (path := getattr(options, name)) and not path.exists():
            parser.exit(2, f"on_gpu: --{name} ({path}) does not exist\n")
    return options


def find_device() -> tuple[str, str]:
    """Returns the device that JAX computes on, and its platform.

    Raises:
        subprocess.CalledProcessError: JAX or the library cannot be imported, or JAX finds no device.
    """
    code = "import json, jax, jaxformer.train; d = jax.devices()[0]; print(json.dumps([d.device_kind, d.platform]))"
    variables = environment("", Part(0))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, encoding="utf-8")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def environment(name: str, part: Part) -> dict[str, str]:
    """Returns the environment of a part's process."""
    paths = [str(TOOLS.parent), str(TOOLS), str(SCRATCH / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # One for all that are compiled alike; what is tuned while others use the device is kept apart.
        "JAX_COMPILATION_CACHE_DIR": str(SCRATCH / (name if part.flags else "compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {part.flags}".strip(),
        **part.variables,
    }


def run_parts(options, deadline: float, print_line: Callable[[str], None]) -> dict[str, dict]:
    """Runs the parts that are asked for; returns how each ended and its seconds, as written to on_gpu.json."""
    groups: list[list[str]] = []
    for name in (name for name in PARTS if name in (options.parts or PARTS)):
        groups += [] if PARTS[name].is_beside and groups else [[]]
        groups[-1].append(name)
    given = [f"--{name}={value}" for name in ("out", "prepared", "nanogpt") if (value := getattr(options, name))]
    given += ["--dry"] if options.dry else []
    record = {}
    for group in groups:
        print_clocks(print_line)
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            print_line(f"== {', '.join(group)}: not begun, no time is left")
            record |= {name: {"ended": "not begun", "seconds": 0.0} for name in group}
            continue
        processes = []
        for name in group:
            command = [sys.executable, str(TOOLS / "on_gpu_parts.py"), name, *given]
            seconds = left if options.dry else min(PARTS[name].seconds, left)  # A shared processor may take any time.
            processes.append(Process(name, command, seconds, environment(name, PARTS[name])))
        record |= run_together(processes, print_line)
        (options.out / "on_gpu.json").write_text(f"{json.dumps(record, indent=1)}\n", encoding="utf-8")
    return record


def print_clocks(print_line: Callable[[str], None]) -> None:
    """Prints the clock, temperature and power of the GPU, which figures depend on."""
    if command := shutil.which("nvidia-smi"):
        query = "--query-gpu=clocks.sm,clocks.max.sm,temperature.gpu,power.draw,power.limit"
        done = subprocess.run([command, query, "--format=csv"], capture_output=True, check=False)
        print_line(done.stdout.decode(errors="replace").strip())


class Process(NamedTuple):
    """What is run for a part: its command, seconds after which it is killed, and environment."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: Mapping[str, str]


def run_together(processes: Sequence[Process], print_line: Callable[[str], None]) -> dict[str, dict]:
    """Runs processes at the same time and prints their lines; returns how each ended, and its seconds.

    One whose seconds are over is killed, with all that it started; so are all of them if this process is stopped.
    """
    running, record, begun = [], {}, time.monotonic()
    try:
        for one in processes:
            running.append((one, *start(one, print_line)))
        while len(record) < len(running):
            time.sleep(0.05)
            seconds = time.monotonic() - begun
            for one, process, reader in running:
                status = process.poll()
                if one.name in record or (status is None and seconds < one.seconds):
                    continue
                kill(process)  # Whatever it started, also where it has ended by itself.
                reader.join(5)
                ended = f"failed with status {status}" if status else "done"
                ended = f"killed, its {one.seconds:.0f} s were over" if status is None else ended
                record[one.name] = {"ended": ended, "seconds": round(seconds, 1)}
                print_line(f"== {one.name}: {ended}, {seconds:.1f} s")
    finally:
        for one, process, _ in running:
            if one.name not in record:
                kill(process)
    return record


def start(one: Process, print_line: Callable[[str], None]) -> tuple[subprocess.Popen, threading.Thread]:
    """Starts a process in a group of its own, and a thread that prints its lines with its name before them."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    process = subprocess.Popen(one.command, cwd=TOOLS.parent, env=one.environment, start_new_session=True, **output)

    def copy_lines() -> None:
        for line in process.stdout or ():
            print_line(f"{one.name:9} {line.rstrip()}")

    reader = threading.Thread(target=copy_lines, daemon=True)
    reader.start()
    return process, reader


def kill(process: subprocess.Popen) -> None:
    """Kills a process and all that are in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
