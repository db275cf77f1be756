"""Measures the training step, side by side with the same decoder in eager PyTorch where that is installed.

    python tools/bench_step.py [--experiment=baseline] [--rows=8] [--rounds=20] [--json=RESULT.json]

Both train on the same shapes in float32 with AdamW, clipping and causal attention; jaxformer's attention is masked by
document on top, with three documents a row. Steps alternate, so that a change of the machine's speed meets both, and
PyTorch runs in a process of its own, so that neither's threads are in the other's way.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from versions import versions

from jaxformer.experiment import make_state
from jaxformer.flops import training_flops_per_token
from jaxformer.model import ModelConfig
from jaxformer.packing import Batch
from jaxformer.step import train_step
from jaxformer.variant import load_experiment


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="baseline")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    experiment = load_experiment(options.experiment)
    model, rows, T = experiment.model, options.rows, experiment.packing.row_length

    steps = {"jaxformer": jax_step(experiment, rows, T)}
    if importlib.util.find_spec("torch"):
        ours, theirs = multiprocessing.Pipe()
        arguments = (theirs, model, rows, T)
        multiprocessing.get_context("spawn").Process(target=serve_torch_steps, args=arguments, daemon=True).start()
        steps["pytorch_eager"] = lambda: (ours.send(None), ours.recv())
    else:
        print("PyTorch is not installed: measuring jaxformer alone")
    seconds = {name: [] for name in steps}
    for round_number in range(options.rounds + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number >= 3:
                seconds[name].append(time.perf_counter() - started)

    result = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "rows": rows,
        "row_length": T,
        "rounds": options.rounds,
        "versions": versions("jax", "flax", "torch", "numpy"),
        "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "tokens_per_second": {name: rows * T / statistics.median(times) for name, times in seconds.items()},
    }
    flops = training_flops_per_token(model, T)
    for name, times in seconds.items():
        speed = result["tokens_per_second"][name]
        print(
            f"{name:14s} {1e3 * statistics.median(times):8.1f} ms (least {1e3 * min(times):.1f})  "
            f"{speed:10,.0f} tokens/s  {speed * flops / 1e12:.3f} TFLOP/s"
        )
    if "pytorch_eager" in seconds:
        pairs = zip(seconds["pytorch_eager"], seconds["jaxformer"], strict=True)
        result["speed_against_pytorch"] = statistics.median(theirs / ours for theirs, ours in pairs)
        print(f"jaxformer runs at {result['speed_against_pytorch']:.2f} x the speed of PyTorch (median of pairs)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def jax_step(experiment, rows: int, T: int):
    """Returns a function that makes one step and waits for it."""
    random = np.random.default_rng(0)
    tokens_BT = random.integers(0, experiment.model.vocabulary_size, (rows, T), dtype=np.int32)
    cuts = np.sort(random.integers(1, T, (rows, 2)), axis=1)
    indices_1T = np.arange(T, dtype=np.int32)[None, :]
    starts_BT = np.where(indices_1T >= cuts[:, 1:], cuts[:, 1:], np.where(indices_1T >= cuts[:, :1], cuts[:, :1], 0))
    ends_BT = np.where(indices_1T < cuts[:, :1], cuts[:, :1], np.where(indices_1T < cuts[:, 1:], cuts[:, 1:], T))
    batch = Batch(
        tokens_BT=tokens_BT,
        targets_BT=np.roll(tokens_BT, -1, axis=1),
        loss_weights_BT=np.ones((rows, T), np.float32),
        segment_ids_BT=(1 + (indices_1T >= cuts[:, :1]) + (indices_1T >= cuts[:, 1:])).astype(np.int32),
        positions_BT=(indices_1T - starts_BT).astype(np.int32),
        document_starts_BT=starts_BT.astype(np.int32),
        document_ends_BT=ends_BT.astype(np.int32),
    )
    step = jax.jit(train_step, donate_argnums=0)
    state = make_state(experiment, seed=0)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def serve_torch_steps(connection, model: ModelConfig, rows: int, T: int) -> None:
    """Makes a step for every message and answers when it is done."""
    step = torch_step(model, rows, T)
    with contextlib.suppress(EOFError):  # The end of who asks.
        while True:
            connection.recv()
            connection.send(step())


def torch_step(config: ModelConfig, rows: int, T: int):
    """Returns the same for the baseline's decoder in PyTorch, as its users would write it."""
    import torch
    from torch import nn
    from torch.nn import functional

    D, H, K, V = config.width, config.heads, config.K, config.vocabulary_size
    angles = torch.arange(T)[:, None] * config.rope_base ** (-torch.arange(K // 2) / (K // 2))[None, :]
    cos, sin = angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]

    def rotate(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.feed_forward_norm = nn.RMSNorm(D), nn.RMSNorm(D)
            self.qkv = nn.Linear(D, 3 * H * K, bias=False)
            self.attention_out = nn.Linear(H * K, D, bias=False)
            self.up = nn.Linear(D, config.F, bias=False)
            self.down = nn.Linear(config.F, D, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.attention_norm(x)).view(rows, T, 3, H, K).unbind(dim=2)
            q, k, v = rotate(q).transpose(1, 2), rotate(k).transpose(1, 2), v.transpose(1, 2)
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attention_out(attended.transpose(1, 2).reshape(rows, T, H * K))
            return x + self.down(functional.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))

    embedding, layers, norm = nn.Embedding(V, D), nn.ModuleList(Layer() for _ in range(config.depth)), nn.RMSNorm(D)
    nn.init.normal_(embedding.weight, std=0.02)
    parameters = [*embedding.parameters(), *layers.parameters(), *norm.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    tokens, targets = torch.randint(0, V, (rows, T)), torch.randint(0, V, (rows, T))

    def run():
        optimizer.zero_grad()
        x = embedding(tokens)
        for layer in layers:
            x = layer(x)
        loss = functional.cross_entropy((norm(x) @ embedding.weight.T).view(-1, V), targets.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert math.isfinite(loss.item())

    return run


if __name__ == "__main__":
    main()
