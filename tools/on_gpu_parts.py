"""The parts of `on_gpu`, each a function of its options: what it measures, it takes from the benchmarks beside it."""

import argparse
import datetime
import functools
import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import bench_attention
import bench_peers
import bench_step
import fault_campaign
import gpu_cost
import gpu_target
import hlo
import jax
import jax.numpy as jnp
import numpy as np
from on_gpu import PARTS, SCRATCH, TOOLS, parse_arguments
from on_gpu_prepare import CACHE, corpus_options
from step_cases import SIZES, Case, case_of, experiment_of, random_batch
from versions import versions

from jaxformer.attention.dispatch import Implementation
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.host.files import read_json
from jaxformer.plan.device_fit import device_at_hand, fit_to_device
from jaxformer.run.metrics import read_metrics
from jaxformer.run.profile import Event, Instruction, describe, read_events, read_instructions, write_table
from jaxformer.step import compile_step

# Sizes, and what is set of how their step is computed; the library chooses the rest.
STEPS: tuple[tuple[str, dict], ...] = (
    *((size, {}) for size in ("500m", "27m", "100m")),
    *((size, {"scan_unroll": 1}) for size in ("500m", "27m")),
    *((size, {"remat": "none"}) for size in ("500m", "27m")),
    ("500m", {"remat": "block"}),
)
DRY_STEPS = (("1m", {}), ("1m", {"scan_unroll": 1}), ("1m", {"remat": "block"}))
HOW = ("remat", "micro_batches", "scan_unroll")


def write(options, name: str, **content) -> None:
    """Writes a file of results, with what they belong to."""
    packages = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax", "numpy", "torch")
    about = {
        "device": content.get("device") or jax.devices()[0].device_kind,
        "versions": versions(*packages),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": bench_peers.commit(TOOLS),
        "is_dry": options.dry,
    }
    (options.out / f"{name}.json").write_text(f"{json.dumps(about | content, indent=1)}\n", encoding="utf-8")


def ceilings(options) -> None:
    """A copy of 4 GB, and matmuls of random bfloat16: a large one, and those of the sizes."""
    scale = 64 if options.dry else 1
    shapes = {"8192 cubed": (8192, 8192, 8192)}
    for size in ("27m", "100m", "500m"):
        N, D = 65_536, SIZES[size].width
        shapes |= {f"{size} up": (N, D, 4 * D), f"{size} down": (N, 4 * D, D), f"{size} up's gradient": (D, N, 4 * D)}
    calls, flops = {}, {}
    for name, shape in shapes.items():
        M, K, N = (n // scale for n in shape)
        a, b = (jax.random.normal(jax.random.key(0), shape, jnp.bfloat16) for shape in ((M, K), (K, N)))
        calls[name], flops[name] = functools.partial(jax.jit(jnp.matmul), a, b), 2 * M * K * N
    x = jnp.ones((1 << 30) // scale**2, jnp.float32)
    calls["copy"] = functools.partial(jax.jit(jnp.negative), x)
    times, failed = milliseconds(calls)
    rates = {name: flops[name] / times[name] / 1e9 for name in flops if name in times}
    copy = 2 * x.nbytes / times["copy"] / 1e9
    write(options, "ceilings", copy_terabytes_per_second=copy, matmul_tflops=rates, failed=failed)
    print(f"copy {copy:.2f} TB/s; matmuls in TFLOP/s:", ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))


def tests(options) -> int:
    """The tests that need a GPU, and those of attention; returns their status."""
    paths = ["tests/test_on_gpu.py", "tests/attention/test_document_mask.py" if options.dry else "tests/attention"]
    workers = ["-n8"] if importlib.util.find_spec("xdist") and not options.dry else []
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *paths, *workers]
    return subprocess.run(command, cwd=TOOLS.parent, check=False).returncode


