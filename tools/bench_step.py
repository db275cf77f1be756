"""Measures the training step: speed, memory, compile time, time to the first step, and the host's time per step.

    python tools/bench_step.py [--sizes=1m,27m,100m,500m] [--remat=NAME] [--micro_batches=N] [--json=RESULT.json]

Each size runs in a process of its own, on random tokens in rows of several documents and, in turns, of one each: what
the document mask costs is the ratio. Beside it stands the floor, the time of its matmuls alone at their shapes, but
those of attention. Model FLOPs utilisation is given by the formula for plain causal rows, which other
libraries can be compared with, and by the documents' own FLOPs; a device whose peak is not known has TFLOP/s alone.
"""

import argparse
import functools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.extend
from step_cases import RESULTS, SIZES, Case, case_of, experiment_of, random_batch
from versions import versions

from jaxformer.config import replace
from jaxformer.data.packing import Batch
from jaxformer.devices.device import peak_tflops
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.flops import document_flops_per_token, parameter_count, training_flops_per_token
from jaxformer.model import REMATS
from jaxformer.step import compile_step, train_step

# Width and rows so small that the device is never what is waited for.
OVERHEAD_CASE = Case("500m", 1, 8, 2)
OVERHEAD_MODEL = {"vocabulary_size": 512, "width": 16, "heads": 1}


