"""Predicts what a training step costs on a GPU, by the program that the compiler makes of it: no GPU is needed.

    python tools/gpu_cost.py --experiment=baseline_27m [--gpu=H100] [--kernels=20] [--json=RESULT.json]
    python tools/gpu_cost.py --sizes [--json=tools/results/gpu_cost_h100.json]

The step is compiled ahead of time. Of each kernel the bytes that it reads and writes, its operations and its launches
are read from the optimised program, loops by their trip counts; a kernel takes as long as the slowest of these at the
rates that are given, and a constant to begin. What an experiment leaves open is chosen as for a run on such a GPU.
`--sizes` takes the three real sizes, of 65,536 tokens a step.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gpu_target
import hlo
import numpy as np
from jax.sharding import Mesh
from versions import versions

from jaxformer.attention.dispatch import Implementation
from jaxformer.config import replace
from jaxformer.devices.device import peak_tflops
from jaxformer.devices.mesh import DATA, FSDP
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.resolution import load_experiment
from jaxformer.flops import training_flops_per_token
from jaxformer.loss import default_chunk_tokens
from jaxformer.plan.device_fit import choose_fit, named_device

SIZES = ("baseline_27m", "baseline_100m", "baseline_500m")

KINDS: tuple[str, ...] = (
    "matmul",
    "logits matmul",
    "attention",
    "logits and loss",
    "stacks",
    "copies",
    "elementwise",
    "optimizer",
    "other",
)


class Rates(NamedTuple):
    """What a GPU reaches; by default an H100 SXM, as others measured it."""

    matmul: float = 600.0
    """TFLOP/s of matmuls in bfloat16: half to three quarters of the peak."""
    attention: float = 280.0
    """The same of the tiles of flash attention that are visited."""
    memory: float = 2.9
    """TB/s, read and written."""
    elements: float = 15.0
    """Float32 operations on elements, 10^12 a second."""
    transcendental: float = 3.5
    """Exponentials, roots and divisions, 10^12 a second."""
    launch: float = 2.0
    """Microseconds from one kernel to the next."""
    visited: float = 0.71
    """Share of the causal tiles of attention that documents leave to visit; this one at a median length of 490 tokens,
    in rows of 2,048.
    """


class Cost(NamedTuple):
    """Of the kernels of a kind in one step."""

    launches: float
    gigabytes: float
    tflop: float
    """Of matmuls, attention's among them."""
    milliseconds: float


def main() -> int:
    """Compiles, prints, and writes the JSON file; returns 2 where nothing can be compiled for a GPU here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="baseline_27m")
    parser.add_argument("--sizes", action="store_true", help=f"instead of it: {', '.join(SIZES)}")
    parser.add_argument("--gpu", choices=gpu_target.KINDS, default="H100")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the experiment, as JSON")
    parser.add_argument("--kernels", type=int, default=0, help="print so many of those that take the longest")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    for name, value in Rates()._asdict().items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"default {value:g}")
    options = parser.parse_args()
    devices = gpu_target.find_devices(options.gpu)
    if not devices:
        print("gpu_cost: install jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version", file=sys.stderr)
        return 2
    rates = Rates(*(getattr(options, name) for name in Rates._fields))
    changes = dict(_change(one) for one in options.set)
    results = {}
    for name in SIZES if options.sizes else [options.experiment]:
        experiment = prepared(load_experiment(name), options.gpu, changes)
        compiled = step_kernels(experiment, devices)
        costs = costs_by_kind(compiled, rates)
        print(table(name, experiment, costs, devices[0].device_kind))
        for kernel in sorted(compiled, key=lambda each: -seconds(each, rates))[: options.kernels]:
            print(describe(kernel, rates))
        results[name] = {kind: cost._asdict() for kind, cost in costs.items()}
    if options.json:
        about = {"device": devices[0].device_kind, "versions": versions("jax", "jaxlib"), "rates": rates._asdict()}
        options.json.write_text(json.dumps({**about, "steps": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def _change(text: str) -> tuple[str, object]:
    field, _, value = text.partition("=")
    return field, value if value.isidentifier() else json.loads(value)


def prepared(experiment: Experiment, gpu: str, changes: dict) -> Experiment:
    """Returns an experiment as its step is computed on a GPU, by its name, as far as the changes leave it open."""
    V = experiment.model.vocabulary_size
    chosen = {"model.loss_chunk_tokens": default_chunk_tokens(V, "gpu"), "model.loss": "pallas"}
    experiment = replace(experiment, chosen | changes)
    experiment = choose_fit(experiment, named_device(experiment, gpu)).experiment
    return replace(experiment, {"training.compute_dtype": "bfloat16"})


def step_kernels(experiment: Experiment, devices: Sequence) -> list[hlo.Kernel]:
    """Returns the kernels of a step on one device."""
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1), (DATA, FSDP))
    return hlo.kernels(gpu_target.compile_for(experiment, mesh, Implementation("pallas")).as_text() or "")


def costs_by_kind(kernels: Sequence[hlo.Kernel], rates: Rates) -> dict[str, Cost]:
    """Returns what the kernels of each kind of `KINDS` cost together."""
    costs = dict.fromkeys(KINDS, Cost(0, 0.0, 0.0, 0.0))
    for one in kernels:
        kind = kind_of(one)
        tflop = one.runs * matmul_flops(one, rates) / 1e12
        each = one.runs, one.runs * one.bytes / 1e9, tflop, 1e3 * seconds(one, rates)
        costs[kind] = Cost(*(a + b for a, b in zip(costs[kind], each, strict=True)))
    return costs


def kind_of(kernel: hlo.Kernel) -> str:
    """Returns which of `KINDS` a kernel is."""
    name = kernel.op_name
    is_loss = "(loss)" in name or "/loss/" in name
    if "document_flash" in name:
        return "attention"
    if kernel.matmul or loss_flops(kernel):
        return "logits matmul" if is_loss else "matmul"
    if is_loss:
        return "logits and loss"
    if not kernel.computes and (kernel.opcodes & {"dynamic-update-slice", "dynamic-slice"} or kernel.read < 16):
        return "stacks"  # Written to, read, or filled with a number before.
    if not kernel.computes:
        return "copies"
    if "/optimizer" in name or "/metrics" in name or "state_" in name:
        return "optimizer"
    if any(scope in name for scope in ("attention", "feed_forward", "norm", "residual")):
        return "elementwise"
    return "other"


def seconds(kernel: hlo.Kernel, rates: Rates) -> float:
    """Returns how long all runs of a kernel take."""
    is_attention = kind_of(kernel) == "attention"
    matmul = matmul_flops(kernel, rates) / (rates.attention if is_attention else rates.matmul)
    elements = max(kernel.computes / rates.elements, kernel.transcendental / rates.transcendental)
    slowest = max(matmul, kernel.bytes / rates.memory, elements)
    return kernel.runs * (slowest / 1e12 + rates.launch / 1e6)


def matmul_flops(kernel: hlo.Kernel, rates: Rates) -> float:
    """Returns the operations of a kernel's matmuls, those of our own kernels among them."""
    is_attention = kind_of(kernel) == "attention"
    return attention_flops(kernel, rates) if is_attention else kernel.matmul + loss_flops(kernel)


