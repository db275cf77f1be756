"""Kills studies and their runs at random: `python tools/ablate_campaign.py [--trials=5] [--kills=4] [--seed=0]`.

One study of small runs, by `jaxformer ablate`, is left alone. Others are killed at random moments, the queue, some of
its runs or both, by SIGKILL, or stopped by SIGTERM, and started again by the same command until all is finished. No run
may ever have two processes, and each must end as the one that was left alone: parameters, optimizer state, guard,
position in the data, every loss and validation, and the sample, bit by bit; and so must what was decided. Exit status 1
if anything differs.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_campaign import differences, write_experiments

from jaxformer.jobs.queue import RETRIES

PARENT, VARIANT, SEEDS = "best_fit", "gated", 2
GATED = """
from jaxformer.experiment.consequences import SolvedFeedForwardWidth
from jaxformer.experiment.variant import Variant

EXPERIMENT = Variant(
    parent="best_fit",
    question="Does it end the same?",
    change={"model.activation": "swiglu"},
    consequences=(SolvedFeedForwardWidth(),),
    expected=(-1, 1),
    source="nothing is expected",
)
"""
# What dies in a fault: the queue, and each of its runs with this probability; or the queue is asked to stop.
FAULTS = {"queue": 0.0, "both": 0.8, "runs": 0.8, "stop": 0.0}


def run_folders(folder: Path) -> list[Path]:
    """Returns the run folders of a study."""
    return [folder / name / f"seed_{seed}" for name in (PARENT, VARIANT) for seed in range(SEEDS)]


def start_study(place: Path, folder: Path) -> subprocess.Popen:
    """Starts the study of `place/experiments` as a process, with its runs, and its output, in a folder."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "JAXFORMER_CACHE": str(place / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    study = [f"--parent={PARENT}", f"--variants={VARIANT}", f"--seeds={SEEDS}", f"--runs={folder}", "--parallel=2"]
    command = [sys.executable, "-m", "jaxformer", "ablate", *study]
    with (folder / "queue.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)


def find_processes(folder: Path) -> dict[str, list[int]]:
    """Returns the numbers of the processes that train in a folder, by run; those of a killed queue have no parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has just ended.
            for argument in path.read_bytes().decode(errors="replace").split("\0"):
                if argument.startswith(f"--workdir={folder}/"):
                    found.setdefault(argument, []).append(int(path.parent.name))
    return found


def wait_for_moment(queue: subprocess.Popen, folder: Path, seconds: float, choices: random.Random) -> bool:
    """Waits for a moment: one in four at any time, the others while a run trains. Returns whether the queue runs."""
    ends = time.monotonic() + choices.uniform(0.05, 0.7) * seconds
    is_any, delay = choices.random() < 0.25, choices.uniform(0, 1)
    while queue.poll() is None:
        if time.monotonic() > ends if is_any else trains(folder):
            time.sleep(0 if is_any else delay)
            return queue.poll() is None
        time.sleep(0.02)
    return False


def trains(folder: Path) -> bool:
    """Returns whether a run of a folder has just written metrics."""
    files = [path for path in folder.glob("*/*/metrics.jsonl") if not (path.parent / "summary.json").exists()]
    return any(time.time() - path.stat().st_mtime < 0.2 for path in files)


def disturb(place: Path, folder: Path, kills: int, seconds: float, choices: random.Random) -> list[str]:
    """Runs a queue that is killed so many times; returns a line on each thing that went wrong."""
    problems, faults = [], 0
    while True:
        queue = start_study(place, folder)
        crashes = 0
        while faults < kills:
            if not wait_for_moment(queue, folder, seconds, choices):
                break
            faults += 1
            running = find_processes(folder)
            problems += [f"{run} has {len(ids)} processes" for run, ids in running.items() if len(ids) > 1]
            # A queue rightly gives up a run that crashes more often.
            allowed = [fault for fault in FAULTS if fault != "runs" or crashes < RETRIES]
            fault = choices.choice(allowed)
            crashes += fault == "runs"
            victims = [number for ids in running.values() for number in ids if choices.random() < FAULTS[fault]]
            for number in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            print(f"{folder.name}: {fault}, {len(victims)} of {len(running)} runs killed", flush=True)
            if fault != "runs":
                queue.send_signal(signal.SIGTERM if fault == "stop" else signal.SIGKILL)
                break
        returned = queue.wait()
        if returned == 0:
            return problems
        if returned not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            return [*problems, f"the queue ended with {returned}; see {folder / 'queue.log'}"]


def decision(folder: Path) -> dict:
    """Returns what a study found, but for what depends on the clock."""
    found = json.loads(next((folder / VARIANT).glob("comparison_*.json")).read_text(encoding="utf-8"))
    word = found["verdict"]["word"]
    return {name: value for name, value in found.items() if name not in ("cost", "until_next", "verdict")} | {
        "word": word
    }


def run_campaign(folder: Path, *, trials: int, kills: int, seed: int) -> list[str]:
    """Runs a campaign in an empty folder, and returns a line on each thing that differs."""
    (folder / "experiments").mkdir()
    write_experiments(folder / "experiments")
    (folder / "experiments" / f"{VARIANT}.py").write_text(GATED, encoding="utf-8")
    for name in ("prepared", "left_alone"):
        started = time.perf_counter()
        if (returned := start_study(folder, folder / name).wait()) != 0:
            raise RuntimeError(f"{folder / name / 'queue.log'}: a study that nothing stopped ended with {returned}")
        seconds = time.perf_counter() - started
    undisturbed = run_folders(folder / "left_alone")
    print(f"left alone: {len(undisturbed)} runs in {seconds:.0f} s", flush=True)
    problems, resumed = [], 0
    for trial in range(trials):
        killed = folder / f"trial_{trial}"
        found = disturb(folder, killed, kills, seconds, random.Random(f"{seed} {trial}"))
        runs = run_folders(killed)
        logs = [log.read_text(encoding="utf-8") for run in runs if (log := run.with_name(run.name + ".log")).exists()]
        resumed += sum(log.count("\nresumed from step") for log in logs)
        for run, other in zip(runs, undisturbed, strict=True):
            found += [f"{run}: {line}" for line in differences(run, other)]
        found += [f"{killed}: decided otherwise"] * (decision(killed) != decision(folder / "left_alone"))
        starts = sum(log.count("\n--- ") + 1 for log in logs)
        print(f"{killed.name}: {starts} starts of {len(runs)} runs, {len(found)} differences", flush=True)
        problems += found
    print(f"{trials} trials, {resumed} times resumed from a checkpoint: {len(problems)} differences")
    if not resumed:
        problems.append("no run was resumed from a checkpoint, so that nothing was proved")
    return problems


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5, help="studies that are disturbed")
    parser.add_argument("--kills", type=int, default=4, help="in each of them, at most")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ablate_campaign_", ignore_cleanup_errors=True) as folder:
        problems = run_campaign(Path(folder), trials=options.trials, kills=options.kills, seed=options.seed)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
