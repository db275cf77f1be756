"""Measures saving, verifying and restoring a model's training state: `python tools/bench_checkpoint.py [--model=27m]`.

A step is jitted with its state donated, as in training, and the state is saved between steps. The medians of several
rounds are printed and, with `--json=FILE`, written.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from versions import versions

from jaxformer.checkpoint.train_state import CheckpointConfig, fingerprints, open_checkpoints, restore, save
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import TrainState, init_state

MODELS = {
    "1m": ModelConfig(vocabulary_size=4096, width=128, depth=4, heads=4),
    "27m": ModelConfig(vocabulary_size=32_768, width=384, depth=8, heads=6),
    "100m": ModelConfig(vocabulary_size=32_768, width=640, depth=16, heads=10),
    "500m": ModelConfig(vocabulary_size=32_768, width=960, depth=42, heads=15),
}


def random_state(config: ModelConfig) -> TrainState:
    """Returns a state of random numbers, which cannot be compressed: the dearest case."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=1), steps=9)
    state = init_state(config, optimizer, seed=0)
    rng = np.random.default_rng(0)
    params, opt_state = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.standard_normal(x.shape), x.dtype), (state.params, state.opt_state)
    )
    return state.replace(params=params, opt_state=opt_state)


def change(state: TrainState) -> TrainState:
    """Returns another state, in the memory of the first where it is donated, as a training step does."""
    params, opt_state = jax.tree.map(lambda x: x + x.dtype.type(1), (state.params, state.opt_state))
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def measure(config: ModelConfig, rounds: int, folder: Path) -> dict:
    """Returns the medians, in seconds, and the bytes of a state and of its checkpoint."""
    state, step = random_state(config), jax.jit(change, donate_argnums=0)
    named = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}
    times = {"fingerprints": [], "save_blocks": [], "until_saved": [], "restore": []}

    def timed(name: str, function, *arguments):
        started = time.perf_counter()
        result = function(*arguments)
        times[name].append(time.perf_counter() - started)
        return result

    fingerprints(named)
    with open_checkpoints(folder / "checkpoints", CheckpointConfig(keep=2)) as checkpoints:
        for _ in range(rounds + 1):
            state = jax.block_until_ready(step(state))
            named = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}
            timed("fingerprints", fingerprints, named)
            started = time.perf_counter()
            timed("save_blocks", save, checkpoints, state, {"next_index": 1}, {"identity": {}})
            state = jax.block_until_ready(step(state))
            checkpoints.check(wait=True)
            times["until_saved"].append(time.perf_counter() - started)
            timed("restore", restore, checkpoints, state)
        newest = folder / "checkpoints" / str(checkpoints.steps()[-1])
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return medians | {"state_bytes": sum(leaf.nbytes for leaf in named.values()), "checkpoint_bytes": size}


def main() -> None:
    """Measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="27m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="bench_checkpoint_") as folder:
        result = measure(MODELS[options.model], options.rounds, Path(folder))
    print(f"state         {result['state_bytes'] / 1e6:8.1f} MB, {result['checkpoint_bytes'] / 1e6:.1f} MB on disk")
    for name in ("fingerprints", "save_blocks", "until_saved", "restore"):
        print(f"{name:13} {result[name]:8.3f} s")
    if options.json:
        where = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "model": options.model}
        packages = versions("jax", "orbax-checkpoint", "tensorstore")
        options.json.write_text(
            json.dumps({**where, "versions": packages, **result}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
