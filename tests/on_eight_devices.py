"""Steps and checkpoints on eight simulated devices, in a process of their own; prints what came out as JSON."""

import collections
import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from jaxformer.checkpoint.fingerprint import fingerprints
from jaxformer.checkpoint.train_state import (
    CheckpointConfig,
    abstract,
    open_checkpoints,
    restore,
    restore_params,
    save_and_wait,
)
from jaxformer.data.packing import Batch, PackingConfig
from jaxformer.devices.mesh import MeshConfig, make_mesh, put_rows
from jaxformer.evaluation.loglikelihood import Request, score
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import compile_step, eval_step, init_state

STEPS, MIDDLE = 20, 12
ROWS, T, V = 16, 12, 40
# Layers one after another, as on a GPU; and ids that the tokenizer does not have.
MODEL = ModelConfig(vocabulary_size=V + 8, width=16, depth=3, heads=2, feed_forward_width=24, scan_unroll=1)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), STEPS)


def make_batch(step: int) -> Batch:
    """Returns rows of two documents each, of which a part of the targets counts; more in some rows than in others."""
    rng = np.random.default_rng(step)
    tokens_BT = rng.integers(0, V, (ROWS, T), dtype=np.int32)
    starts_BT = np.where(np.arange(T) < 5, 0, 5)[None].repeat(ROWS, 0).astype(np.int32)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=(3 * tokens_BT + 1) % V,
        loss_weights_BT=(rng.random((ROWS, T)) < np.linspace(0.1, 1, ROWS)[:, None]).astype(np.float32),
        segment_ids_BT=1 + (starts_BT > 0).astype(np.int32),
        positions_BT=np.arange(T, dtype=np.int32)[None] - starts_BT,
        document_starts_BT=starts_BT,
        document_ends_BT=np.where(starts_BT > 0, T, 5).astype(np.int32),
    )


def begin(data: int, fsdp: int, micro_batches: int = 1, remat: str = "none"):
    """Returns the first state on a mesh of the first devices, and the compiled step."""
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), jax.devices())
    model = dataclasses.replace(MODEL, remat=remat)
    state = init_state(model, OPTIMIZER, seed=0, micro_batches=micro_batches, mesh=mesh, token_count=V)
    return state, compile_step(state).lower(state, put_rows(state.mesh, make_batch(0))).compile()


def train(state, step, first: int = 0, at_middle=None):
    """Returns the losses of the steps from one on, and the last state."""
    losses = []
    for number in range(first, STEPS):
        if number == MIDDLE and at_middle:
            at_middle(state)
        state, metrics = step(state, put_rows(state.mesh, make_batch(number)))
        losses.append(metrics["loss"])
    return list(map(float, losses)), state


def bits(state) -> dict[str, int]:
    """Returns a fingerprint of each array of a state, however it is spread."""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    return fingerprints({jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def collectives_by_loop(compiled) -> dict[str, dict[str, int]]:
    """Returns how many gathers and scattered sums are in each loop of a program, and outside of all."""
    text, found, inside = compiled.as_text(), collections.defaultdict(collections.Counter), ""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            inside = head[1] if head[1] in bodies else "outside"
        if collective := re.search(r" (all-gather|reduce-scatter)(?:-start)?\(", line):
            found[inside][collective[1]] += 1
    return found


def evaluations(state) -> dict:
    """Returns the nats of a batch's targets, and of continuations, more than the rows of a device."""
    rng = np.random.default_rng(0)
    requests = [Request(rng.integers(0, V, n + 2, dtype=np.int32), 1 + int(n) % 3) for n in rng.integers(2, T - 1, 37)]
    scores = score(state, requests, PackingConfig(row_length=T), rows_per_batch=3)
    nats_BT = jax.jit(eval_step)(state, make_batch(0))
    return {"validation": np.asarray(nats_BT).ravel().tolist(), "cloze": scores.nats.tolist()}


def main(folder: Path) -> dict:
    out = {"losses": {}, "initial": {}, "saved": {}, "restored": {}, "resumed": {}}

    def saving(name):
        def save(state):
            out["saved"][name] = bits(state)
            with open_checkpoints(folder / name, CheckpointConfig()) as checkpoints:
                save_and_wait(checkpoints, state, {"next_index": MIDDLE}, {})

        return save

    begun = {name: begin(*map(int, name.split("x"))) for name in ("1x1", "8x1", "1x8", "1x4")}
    begun["2x4"] = begin(2, 4, micro_batches=2, remat="block")
    like = {name: abstract(state) for name, (state, _) in begun.items()}
    for name in ("1x1", "8x1", "1x8", "2x4"):
        state, step = begun[name]
        out["initial"][name] = bits(state)
        out["losses"][name], state = train(state, step, at_middle=saving(name) if name in ("1x1", "1x8") else None)
        if name in ("1x1", "2x4"):
            out[f"evaluations of {name}"] = evaluations(state)
        if name == "1x8":
            out["collectives"] = collectives_by_loop(step)
            out["shares"] = {
                jax.tree_util.keystr(path): leaf.addressable_shards[0].data.size / leaf.size
                for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
                if leaf.ndim > 1
            }
    for before, after in (("1x8", "1x1"), ("1x8", "1x4"), ("1x1", "1x8")):
        name = f"{before} on {after}"
        with open_checkpoints(folder / before) as checkpoints:
            state = restore(checkpoints, like[after]).state
        out["restored"][name] = bits(state)
        out["resumed"][name] = train(state, begun[after][1], first=MIDDLE)[0]
    with open_checkpoints(folder / "1x1") as checkpoints:
        params = restore_params(checkpoints, like["1x8"].params)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    out["started"] = bits(init_state(MODEL, OPTIMIZER, seed=5, mesh=mesh, token_count=V, params=params))
    return out


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    print(json.dumps(main(Path(sys.argv[1]))))