def loss_flops(kernel: hlo.Kernel) -> float:
    """Returns the operations of the logits in a kernel of the loss; 0 of any other."""
    if "cross_entropy_" not in kernel.op_name:
        return 0.0
    (_, (N, D)), (_, (V, _)), *_ = kernel.operands
    return 2.0 * N * V * D


def attention_flops(kernel: hlo.Kernel, rates: Rates) -> float:
    """Returns the operations of the tiles that a kernel of flash attention visits."""
    (_, (B, T, H, K)), *_ = kernel.operands  # The queries.
    matmuls = next(count for part, count in FLASH_MATMULS.items() if part in kernel.op_name)
    return rates.visited * matmuls * B * H * T * T * K  # A matmul over half of the pairs.


FLASH_MATMULS = {"document_flash_forward": 2, "document_flash_queries": 3, "document_flash_keys": 4}


def table(name: str, experiment: Experiment, costs: dict[str, Cost], device: str) -> str:
    """Returns the costs as text."""
    total = Cost(*(sum(each) for each in zip(*costs.values(), strict=True)))
    tokens = experiment.training.rows_per_step * experiment.packing.row_length
    flops = tokens * training_flops_per_token(experiment.model, experiment.packing.row_length)
    share = flops / 1e12 / (total.milliseconds / 1e3) / (peak_tflops(device) or math.nan)
    how = f"{experiment.training.micro_batches} micro-batches, remat {experiment.model.remat}"
    lines = [
        f"{name}: {tokens:,} tokens, {how}, on {device}",
        f"  {'':16}{'launches':>9}{'GB':>9}{'TFLOP':>9}{'ms':>9}",
    ]
    for kind, cost in [*costs.items(), ("step", total)]:
        lines.append(f"  {kind:16}{cost.launches:9.0f}{cost.gigabytes:9.1f}{cost.tflop:9.2f}{cost.milliseconds:9.2f}")
    lines.append(f"  {tokens / total.milliseconds * 1e3:,.0f} tokens/s, {share:.1%} of the peak by the causal formula")
    return "\n".join(lines)


def describe(kernel: hlo.Kernel, rates: Rates) -> str:
    """Returns a line on a kernel."""
    name = "/".join(kernel.op_name.split("/")[1:])[-60:]
    about = f"{kernel.runs:4} x {kernel.bytes / 1e6:8.1f} MB {kernel.matmul / 1e9:8.1f} GFLOP"
    return f"  {1e3 * seconds(kernel, rates):8.3f} ms {about}  {kind_of(kernel):16} {kernel.name[:34]:34} {name}"


if __name__ == "__main__":
    sys.exit(main())
