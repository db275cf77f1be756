"""Measures attention over packed documents on a GPU: every implementation, and what else there is to choose from.

    python tools/bench_attention.py [--models=27m,100m,500m] [--row_lengths=1024,2048,4096] [--medians=250,490,1100,0]

Each line of the table is one shape, with the same tokens in every batch: the heads of a model, a row length, and
documents whose lengths are log-normal with that median (and a deviation of 1), packed as in training; the median 0
stands for one document in each row. Inputs are fresh, random and bfloat16; figures are medians of turns that the
candidates take. `pallas` has its default tiles, and `pallas_tuned` those which `auto` finds. tokamax is measured where
it can be imported. So are PyTorch's causal attention, FlexAttention with a document mask (with and without making the
mask, which every batch needs) and varlen attention, in turns in a process of their own. Each is compared with a float64
oracle and repeated to compare its bits. A shape takes half a minute or more, most of it to compile.
"""

import argparse
import functools
import importlib.util
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the device.

import jax
import jax.numpy as jnp
import numpy as np
from versions import versions

from jaxformer.attention.cudnn import count_segments
from jaxformer.attention.dispatch import Implementation
from jaxformer.attention.document_mask import document_bounds, visible_share
from jaxformer.attention.trial import fastest_tiles, forward_backward, random_inputs
from jaxformer.data.packing import PackingConfig, plan_rows
from jaxformer.devices.timing import milliseconds

HEADS = {"27m": 6, "100m": 10, "500m": 15}
# Documents of a row at most: it costs a percent of fill, and cuDNN's packed layout pays for every one that could be.
DOCUMENTS_PER_ROW = 32
YARDSTICK = "cudnn_causal"


class Case(NamedTuple):
    """A line of the table; median is that of the documents' lengths in tokens, 0 for one document in each row."""

    model: str
    rows: int
    row_length: int
    median: int
    packing: str = "best_fit"
    key_value_heads: int = 0
    head_width: int = 64


