"""The GPUs that JAX sees, and the share of their memory that it takes: set by the environment, before it reads that."""

import os
from pathlib import Path

# JAX's default is 0.75. The rest is for the context, kernels and workspaces, which are no arrays.
_FRACTION = 0.9

# The second is deprecated; JAX refuses both at once.
_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")

# Where Linux has a file for each GPU.
_DEVICES = Path("/dev")


def memory_fraction() -> float:
    """Returns the share that JAX takes: from the environment, else nearly all."""
    texts = [os.environ[each] for each in _NAMES if os.environ.get(each)]
    return float(texts[0]) if texts else _FRACTION


def visible_gpus() -> list[str]:
    """Returns the NVIDIA GPUs that a process sees, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each for each in named.split(",") if each]
    return [str(number) for number, _ in enumerate(_DEVICES.glob("nvidia[0-9]*"))]


def share_of_gpus(slot: int, slots: int, devices: int = 1) -> dict[str, str]:
    """Returns the environment of the process in one of several slots: its GPUs, and its share of their memory.

    Where there are GPUs for all slots, each has its own; otherwise several slots share some.

    Args:
        devices: the fewest GPUs that a process needs.
    """
    gpus = visible_gpus()
    size = max(devices, len(gpus) // slots)
    groups = max(1, len(gpus) // size)
    first = slot % groups * size
    own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + size])} if groups > 1 else {}
    return own | share_of_memory(-(-slots // groups))


def share_of_memory(processes: int) -> dict[str, str]:
    """Returns the environment of each of so many processes that compute on one GPU at a time."""
    return {_NAMES[0]: f"{memory_fraction() / processes:.3f}", _NAMES[1]: ""}
