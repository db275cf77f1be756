"""The device that a run computes on, its memory, and its cache of compiled programs."""

import contextlib
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from jaxformer.config import UserError, require
from jaxformer.host.cache import cache_folder
from jaxformer.host.gpu_memory import memory_fraction, share_of_memory
from jaxformer.host.workers import usable_memory

# Memory of a process on a CPU without its arrays, if something must be prepared or compiled: 0.8 to 0.95 GB for the
# baseline, with Python 3.11 and JAX 0.10.2.
PROCESS_BYTES = 900_000_000

# Days after which a compiled program is removed from the cache; by default JAX keeps it forever.
_KEPT_DAYS = 30


def choose_device(name: str) -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Returns the device that JAX computes on, chosen by name before its first use: 'auto', 'cpu' or 'gpu'.

    Raises:
        UserError: there is no such device.
    """
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    os.environ.update(share_of_memory(1))
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # JAX's errors for a missing platform in JAX_PLATFORMS.
        reason = " ".join(str(error).split()) or "no such platform"
        platforms = jax.config.values["jax_platforms"]
        raise UserError(
            f"no device of JAX_PLATFORMS={platforms} was found ({reason[:120]}); unset it, or install its plugin "
            "(jaxformer[gpu])"
        ) from error
    default = jax.config.values["jax_default_device"]
    computes_on = getattr(default, "platform", default) or device.platform
    computes_on = {"cuda": "gpu", "rocm": "gpu"}.get(computes_on, computes_on)  # JAX's other names.
    require(
        computes_on == device.platform,
        f"JAX_DEFAULT_DEVICE={default}, and the first device of JAX is a {device.platform}; unset it, and choose by "
        "training.device",
    )
    require(
        name in ("auto", device.platform),
        f"training.device = {name!r}, but JAX only sees {device.platform}; install jaxformer[gpu] and a driver, or set "
        f"--training.device={device.platform}",
    )
    return device


def keep_compiled() -> None:
    """Keeps JAX's compiled programs in the cache, so that the next start of the same configuration only reads them.

    Call it before anything is compiled. Programs older than a month are removed. A folder set for JAX
    (`JAX_COMPILATION_CACHE_DIR`) is respected, and so is a disabled cache (`JAX_ENABLE_COMPILATION_CACHE=false`). Each
    kind of processor has its own folder, since machines with different instructions may share a home folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # Not Linux.
        features = platform.processor()
    name = f"{platform.machine()}_{hashlib.sha256(features.encode()).hexdigest()[:8]}"
    try:
        folder = cache_folder() / "compiled" / name
        folder.mkdir(parents=True, exist_ok=True)
        _remove_older(folder, time.time() - _KEPT_DAYS * 86_400)
    except (OSError, UserError):  # Other uses of the cache report it.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # A start compiles many small programs.


def _remove_older(folder: Path, than: float) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # Another process may remove the same.
            if path.is_file() and path.stat().st_mtime < than:
                path.unlink()


def device_memory() -> int:
    """Returns the bytes that arrays may take on the local device; 0 if unknown.

    For a CPU they are the machine's memory, or a job's share of it, less the process's other memory.
    """
    device = jax.local_devices()[0]  # Another process's device does not report it.
    if device.platform == "cpu":
        return max(1, int(usable_memory() * memory_fraction()) - PROCESS_BYTES) // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0) if device.platform == "gpu" else 0


@contextlib.contextmanager
def out_of_memory_reported(advice: Callable[[], str] | None = None) -> Iterator[None]:
    """Raises `UserError` in place of JAX's error if the device has too little memory.

    Args:
        advice: returns what would fit, or '' if unknown; only called after such an error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        general = (
            "raise training.micro_batches, or lower training.rows_per_step, packing.row_length or the size of the model"
        )
        raise UserError(
            f"the device has too little memory ({str(error).splitlines()[0]:.120}); {(advice and advice()) or general}"
        ) from error


# Peaks of dense matmuls in TFLOP/s, from the makers' data sheets: in bfloat16, or in float32 if a device has no
# bfloat16. By a part of JAX's name for the device; the first match counts.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 15.7,
    "T4": 8.1,
}

# Memory in GB (10^9 bytes) from the same data sheets; of devices sold in two sizes, the smaller.
MEMORY_GB = {
    "H200": 141.0,
    "H100 PCIe": 80.0,
    "H100 NVL": 94.0,
    "H100": 80.0,
    "A100 80GB": 80.0,
    "A100": 40.0,
    "L40S": 48.0,
    "L40": 48.0,
    "L4": 24.0,
    "A10G": 24.0,
    "A10": 24.0,
    "RTX 4090": 24.0,
    "RTX 3090": 24.0,
    "V100 32GB": 32.0,
    "V100": 16.0,
    "T4": 16.0,
}


def peak_tflops(device_kind: str) -> float | None:
    """Returns the peak of a device in TFLOP/s, or None if unknown."""
    return _of_device(PEAK_TFLOPS, device_kind)


def compute_capability(device: jax.Device) -> float | None:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the compute capability of an NVIDIA GPU; None for another device."""
    text = str(getattr(device, "compute_capability", ""))
    return float(text) if re.fullmatch(r"\d+\.\d+", text) else None


def has_bfloat16(device: jax.Device) -> bool:  # pyright: ignore[reportInvalidTypeForm]
    """Returns whether a local device multiplies matrices faster in bfloat16 than in float32."""
    capability = compute_capability(device)
    return device.platform != "cpu" if capability is None else capability >= 8.0


def named_has_bfloat16(name: str) -> bool:
    """Returns the same for another GPU, by its name, which contains one of `MEMORY_GB`."""
    return not re.search(r"\b(V100|T4)\b", name)


def memory_gigabytes(device_kind: str) -> float | None:
    """Returns the memory of a device in GB, or None if unknown."""
    return _of_device(MEMORY_GB, device_kind)


def _of_device(table: dict[str, float], device_kind: str) -> float | None:
    return next((value for name, value in table.items() if re.search(rf"\b{name}\b", device_kind)), None)