def main() -> None:
    """Measures, prints and writes the JSON file."""
    options = parse_arguments()
    if options.first_step:
        print(first_step(case_of(options.first_step, options.rows, options.row_length)))
        return
    result = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
        "overhead": (overhead := in_a_process(measure_overhead)),
        "lines": [],
    }
    print(
        f"a call of the step with {SIZES[OVERHEAD_CASE.size].depth} blocks takes the host "
        f"{overhead['call_milliseconds']:.2f} ms; with its computation at width 16, {overhead['step_milliseconds']:.2f}"
    )
    for size in options.sizes:
        case = case_of(size, options.rows, options.row_length, options.documents)
        how = {"scan_unroll": options.scan_unroll, "remat": options.remat, "micro_batches": options.micro_batches}
        line = in_a_process(measure, case, options.rounds, how)
        if options.first_steps:
            line["first_step_seconds"] = first_step_seconds(case)
        result["lines"].append(line)
        print(describe(line), flush=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Returns the options, checked."""
    default_json = RESULTS / f"step_{jax.default_backend()}.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["1m", "27m"], help=", ".join(SIZES))
    parser.add_argument("--rows", type=int, default=0, help="of a batch; 0: by size and device")
    parser.add_argument("--row_length", type=int, default=0, help="tokens; 0: by size and device")
    parser.add_argument("--documents", type=int, default=3, help="of a row, where there are several")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each kind that count; 0: compile alone")
    parser.add_argument("--scan_unroll", type=int, default=0, help="blocks per iteration; 0: chosen for the device")
    parser.add_argument("--remat", choices=REMATS[1:], default="none", help="what is computed again")
    parser.add_argument("--micro_batches", type=int, default=1, help="parts of a step")
    parser.add_argument("--first_steps", action=argparse.BooleanOptionalAction, default=True, help="measure them too")
    parser.add_argument("--first_step", metavar="SIZE", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=default_json, help=f"written after every line ({default_json})")
    options = parser.parse_args()
    if unknown := {*options.sizes, *([options.first_step] if options.first_step else [])} - set(SIZES):
        parser.error(f"unknown sizes: {', '.join(unknown)}; known: {', '.join(SIZES)}")
    return options


def in_a_process(function, *arguments):
    """Returns what the function returns in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(case: Case, rounds: int, how: dict) -> dict:
    """Returns the line of a case, as the JSON file holds it; `how` its step is computed is of `experiment_of`."""
    experiment = experiment_of(case, **how)
    batches = {"several_documents": random_batch(case), "one_document": random_batch(case._replace(documents=1))}
    state = make_state(experiment, seed=0, token_count=experiment.model.vocabulary_size)
    started = time.perf_counter()
    lowered = compile_step(state).lower(state, batches["several_documents"])
    lowered_at = time.perf_counter()
    step = lowered.compile()
    compiled_at = time.perf_counter()
    if (memory := step.memory_analysis()) is None:
        raise RuntimeError("XLA tells no memory of a step on this device")
    seconds = {name: [] for name in batches}
    for round_number in range(rounds + 1 if rounds else 0):
        for name, batch in batches.items():
            begun = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            if round_number:
                seconds[name].append(time.perf_counter() - begun)
    floor = matmul_floor(experiment, batches["one_document"], rounds) if rounds else {}
    line = {
        **case._asdict(),
        **how,
        "precision": "float32" if jax.default_backend() == "cpu" else "bfloat16",
        "parameters": parameter_count(experiment.model),
        "trace_and_lower_seconds": lowered_at - started,
        "compile_seconds": compiled_at - lowered_at,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        **peak_memory(),
        **floor,
    }
    return line | (speeds(experiment.model, case, batches, seconds) if rounds else {})


def matmul_floor(experiment: Experiment, batch: Batch, rounds: int) -> dict:
    """Returns the milliseconds of the matmuls of a step, each timed alone on numbers of its shapes."""
    experiment = replace(experiment, {"model.loss": "xla"})  # Whose matmuls are not in tiles.
    state = jax.eval_shape(lambda: make_state(experiment, 0, token_count=experiment.model.vocabulary_size))
    counts, functions = matmuls(jax.make_jaxpr(train_step)(state, batch).jaxpr), {}
    for each in counts:
        left, right, dimension_numbers, dtype = each
        keys = jax.random.split(jax.random.key(0))
        inputs = [jax.random.normal(key, shape, kind) for key, (shape, kind) in zip(keys, (left, right), strict=True)]
        options = {"dimension_numbers": dimension_numbers, "preferred_element_type": dtype}
        functions[each] = functools.partial(jax.jit(functools.partial(jax.lax.dot_general, **options)), *inputs)
    times, failures = milliseconds(functions, rounds=rounds)
    if failures:
        print(f"matmuls that cannot be timed alone: {failures}", file=sys.stderr)
        return {}
    return {"matmul_milliseconds": sum(count * times[each] for each, count in counts.items())}


def matmuls(jaxpr: Any) -> Counter:
    """Returns how often a program multiplies matrices, by their shapes and dtypes; batched ones are left out.

    Those in a scan count as often as it turns; those of kernels, and of what differs by platform, do not count.
    """
    found = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            dimension_numbers = equation.params["dimension_numbers"]
            operands = [(var.aval.shape, var.aval.dtype) for var in equation.invars]
            if not dimension_numbers[1][0]:
                found[(*operands, dimension_numbers, equation.outvars[0].aval.dtype)] += 1
            continue
        if equation.primitive.name in ("pallas_call", "cond"):
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for each in jax.extend.core.jaxprs_in_params(equation.params):
            found.update({matmul: turns * count for matmul, count in matmuls(each).items()})
    return found


def speeds(model, case: Case, batches: dict, seconds: dict) -> dict:
    """Returns what follows from the seconds of the steps, by kind of batch."""
    peak = peak_tflops(jax.devices()[0].device_kind)
    figures = {}
    for name, batch in batches.items():
        median = statistics.median(seconds[name])
        tokens_per_second = case.rows * case.row_length / median
        causal = tokens_per_second * training_flops_per_token(model, case.row_length) / 1e12
        document = tokens_per_second * document_flops_per_token(model, batch.positions_BT) / 1e12
        figures[name] = {
            "milliseconds": 1e3 * median,
            "tokens_per_second": tokens_per_second,
            "tflops_causal": causal,
            "tflops_document": document,
            "mfu_causal": causal / peak if peak else None,
            "mfu_document": document / peak if peak else None,
        }
    pairs = zip(*seconds.values(), strict=True)
    return figures | {"time_of_documents_against_one": statistics.median(several / one for several, one in pairs)}


def peak_memory() -> dict:
    """Returns the most memory that was used: on the device, or on a CPU in the process."""
    if statistics_of_device := jax.devices()[0].memory_stats():
        return {"device_peak_bytes": statistics_of_device["peak_bytes_in_use"]}
    return {"process_peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def measure_overhead(rounds: int = 100) -> dict:
    """Returns the median milliseconds of a call of a deep and tiny step, without and with its computation."""
    experiment = experiment_of(OVERHEAD_CASE, **OVERHEAD_MODEL)
    state = make_state(experiment, seed=0, token_count=experiment.model.vocabulary_size)
    step = compile_step(state)
    batch = jax.device_put(random_batch(OVERHEAD_CASE, vocabulary_size=512))
    called, done = [], []
    for _ in range(rounds + 3):
        begun = time.perf_counter()
        state, metrics = step(state, batch)
        called.append(time.perf_counter() - begun)
        jax.block_until_ready((state, metrics))
        done.append(time.perf_counter() - begun)
    return {
        "call_milliseconds": 1e3 * statistics.median(called[3:]),
        "step_milliseconds": 1e3 * statistics.median(done[3:]),
    }


def first_step(case: Case) -> float:
    """Makes a step and returns the time of day when it is done, in seconds."""
    experiment = experiment_of(case)
    state = make_state(experiment, seed=0, token_count=experiment.model.vocabulary_size)
    state, metrics = compile_step(state)(state, random_batch(case))
    jax.block_until_ready((state, metrics))
    return time.time()


def first_step_seconds(case: Case) -> dict[str, float]:
    """Returns how long a fresh process takes to its first step, imports among it, before and with JAX's cache."""
    command = [sys.executable, __file__, f"--first_step={case.size}"]
    command += [f"--rows={case.rows}", f"--row_length={case.row_length}"]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for name in ("cold", "warm"):
            begun = time.time()
            done = subprocess.run(
                command, env=os.environ | settings, capture_output=True, text=True, check=True, encoding="utf-8"
            )
            seconds[name] = float(done.stdout.split()[-1]) - begun
    return seconds


def describe(line: dict) -> str:
    """Returns a line of the table as text."""
    peak = {name: line[name] for name in ("device_peak_bytes", "process_peak_rss_bytes") if name in line}
    [(kind, peak_bytes)] = peak.items()
    text = (
        f"{line['size']}: {line['parameters']:,} parameters, {line['rows']} x {line['row_length']} tokens, remat "
        f"{line['remat']}, {line['micro_batches']} micro-batches\n"
        f"  compiling    {line['trace_and_lower_seconds']:.1f} s to trace and lower, "
        f"{line['compile_seconds']:.1f} s to compile\n"
        f"  memory       {line['state_bytes'] / 1e9:.2f} GB of state and batch, {line['temporary_bytes'] / 1e9:.2f} GB "
        f"of temporaries; {kind.removesuffix('_bytes').replace('_', ' ')} {peak_bytes / 1e9:.2f} GB"
    )
    for name in ("several_documents", "one_document"):
        if name not in line:
            continue
        figures = line[name]
        text += f"\n  {name:17s} {figures['milliseconds']:9.1f} ms {figures['tokens_per_second']:10,.0f} tokens/s"
        text += f"   {figures['tflops_causal']:.3f} TFLOP/s causal, {figures['tflops_document']:.3f} by documents"
        if figures["mfu_causal"]:
            text += f"   MFU {figures['mfu_causal']:.1%} causal, {figures['mfu_document']:.1%} by documents"
    if "matmul_milliseconds" in line and "one_document" in line:
        floor = line["matmul_milliseconds"]
        ratio = line["one_document"]["milliseconds"] / floor
        text += f"\n  matmuls alone     {floor:9.1f} ms, of which the step takes {ratio:.2f} x"
    if "time_of_documents_against_one" in line:
        text += f"\n  several documents take {line['time_of_documents_against_one']:.2f} x the time of one a row"
    if "first_step_seconds" in line:
        text += "\n  first step   {cold:.1f} s from a fresh process, {warm:.1f} s with JAX's cache".format(
            **line["first_step_seconds"]
        )
    return text


if __name__ == "__main__":
    main()
