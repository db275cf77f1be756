"""Compiles every tile of our kernels for GPUs that are not here, and lists what each takes of one.

    python tools/kernel_table.py [--gpu=H100 --gpu=A100] [--only=cross_entropy] [--ptxas=PATH] [--json=RESULT.json]

Of each kernel: registers of a thread, bytes that a thread spills of them to memory and loads again, shared memory of a
program, and how many instructions multiply matrices: `mma.sync`, of compute capability 9.0 `wgmma`, and of 10.0
`tcgen05`. Options are `shared` keys, of two query heads, and a soft `cap` and `padding`, ids without a token, of the
loss. JAX's CUDA plugin makes the PTX, without a driver, and `ptxas` of the CUDA toolkit makes a program of it.
"""

import argparse
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import gpu_target
import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
from versions import versions

from jaxformer import loss_kernels
from jaxformer.attention import flash, flash_kernels
from jaxformer.devices import exponential
from jaxformer.host.syntax import dump, parse_code
from jaxformer.loss_kernels import Kernels, candidate_tiles

HEAD_WIDTHS = 32, 64, 128
WIDTHS = 384, 640, 960
B, T, H, N, V = 2, 2048, 6, 4096, 32_768
_RESULT = Path(__file__).parent / "results" / "kernels.json"
_INSTRUCTIONS = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}
_COLUMNS = ("registers", "spill_stores", "spill_loads", "shared_memory", *_INSTRUCTIONS)


class Case(NamedTuple):
    """A kernel to compile."""

    kernel: str
    """The name of its entry."""
    width: int
    """Of a head, or of the features."""
    tile: str
    options: str
    function: Callable
    arrays: Sequence[tuple[tuple[int, ...], type]]
    """Shape and dtype of each argument."""


