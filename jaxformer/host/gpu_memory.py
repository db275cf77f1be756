"""Which share of a GPU's memory JAX takes: by the environment, which it reads when it first looks for devices."""

import os

# By itself JAX would take 0.75. What is left is for what is not arrays: the context, kernels and workspaces.
_FRACTION = 0.9

# The second is deprecated; JAX refuses both at once.
_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def memory_fraction() -> float:
    """Returns the share that JAX takes: as the environment says, else nearly all."""
    texts = [os.environ[each] for each in _NAMES if os.environ.get(each)]
    return float(texts[0]) if texts else _FRACTION


def share_of_memory(processes: int) -> dict[str, str]:
    """Returns the environment of each of so many processes that compute on one GPU at a time."""
    return {_NAMES[0]: f"{memory_fraction() / processes:.3f}", _NAMES[1]: ""}
