"""Compares the formula for the memory of a step with what the compiler says, for the real sizes.

    python tools/check_memory.py [--sizes=27m,100m,500m] [--json=tools/results/memory_h100.json]

Where the CUDA plugin of JAX is installed, one H100 or eight are compiled for, without one being here; nothing is run.
It takes about ten seconds a step on two cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gpu_target
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from versions import versions

from jaxformer.attention.dispatch import Implementation
from jaxformer.config import replace
from jaxformer.devices.mesh import DATA, FSDP
from jaxformer.experiment.resolution import load_experiment
from jaxformer.loss import default_chunk_tokens
from jaxformer.plan.compiled_step import compiled_bytes
from jaxformer.plan.device_fit import computed_with, ways
from jaxformer.plan.memory import Target

PARTS = (
    "mixture_of_experts",
    "hyper_connections",
    "manifold_hyper_connections",
    "latent_attention",
    "hybrid_attention",
    "value_embeddings",
    "multi_token_prediction",
)


class Step(NamedTuple):
    """Rows of 2,048 tokens in a step, its micro-batches, what it recomputes, on what, and a question's change."""

    size: str
    rows: int
    micro_batches: int
    remat: str
    attention: str = "pallas"
    data: int = 1
    fsdp: int = 1
    variant: str = ""


STEPS = [
    Step("27m", 16, 1, "none"),
    Step("27m", 16, 1, "elementwise"),
    Step("27m", 16, 1, "block"),
    Step("27m", 64, 4, "none"),
    Step("27m", 16, 1, "block", "xla"),
    Step("27m", 32, 1, "none", "xla"),
    Step("100m", 16, 1, "none"),
    Step("100m", 16, 1, "elementwise"),
    Step("100m", 16, 4, "elementwise"),
    Step("100m", 16, 1, "feed_forward"),
    Step("100m", 16, 1, "block"),
    Step("100m", 32, 1, "block", "xla"),
    Step("100m", 32, 1, "feed_forward", "xla"),
    Step("100m", 64, 1, "elementwise", data=8),
    Step("100m", 64, 1, "elementwise", fsdp=8),
    Step("100m", 128, 8, "block", data=2, fsdp=4),
    Step("500m", 32, 4, "none"),
    Step("500m", 32, 1, "elementwise"),
    Step("500m", 32, 4, "feed_forward"),
    Step("500m", 32, 1, "block"),
    Step("500m", 1, 1, "none"),
    Step("500m", 32, 1, "block", "xla"),
    Step("500m", 64, 1, "elementwise", fsdp=8),
    Step("500m", 64, 1, "block", fsdp=8),
    Step("500m", 64, 4, "block", fsdp=8),
    *(
        Step(size, 16, micro_batches, remat, variant=variant)
        for variant in PARTS
        for size, micro_batches, remat in (
            ("27m", 1, "none"),
            ("27m", 1, "elementwise"),
            ("27m", 4, "elementwise"),
            ("27m", 1, "block"),
            ("100m", 1, "elementwise"),
        )
    ),
]


def main() -> int:
    """Compiles, prints and writes the JSON file; returns 1 where the formula is off by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="27m,100m,500m", help="separated by commas (default: all)")
    parser.add_argument("--variants", help="separated by commas; '' for the plain model alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    devices = gpu_target.find_devices("H100") or jax.devices()
    print(f"{devices[0].device_kind}: GB on each device, compiled and by formula")
    results = []
    for step in STEPS:
        is_asked = options.variants is None or step.variant in options.variants.split(",")
        if step.size not in options.sizes.split(",") or step.data * step.fsdp > len(devices) or not is_asked:
            continue
        compiled, formula = compare(step, devices)
        print(
            f"{step.size:5} {step.rows:4} rows in {step.micro_batches:2}  {step.remat:13} "
            f"{step.variant or step.attention:26} "
            f"{step.data} x {step.fsdp} {compiled / 1e9:7.2f} {formula / 1e9:7.2f} {formula / compiled - 1:+.1%}",
            flush=True,
        )
        results.append({**step._asdict(), "compiled_bytes": compiled, "formula_bytes": formula})
    if options.json:
        record = {"device": devices[0].device_kind, "versions": versions("jax", "jaxlib"), "steps": results}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(any(abs(each["formula_bytes"] / each["compiled_bytes"] - 1) > 0.1 for each in results))


def compare(step: Step, devices: Sequence[jax.Device]) -> tuple[int, int]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the bytes of a step at its peak on each device, as compiled and by formula."""
    is_gpu = devices[0].platform in ("gpu", "cuda")
    platform, dtype = ("gpu", "bfloat16") if is_gpu else ("cpu", "float32")
    attention = step.attention if is_gpu else "xla"
    baseline = load_experiment(f"{step.variant}@baseline_{step.size}".lstrip("@"))
    values = {
        "training.rows_per_step": step.rows,
        "training.compute_dtype": dtype,
        "model.loss_chunk_tokens": default_chunk_tokens(baseline.model.vocabulary_size, platform),
        "model.loss": "pallas" if is_gpu else "xla",
    }
    target = Target(devices[0].device_kind, platform, 0, attention, jnp.dtype(dtype), step.data, step.fsdp)
    (fit,) = ways(computed_with(replace(baseline, values), step.remat, step.micro_batches), target)
    mesh = Mesh(np.array(devices[: target.devices]).reshape(step.data, step.fsdp), (DATA, FSDP))
    compiled = compiled_bytes(gpu_target.compile_for(fit.experiment, mesh, Implementation(attention)))
    return compiled, fit.memory.peak


if __name__ == "__main__":
    sys.exit(main())