def resume(options) -> int:
    """Trains a run that nothing stops, and one that is killed at half and started again; returns 1 if they differ."""
    steps, runs = (240 if options.dry else 480), SCRATCH / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    cache = options.prepared / CACHE
    cache = cache if cache.is_dir() and not options.dry else SCRATCH / "cache"
    # Half of the memory, since the tests take some too.
    variables = os.environ | {"JAXFORMER_CACHE": str(cache), "XLA_CLIENT_MEM_FRACTION": "0.5"}
    for name, is_to_be_killed in (("whole", False), ("killed", True), ("killed", False)):
        process = subprocess.Popen(train_command(options, runs / name, steps), env=variables)
        is_killed = is_to_be_killed and fault_campaign.wait_for(process, runs / name, steps // 2, 0)
        if is_killed:
            process.kill()
        status, written = process.wait(), fault_campaign.steps_written(runs / name)
        print(f"{name}: ended with status {status}, {written} steps written", flush=True)
        if is_killed != is_to_be_killed or (status and not is_killed):
            return 1
    found = fault_campaign.differences(runs / "killed", runs / "whole")
    lines = [line for line in read_metrics(runs / "whole") if line.get("train/tokens_per_second")]
    speeds = [line["train/tokens_per_second"] for line in lines]
    write(options, "resume", steps=steps, differences=found, tokens_per_second=speeds, last=lines[-1])
    print(f"tokens/s of the whole loop: {np.median(speeds):,.0f}")
    print(f"killed and resumed, bit by bit: {found or 'the same'}")
    return int(bool(found))


def train_command(options, workdir: Path, steps: int) -> list[str]:
    """Returns the command of a run of so many steps."""
    values: dict[str, object] = {"experiment": "baseline_27m", "evaluation.validation_bytes": 300_000}
    corpus = corpus_options(options.prepared)
    if options.dry:
        corpus = ["--corpus.kind=text", "--corpus.path=docs", "--corpus.validation_share=0.2"]
        values = {"experiment": "baseline", "evaluation.validation_bytes": 2000, "packing.row_length": 64}
        values |= {"model.vocabulary_size": 400, "tokenizer.vocabulary_size": 400}
        values |= {"model.width": 32, "model.depth": 2, "model.heads": 1}
    values |= {"workdir": workdir, "training.steps": steps, "training.log_every_steps": steps // 12}
    values |= {"optimizer.warmup_steps": steps // 6, "checkpoint.every_steps": steps // 3}
    values |= {"evaluation.every_steps": steps, "evaluation.sample_tokens": 20}
    return [sys.executable, "-m", "jaxformer.train", *corpus, *(f"--{name}={value}" for name, value in values.items())]


def predicted(options) -> None:
    """Compiles the steps for this GPU, or what is nearest to it, without using it, and adds up what they cost."""
    measured = read_json(options.out / "ceilings.json") or {"device": "H100"}
    kind = next((kind for kind in gpu_target.KINDS if kind in measured["device"]), "H100")
    devices = gpu_target.find_devices(kind)
    if not devices:
        print("nothing is predicted: install jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version")
        return
    rates = gpu_cost.Rates()
    if "matmul_tflops" in measured and not options.dry:
        matmul = min(measured["matmul_tflops"][f"500m {which}"] for which in ("up", "down"))
        rates = rates._replace(memory=measured["copy_terabytes_per_second"], matmul=matmul)
    lines = []
    for size, changes in DRY_STEPS[:1] if options.dry else STEPS:
        experiment = gpu_cost.prepared(experiment_of(step_case(size, options), 0, **changes), kind, {})
        costs = gpu_cost.costs_by_kind(gpu_cost.step_kernels(experiment, devices), rates)
        line = {"size": size, **how_of(experiment), "milliseconds": sum(cost.milliseconds for cost in costs.values())}
        lines.append(line | {"kinds": {name: cost._asdict() for name, cost in costs.items()}})
        write(options, "predicted", device=devices[0].device_kind, rates=rates._asdict(), lines=lines)
        print(line, flush=True)


def find_prediction(options, line: dict) -> dict:
    """Returns what was predicted of a step that is computed in the same way; nothing if that was not."""
    lines = (read_json(options.out / "predicted.json") or {"lines": []})["lines"]
    return next((one for one in lines if all(one[key] == line[key] for key in ("size", *HOW))), {})


def attention(options) -> None:
    """Attention by all implementations, at the largest size's shapes."""
    cases = [bench_attention.Case("500m", 65_536 // T, T, median) for T in (2048, 4096) for median in (490, 0)]
    implementations = None
    if options.dry:
        cases = [bench_attention.Case("27m", 1, 64, 20)]
        implementations = {"xla": Implementation("xla"), "pallas": Implementation("pallas", interpret=True)}, {}
    theirs, lines = None if options.dry else bench_attention.start_torch(), []
    for number, case in enumerate(cases):
        lines.append(bench_attention.measure(case, number, theirs, implementations))
        print(bench_attention.describe(lines[-1]), flush=True)
        write(options, "attention", lines=lines)


def step(options) -> None:
    """Steps as the library computes them and in other ways, each in a process of its own."""
    lines = []
    for size, changes in DRY_STEPS if options.dry else STEPS:
        started, rounds = time.perf_counter(), 2 if options.dry else 7
        try:
            line = bench_step.in_a_process(choose_and_measure, step_case(size, options), changes, rounds)
        except Exception as error:  # Such as too little memory: the others may still fit.
            print(f"{size} {changes}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        expected = find_prediction(options, line).get("milliseconds")
        lines.append(line | {"set": changes, "predicted_milliseconds": expected})
        write(options, "step", lines=lines)
        print(bench_step.describe(line))
        print(f"  predicted         {expected:9.1f} ms" if expected else "  not predicted")
        print(f"  all of it    {time.perf_counter() - started:.0f} s", flush=True)


def choose_and_measure(case: Case, changes: dict, rounds: int) -> dict:
    """Returns the line of a case whose step is computed as in a run that leaves open what is not changed."""
    return bench_step.measure(case, rounds, how_of(chosen(case, changes)))


def step_case(size: str, options) -> Case:
    """Returns the case of a size: 65,536 tokens a step, or as few as a CPU computes at once."""
    return case_of(size, 2, 64) if options.dry else case_of(size, 32, 2048)


def chosen(case: Case, changes: dict) -> Experiment:
    """Returns the experiment of a case as a run on the device at hand computes its step."""
    experiment = experiment_of(case, 0, **changes)
    experiment, text = fit_to_device(experiment, device_at_hand(experiment), experiment.model.vocabulary_size)
    print(f"{case.size}, {changes or 'nothing'} set: {text}", flush=True)
    return experiment


def how_of(experiment: Experiment) -> dict:
    """Returns how the step of an experiment is computed."""
    model, training = experiment.model, experiment.training
    return dict(zip(HOW, (model.remat, training.micro_batches, model.scan_unroll), strict=True))


def compiled_step(size: str, options):
    """Returns the step of a size as compiled for the device at hand, a state, a batch, and how it is computed."""
    case = step_case(size, options)
    experiment = chosen(case, {})
    state = make_state(experiment, seed=0, token_count=experiment.model.vocabulary_size)
    batch = random_batch(case)
    return compile_step(state).lower(state, batch).compile(), state, batch, {"size": size, **how_of(experiment)}


def profile(options, steps: int = 3) -> None:
    """Traces some steps of the largest size, and adds up the times of their kernels by kind."""
    compiled, state, batch, line = compiled_step("1m" if options.dry else "500m", options)
    for _ in range(2):
        state, metrics = jax.block_until_ready(compiled(state, batch))
    folder = options.out / "profile"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    with jax.profiler.trace(folder):
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - begun
    text = compiled.as_text()
    write_table(folder, text, range(1, steps + 1), seconds)
    (trace,) = folder.rglob("*.xplane.pb")
    content = trace.read_bytes()
    (folder / "xplane.pb.gz").write_bytes(gzip.compress(content))
    shutil.rmtree(folder / "plugins")
    trace = jax.profiler.ProfileData.from_serialized_xspace(content)
    events = list(read_events(trace, text.split(maxsplit=2)[1].rstrip(",")))
    instructions, kernels = read_instructions(text), kernels_by_name(text)
    measured: dict[str, float] = defaultdict(float)
    for event in events:
        kind = kind_of(event, instructions.get(event.instruction), kernels.get(event.instruction))
        measured[kind] += (event.end - event.start) / 1e6 / steps
    expected = {kind: cost["milliseconds"] for kind, cost in find_prediction(options, line).get("kinds", {}).items()}
    kinds = {kind: {"measured": measured[kind], "predicted": expected.get(kind)} for kind in gpu_cost.KINDS}
    write(options, "profile", **line, step_milliseconds=1e3 * seconds / steps, kinds=kinds)
    for kind in gpu_cost.KINDS:
        print(f"{kind:16}{measured[kind]:9.2f} ms", f"{expected[kind]:9.2f} predicted" if expected else "")


def kernels_by_name(text: str) -> dict[str, hlo.Kernel]:
    """Returns the kernels of a compiled program; none where it is not written as those for GPUs are."""
    try:
        return {one.name: one for one in hlo.kernels(text)}
    except (ValueError, LookupError) as error:
        print(f"kinds are those of kernels' names: the program cannot be read ({error!r})")
        return {}


# Kinds by the names of kernels, where the trace names no instruction of the program.
_NAMES = {
    "attention": "document_flash|fmha|flash",
    "matmul": "gemm|nvjet|cutlass|cublas|xmma|splitk|dot",
    "stacks": "dynamic[-_]update|dynamic[-_]slice",
    "copies": "memcpy|memset|copy|transpose",
}


def kind_of(event: Event, instruction: Instruction | None, kernel: hlo.Kernel | None) -> str:
    """Returns which of `gpu_cost.KINDS` a kernel is that ran."""
    what = describe(instruction) if instruction else ""
    if what.endswith("matmul"):  # Also of cuBLAS, whose operations the program does not tell.
        return "logits matmul" if what.startswith("loss") else "matmul"
    if kernel:
        return gpu_cost.kind_of(kernel)
    return next((kind for kind, names in _NAMES.items() if re.search(names, event.kernel, re.IGNORECASE)), "other")


def repeat(options, times: int = 4) -> None:
    """Repeats one step from one state: what differs, no resumed run can repeat bit by bit."""
    compiled, state, batch, line = compiled_step("1m" if options.dry else "27m", options)
    results = [jax.device_get(compiled(jax.tree.map(jnp.copy, state), batch)) for _ in range(times)]
    first, different = jax.tree.leaves_with_path(results[0]), []
    for (path, x), *others in zip(first, *map(jax.tree.leaves, results[1:]), strict=True):
        if not all(np.array_equal(x, y) for y in others):
            different.append(jax.tree_util.keystr(path))
    write(options, "repeat", **line, times=times, leaves=len(first), different=different)
    print(f"{line}, {times} times: {len(different)} of {len(first)} arrays differ {different[:8]}")


def nanogpt(options) -> None:
    """The step of nanoGPT beside ours, in turns."""
    if not options.nanogpt:
        print("no checkout of nanoGPT is given (--nanogpt)")
        return
    case = step_case("1m" if options.dry else "27m", options)
    turn, rounds = (1, 1) if options.dry else (10, 4)
    asked = argparse.Namespace(nanogpt=options.nanogpt, nanodo=None, modes=["compile"], turn=turn)
    for name, peer in bench_peers.peers(asked, case).items():
        line = {**case._asdict(), "peer": name, **bench_peers.compare(case, peer, rounds, turn)}
        write(options, "nanogpt", checkout=bench_peers.commit(options.nanogpt), lines=[line])
        print(bench_peers.describe(line))


if __name__ == "__main__":
    given = parse_arguments()
    sys.exit(max(globals()[name](given) or 0 for name in given.parts if name in PARTS))