def main() -> int:
    """Compiles, prints, and writes the JSON file; returns 2 where the plugin or `ptxas` is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="append", choices=gpu_target.OF_KERNELS, help="default: A100, H100 and B200")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has this in it")
    parser.add_argument("--ptxas", default="ptxas", metavar="PATH", help="default: as found on PATH")
    parser.add_argument("--json", type=Path, help="default: tools/results/kernels.json, if all are compiled")
    options = parser.parse_args()
    if not shutil.which(options.ptxas):
        print(f"kernel_table: no {options.ptxas}: install the CUDA toolkit, or set --ptxas=PATH", file=sys.stderr)
        return 2
    rows = []
    print(f"{'GPU':5} {'kernel':22} width {'tile':15} {'options':11} {' '.join(_COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_emitter_re=ptx"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}"
        for gpu in options.gpu or ("A100", "H100", "B200"):
            devices = gpu_target.find_devices(gpu)
            if not devices:
                print("kernel_table: install jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version", file=sys.stderr)
                return 2
            chosen = [case for case in cases(gpu_target.CAPABILITIES[gpu]) if options.only in case.kernel]
            for row in compiled(chosen, devices[0], Path(folder), options.ptxas):
                rows.append({"gpu": gpu, **row})
                print(line(rows[-1]), flush=True)
    release = subprocess.run([options.ptxas, "--version"], capture_output=True, encoding="utf-8", check=True).stdout
    about = versions("jax", "jaxlib") | {"ptxas": re.findall(r"V([\d.]+)", release)[-1], "code": code_digest()}
    lines = ",\n".join(json.dumps(row) for row in rows)
    is_whole = not (options.gpu or options.only)
    if path := options.json or (_RESULT if is_whole else None):
        path.write_text(f'{{"versions": {json.dumps(about)}, "kernels": [\n{lines}\n]}}\n', encoding="utf-8")
    return 0


def code_digest() -> str:
    """Returns a digest of the code that makes the kernels, without its comments and docstrings."""
    modules = flash, flash_kernels, loss_kernels, exponential
    trees = (dump(parse_code(inspect.getsource(module).encode())) for module in modules)
    return hashlib.sha256("\0".join(trees).encode()).hexdigest()[:16]


def cases(capability: float) -> list[Case]:
    """Returns all kernels in all tiles that a run may take on a device of a compute capability."""
    found, bf16, f32, int32 = [], jnp.bfloat16, jnp.float32, jnp.int32
    for K, G in itertools.product(HEAD_WIDTHS, (H, H // 2)):
        q, kv, bounds, scalars = ((B, T, H, K), bf16), ((B, T, G, K), bf16), ((B, T), int32), ((B, H, T), f32)
        kernels = flash.PerKernel(
            forward=("document_flash_forward", flash.forward, (q, kv, kv, bounds)),
            queries=("document_flash_queries", flash.backward_queries, (q, kv, kv, q, q, scalars, bounds)),
            keys=("document_flash_keys", flash.backward_keys, (q, kv, kv, q, scalars, scalars, bounds)),
        )
        for (name, function, arrays), tiles in zip(kernels, flash.candidate_tiles(K, capability), strict=True):
            for tile in tiles if G == H or "keys" in name else ():  # The others compute the same.
                options = "" if G == H else "shared"
                found.append(Case(name, K, _text(tile), options, functools.partial(function, tile=tile), arrays))
    losses = [(cap, tile) for cap in (0.0, 30.0) for tile in candidate_tiles(cap, capability)]
    for D, (cap, tile), count in itertools.product(WIDTHS, losses, (V, 32_000)):
        given = {"logit_soft_cap": cap, "token_count": count}
        options = "+".join(["cap"] * bool(cap) + ["padding"] * (count < V))
        arrays = [((N, D), bf16), ((V, D), bf16), ((N,), int32), *[((N,), f32)] * 3]
        forward = functools.partial(Kernels(tile).partition, **given)
        gradient = functools.partial(Kernels(tile).gradient, **given)
        found.append(Case("cross_entropy_forward", D, _text(tile), options, forward, arrays[:3]))
        found.append(Case("cross_entropy_gradient", D, _text(tile), options, gradient, arrays))
    return found


def _text(tile: Sequence[int]) -> str:
    return "x".join(map(str, tile))


def compiled(cases: Sequence[Case], device: jax.Device, folder: Path, ptxas: str) -> Iterator[dict]:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Yields what is written of each case, compiled for a device; XLA leaves its PTX in the folder."""
    # What asks for the device while it is traced is given the one that is compiled for.
    there = AbstractMesh((1,), ("device",), abstract_device=AbstractDevice(device.device_kind, None, "cuda"))
    alone = jax.sharding.SingleDeviceSharding(device)

    def lower(number: int) -> jax.stages.Lowered:
        def function(*arrays):
            return cases[number].function(*arrays)

        function.__name__ = f"case_{number}"
        return jax.jit(function).lower(*(jax.ShapeDtypeStruct(*each, sharding=alone) for each in cases[number].arrays))

    def finish(number: int, lowered: jax.stages.Lowered) -> dict:
        about = dict(zip(Case._fields[:4], cases[number][:4], strict=True))
        try:
            lowered.compile()
        except jax.errors.JaxRuntimeError as error:  # Such as of too much shared memory.
            return about | {"failure": str(error).splitlines()[0]}
        return about | measure(cases[number].kernel, folder, f"*.jit_case_{number}.*", ptxas)

    with (
        jax.sharding.use_abstract_mesh(there),
        mock.patch("jax.default_backend", return_value="gpu"),
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        yield from pool.map(finish, range(len(cases)), map(lower, range(len(cases))))


def measure(kernel: str, folder: Path, files: str, ptxas: str) -> dict:
    """Returns what a kernel takes, by the files in a folder that are named so; they are removed."""
    paths = list(folder.glob(files))
    launches = "".join(path.read_text(encoding="utf-8") for path in paths if path.name.endswith("thunk_sequence.txt"))
    modules = [path.read_text(encoding="utf-8") for path in paths if path.suffix == ".ptx"]
    ptx = next(text for text in modules if f".entry {kernel}(" in text)
    for path in paths:
        path.unlink()
    target = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0]
    command = [ptxas, "-v", f"-arch={target}", "-", "-o", os.devnull]
    output = subprocess.run(command, input=ptx, capture_output=True, encoding="utf-8", check=True).stderr
    shared = int(re.findall(rf"\b{kernel} .*shared_memory: (\d+)", launches)[0])
    return {"target": target, **usages(output)[kernel], "shared_memory": shared, **instructions(ptx, kernel)}


def instructions(ptx: str, kernel: str) -> dict[str, int]:
    """Returns how many of each of the instructions that multiply matrices are in one kernel of a PTX module."""
    # Up to the next kernel: blocks of instructions within one have braces too.
    text = ptx.partition(f".entry {kernel}(")[2].partition(".entry ")[0]
    return {name: len(re.findall(pattern, text)) for name, pattern in _INSTRUCTIONS.items()}


def usages(output: str) -> dict[str, dict[str, int]]:
    """Returns registers and spilled bytes of each kernel by its name, from the standard error of `ptxas -v`."""
    found = {}
    for part in output.split("Compiling entry function ")[1:]:
        stores, loads = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)[0]
        registers = re.findall(r"Used (\d+) registers", part)[0]
        numbers = {"registers": int(registers), "spill_stores": int(stores), "spill_loads": int(loads)}
        found[part.split("'")[1]] = numbers
    return found


def line(row: dict) -> str:
    """Returns a line of the table."""
    numbers = " ".join(f"{row.get(name, '-'):{len(name)}}" for name in _COLUMNS)
    about = f"{row['gpu']:5} {row['kernel']:22} {row['width']:5} {row['tile']:15} {row['options']:11}"
    return f"{about} {row.get('failure', numbers)}"


if __name__ == "__main__":
    sys.exit(main())
