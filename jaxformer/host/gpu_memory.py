"""The share of a GPU's memory that JAX takes: set by the environment, which it reads when it first needs devices."""

import os

# JAX's default is 0.75. The rest is for the context, kernels and workspaces, which are no arrays.
_FRACTION = 0.9

# The second is deprecated; JAX refuses both at once.
_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def memory_fraction() -> float:
    """Returns the share that JAX takes: from the environment, else nearly all."""
    texts = [os.environ[each] for each in _NAMES if os.environ.get(each)]
    return float(texts[0]) if texts else _FRACTION


def share_of_memory(processes: int) -> dict[str, str]:
    """Returns the environment of each of so many processes that compute on one GPU at a time."""
    return {_NAMES[0]: f"{memory_fraction() / processes:.3f}", _NAMES[1]: ""}
