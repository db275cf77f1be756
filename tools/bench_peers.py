"""Measures our training step beside those of nanoGPT and nanodo, which run their own code from checkouts.

    git clone https://github.com/karpathy/nanoGPT && git clone https://github.com/google-deepmind/nanodo
    python tools/bench_peers.py --nanogpt=nanoGPT --nanodo=nanodo [--sizes=1m,27m,100m,500m] [--rounds=9]

All make forward and backward pass, clipping and AdamW on as many tokens, in float32 on a CPU and bfloat16 on a GPU, at
the same width, depth, heads and vocabulary; ours masks attention by document on top, three documents a row, and has
rotary positions. Ours and each peer take turns, so that a change of the machine's speed meets both, and each runs in a
process of its own, so that neither's threads are in the other's way. nanoGPT runs eager and by torch.compile. nanodo
runs on the JAX that is installed here; it needs absl-py, clu, flax, grain, ml_collections, optax, orbax-checkpoint,
sentencepiece and tensorflow-datasets. A peer that cannot run is named in a line.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import peer_steps
import step_cases
from step_cases import RESULTS, SIZES, Case, case_of
from versions import versions

OURS = "jaxformer"


def main() -> None:
    """Measures, prints and writes the JSON file."""
    options = parse_arguments()
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    result = {
        "device": device.device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "precision": "float32" if device.platform == "cpu" else "bfloat16",
        "versions": versions(*packages),
        "commits": {name: commit(path) for name, path in checkouts(options).items()},
        "lines": [],
    }
    for size in options.sizes:
        case = case_of(size, options.rows, options.row_length)
        print(f"{size}: {case.rows} rows of {case.row_length} tokens, {result['precision']}", flush=True)
        for name, peer in peers(options, case).items():
            line = {**case._asdict(), "peer": name, **compare(case, peer, options.rounds, options.turn)}
            result["lines"].append(line)
            print(describe(line), flush=True)
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Returns the options, checked."""
    default_json = RESULTS / f"peers_{jax.default_backend()}.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--nanodo", type=Path, help="checkout of nanodo")
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["1m", "27m"], help=", ".join(SIZES))
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["eager", "compile"], help="of nanoGPT")
    parser.add_argument("--rows", type=int, default=0, help="of a batch; 0: by size and device")
    parser.add_argument("--row_length", type=int, default=0, help="tokens; 0: by size and device")
    parser.add_argument("--rounds", type=int, default=9, help="turns that count, after two that do not")
    turn = 1 if jax.default_backend() == "cpu" else 10
    parser.add_argument("--turn", type=int, default=turn, help="steps of a turn, after which the device is waited for")
    parser.add_argument("--json", type=Path, default=default_json, help=f"written after every line ({default_json})")
    options = parser.parse_args()
    if unknown := set(options.sizes) - set(SIZES):
        parser.error(f"unknown sizes: {', '.join(unknown)}; known: {', '.join(SIZES)}")
    if unknown := set(options.modes) - {"eager", "compile"}:
        parser.error(f"unknown modes: {', '.join(unknown)}; known: eager, compile")
    if not checkouts(options):
        parser.error("name a checkout: --nanogpt=PATH or --nanodo=PATH")
    for name, path in checkouts(options).items():
        if not path.is_dir():
            parser.error(f"--{name} ({path}) is not a folder")
    return options


def checkouts(options) -> dict[str, Path]:
    """Returns the folders that were named, by project."""
    return {name: getattr(options, name) for name in ("nanogpt", "nanodo") if getattr(options, name)}


def commit(checkout: Path) -> str | None:
    """Returns the git commit of a checkout, or None where there is none."""
    done = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, encoding="utf-8"
    )
    return done.stdout.strip() or None


def peers(options, case: Case) -> dict:
    """Returns functions that build the step of each peer, by name."""
    shape = {"size": SIZES[case.size], "rows": case.rows, "T": case.row_length, "turn": options.turn}
    found = {}
    if options.nanogpt:
        nanogpt = functools.partial(peer_steps.nanogpt_step, options.nanogpt.resolve(), **shape)
        found = {f"nanogpt_{mode}": functools.partial(nanogpt, compiled=mode == "compile") for mode in options.modes}
    if options.nanodo:
        found["nanodo"] = functools.partial(peer_steps.nanodo_step, options.nanodo.resolve(), **shape)
    return found


def compare(case: Case, peer, rounds: int, turn: int) -> dict:
    """Returns the figures of a peer and of our step in turns with it, or why it cannot run, under "failed"."""
    steps = {"peer": Served(peer), OURS: Served(functools.partial(step_cases.jaxformer_step, case, turn))}
    try:
        parameters = {name: step.parameters() for name, step in steps.items()}
        for step in [*steps.values()] * 2:  # Compiles, and the second time meets the layouts that the first left.
            step.seconds()
        seconds = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                seconds[name].append(step.seconds() / turn)
    except PeerFailed as failure:
        return {"failed": str(failure)}
    finally:
        for step in steps.values():
            step.stop()
    ratios = [theirs / ours for theirs, ours in zip(seconds["peer"], seconds[OURS], strict=True)]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "parameters": parameters,
        "milliseconds": {name: 1e3 * median for name, median in medians.items()},
        "least_milliseconds": {name: 1e3 * min(times) for name, times in seconds.items()},
        "tokens_per_second": {name: case.rows * case.row_length / median for name, median in medians.items()},
        "speed_against_peer": statistics.median(ratios),
        "ratios": ratios,
    }


def describe(line: dict) -> str:
    """Returns a comparison as lines of text."""
    if "failed" in line:
        return f"  {line['peer']:16s} cannot run: {line['failed']}"
    rows = []
    for key, name in (("peer", line["peer"]), (OURS, OURS)):
        rows.append(
            f"  {name:16s} {line['parameters'][key]:12,} parameters {line['milliseconds'][key]:10.1f} ms"
            f" (least {line['least_milliseconds'][key]:.1f}) {line['tokens_per_second'][key]:10,.0f} tokens/s"
        )
    ratios = line["ratios"]
    rows[1] += f"   {line['speed_against_peer']:.2f} x {line['peer']} ({min(ratios):.2f} to {max(ratios):.2f})"
    return "\n".join(rows)


class PeerFailed(Exception):
    """Why a step cannot be built or run, in a line."""


class Served:
    """A step in a process of its own, built by a function that can be sent there."""

    def __init__(self, build):
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(theirs, build), daemon=True)
        self._process.start()
        theirs.close()

    def parameters(self) -> int:
        """Returns the parameters of the model, when it is built."""
        return self._answer()

    def seconds(self) -> float:
        """Makes a turn and returns how long it took."""
        self._connection.send(None)
        return self._answer()

    def stop(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()

    def _answer(self):
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise PeerFailed(f"its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise PeerFailed(answer)
        return answer


def serve(connection, build) -> None:
    """Builds a step, then makes a turn for every message and answers with its seconds; or with what went wrong."""
    try:
        run, parameters = build()
        connection.send(parameters)
        while True:
            connection.recv()
            started = time.perf_counter()
            run()
            connection.send(time.perf_counter() - started)
    except EOFError:  # The end of who asks.
        pass
    except Exception as error:
        connection.send(f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