def main() -> None:
    """Measures, prints and writes the JSON file."""
    options = parse_arguments()
    device = jax.devices()[0]
    if device.platform != "gpu":
        print(f"bench_attention: attention is measured on a GPU, and this is a {device.device_kind}", file=sys.stderr)
        sys.exit(2)
    cases = [
        Case(model, options.tokens // T, T, median, options.packing, options.key_value_heads, options.head_width)
        for model in options.models
        for T in options.row_lengths
        for median in options.medians
    ]
    packages = ("jax", "jaxlib", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "tokamax", "torch", "flash-attn")
    result = {"device": device.device_kind, "versions": versions(*packages), "lines": []}
    torch_times = start_torch()
    for number, case in enumerate(cases):
        line = measure(case, seed=number, torch_times=torch_times)
        result["lines"].append(line)
        print(f"[{number + 1}/{len(cases)}] {describe(line)}", flush=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Returns the options, checked."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    default_json = Path(__file__).parent / "results" / "attention_gpu.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(HEADS), help=", ".join(HEADS))
    parser.add_argument("--row_lengths", type=numbers, default=[1024, 2048, 4096])
    parser.add_argument("--medians", type=numbers, default=[250, 490, 1100, 0])
    parser.add_argument("--packing", choices=("best_fit", "concat_and_split"), default="best_fit")
    parser.add_argument("--key_value_heads", type=int, default=0, help="0 for as many as the model's heads")
    parser.add_argument("--head_width", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of a batch")
    parser.add_argument("--json", type=Path, default=default_json, help=f"written after every line ({default_json})")
    options = parser.parse_args()
    if unknown := set(options.models) - set(HEADS):
        parser.error(f"unknown models: {', '.join(unknown)}; known: {', '.join(HEADS)}")
    if wrong := [T for T in options.row_lengths if T < 1 or options.tokens % T]:
        parser.error(f"--row_lengths {wrong} must divide --tokens ({options.tokens})")
    if wrong := [m for m in options.models if options.key_value_heads and HEADS[m] % options.key_value_heads]:
        parser.error(f"--key_value_heads ({options.key_value_heads}) must divide the heads of {', '.join(wrong)}")
    return options


def measure(case: Case, seed: int, torch_times=None, implementations=None) -> dict:
    """Returns the line of a case, as the JSON file holds it; what fails has a reason there in place of times."""
    H, K = HEADS[case.model], case.head_width
    G = case.key_value_heads or H
    segment_ids_BT = draw_documents(case, seed)
    starts_BT, ends_BT = document_bounds(jnp.asarray(segment_ids_BT))
    inputs = random_inputs(case.rows, case.row_length, H, G, K, jnp.bfloat16, seed)
    functions, failed = implementations or all_implementations(inputs, starts_BT, ends_BT)
    forward = {
        name: functools.partial(jax.jit(attended), *inputs[:3], starts_BT, ends_BT)
        for name, attended in functions.items()
    }
    both = {
        name: functools.partial(forward_backward, attended, *inputs, starts_BT, ends_BT)
        for name, attended in functions.items()
    }
    (forward_times, failed_forward), (both_times, failed_both) = milliseconds(forward), milliseconds(both)
    times, failed = {"forward": forward_times, "forward_backward": both_times}, failed | failed_forward | failed_both
    if torch_times:
        theirs, reasons = torch_times(case.rows, case.row_length, H, G, K, segment_ids_BT)
        times = {kind: measured | theirs[kind] for kind, measured in times.items()}
        failed |= reasons
    segments_B = np.asarray(count_segments(starts_BT))
    row = int(np.argsort(segments_B)[len(segments_B) // 2])
    exact = oracle(inputs, np.asarray(starts_BT), row)
    masked = [name for name in both_times if name != YARDSTICK or segments_B.max() == 1]
    return {
        **case._asdict(),
        "heads": H,
        "segments_per_row": float(segments_B.mean()),
        "visible_share": visible_share(starts_BT),
        "milliseconds": times,
        "speed_against": {
            other: {name: both_times[other] / time for name, time in times["forward_backward"].items()}
            for other in (YARDSTICK, "torch_flex_and_mask")
            if other in times["forward_backward"]
        },
        "failed": failed,
        "tiles": functions["pallas_tuned"].tiles._asdict() if "pallas_tuned" in functions else None,
        "relative_error": {name: relative_error(both[name](), exact, row) for name in masked},
        "same_bits_five_times": {name: has_same_bits(both[name]) for name in masked},
    }


def all_implementations(inputs, starts_BT, ends_BT) -> tuple[dict, dict[str, str]]:
    """Returns all that JAX can run here, by name, as functions of `(q, k, v, starts, ends)`; and what is missing."""
    segments = max(2, int(count_segments(starts_BT).max()))
    failed = {}
    functions = {
        "xla": Implementation("xla"),
        "pallas": Implementation("pallas"),
        "cudnn_packed": Implementation("cudnn_packed", segments=segments),
        YARDSTICK: cudnn_causal,
    }
    try:
        functions["pallas_tuned"] = Implementation(
            "pallas", tiles=fastest_tiles(inputs, starts_BT, ends_BT, milliseconds)
        )
    except Exception as error:
        failed["pallas_tuned"] = f"{type(error).__name__}: {error}"
    try:
        from tokamax._src.ops.attention import api, base  # Its public function takes no start of a query's keys.

        mosaic = api.IMPLEMENTATIONS["mosaic_gpu"]
    except (ImportError, KeyError, AttributeError) as error:
        return functions, failed | {"tokamax": f"{type(error).__name__}: {error}"}

    def tokamax(q, k, v, starts, ends):
        return mosaic(q, k, v, mask=base.Mask(k_start=starts[:, None, :], is_causal=True))

    return functions | {"tokamax": tokamax}, failed


def cudnn_causal(q, k, v, starts, ends):
    """Plain causal attention, whatever the documents: the yardstick."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def draw_documents(case: Case, seed: int) -> np.ndarray:
    """Returns segment ids, int32 (B, T), of rows from the plan of random documents; 0 is padding.

    A best-fit plan begins with the longest documents: rows at equal distances represent all of it.
    """
    segment_ids_BT = np.zeros((case.rows, case.row_length), np.int32)
    if case.median == 0:
        return segment_ids_BT + 1
    random = np.random.default_rng(seed)
    number = 200 + 20 * case.rows * case.row_length // case.median
    lengths = np.ceil(random.lognormal(np.log(case.median), 1.0, number)).astype(np.int64)
    plan = plan_rows(lengths, PackingConfig(case.row_length, case.packing, DOCUMENTS_PER_ROW), seed=seed)
    rows = (len(plan) * (np.arange(case.rows) + random.random()) / case.rows).astype(np.int64)
    for ids_T, row in zip(segment_ids_BT, rows, strict=True):
        pieces = plan.lengths[plan.rows[row] : plan.rows[row + 1]]
        ids_T[: pieces.sum()] = np.repeat(np.arange(len(pieces)) + 1, pieces)
    return segment_ids_BT


def oracle(inputs, starts_BT, row: int):
    """Returns `(out, dq, dk, dv)` of a row and its first key/value head, in float64 by numpy."""
    R = inputs[0].shape[2] // inputs[1].shape[2]
    q_TRK, k_SK, v_SK, do_TRK = (_heads(x, row, heads) for x, heads in zip(inputs, (R, 0, 0, R), strict=True))
    T, K = k_SK.shape
    positions_T = np.arange(T)
    visible_TS = (positions_T <= positions_T[:, None]) & (positions_T >= starts_BT[row][:, None])
    logits_RTS = np.einsum("trk,sk->rts", q_TRK, k_SK, optimize=True) * K**-0.5
    weights_RTS = np.where(visible_TS, np.exp(logits_RTS - logits_RTS.max(-1, keepdims=True)), 0)
    weights_RTS /= weights_RTS.sum(-1, keepdims=True)
    out_TRK = np.einsum("rts,sk->trk", weights_RTS, v_SK, optimize=True)
    dweights_RTS = np.einsum("trk,sk->rts", do_TRK, v_SK, optimize=True)
    dlogits_RTS = weights_RTS * (dweights_RTS - np.einsum("trk,trk->rt", out_TRK, do_TRK)[..., None]) * K**-0.5
    dk_SK = np.einsum("rts,trk->sk", dlogits_RTS, q_TRK, optimize=True)
    dv_SK = np.einsum("rts,trk->sk", weights_RTS, do_TRK, optimize=True)
    return out_TRK, np.einsum("rts,sk->trk", dlogits_RTS, k_SK, optimize=True), dk_SK, dv_SK


def relative_error(result, exact, row: int) -> float:
    """Returns the largest, over output and gradients, of the norm of the difference over the norm of the oracle's."""
    R = exact[0].shape[1]
    ours = (_heads(x, row, heads) for x, heads in zip(result, (R, R, 0, 0), strict=True))
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(ours, exact, strict=True))


def _heads(x_BTXK, row: int, heads: int) -> np.ndarray:
    """Returns the first heads of a row, (T, heads, K) in float64; for 0 the first alone, (T, K)."""
    x_TXK = np.asarray(x_BTXK[row].astype(jnp.float32), np.float64)
    return x_TXK[:, :heads] if heads else x_TXK[:, 0]


def has_same_bits(function) -> bool:
    """Returns whether five calls give the same results bit by bit."""
    first = function()
    return all(all(map(jnp.array_equal, first, function())) for _ in range(4))


def describe(line: dict) -> str:
    """Returns the lines of the table for one case: milliseconds, and speed against others, forward and backward."""
    documents = f"median {line['median']}" if line["median"] else "one document"
    text = (
        f"{line['model']} {line['rows']} x {line['row_length']}, {documents} ({line['segments_per_row']:.1f} a row, "
        f"{line['visible_share']:.0%} of the causal pairs)"
    )
    forward, both = line["milliseconds"]["forward"], line["milliseconds"]["forward_backward"]
    for name in sorted(forward | both, key=lambda name: both.get(name, 0)):
        text += f"\n    {name:22s} forward {forward.get(name, float('nan')):8.3f} ms"
        text += f"   and backward {both.get(name, float('nan')):8.3f} ms"
        for other, speeds in line["speed_against"].items():
            text += f"   {speeds.get(name, float('nan')):5.2f} x {other}"
        if name in line["relative_error"]:
            text += f"   error {line['relative_error'][name]:.1e}"
            text += "" if line["same_bits_five_times"][name] else ", DIFFERENT BITS"
    ours = [name for name in ("pallas", "pallas_tuned", "cudnn_packed") if name in both]
    if "pallas" in ours:
        text += (
            f"\n    auto (pallas) takes {both['pallas'] / min(both[name] for name in ours):.2f} x the time of our best"
        )
    return text + "".join(f"\n    {name:22s} failed: {reason}" for name, reason in line["failed"].items())


def start_torch():
    """Returns a function of a shape and segment ids to PyTorch's times and failures; None without PyTorch."""
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed: measuring JAX alone")
        return None
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=_serve_torch, args=(theirs,), daemon=True).start()

    def times(*request):
        ours.send(request)
        return ours.recv()

    return times


def _serve_torch(connection) -> None:
    """Imports PyTorch, in its own process alone: its cuDNN need not be JAX's."""
    from torch_attention import serve

    serve(connection)


if __name__ == "__main__":
    main()
