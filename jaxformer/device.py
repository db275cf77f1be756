"""The device that a run was asked to compute on."""

import contextlib
from collections.abc import Iterator

import jax

from jaxformer.config import UserError, require


def choose_device(name: str) -> jax.Device:
    """Returns the device that JAX computes on, chosen by name before its first use: 'auto', 'cpu' or 'gpu'.

    Raises:
        UserError: it is not there.
    """
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # What JAX raises for a platform in JAX_PLATFORMS that is not here.
        reason = " ".join(str(error).split()) or "no such platform"
        platforms = jax.config.jax_platforms
        raise UserError(
            f"no device of JAX_PLATFORMS={platforms} was found ({reason[:120]}); unset it, or install its plugin "
            "(jaxformer[gpu])"
        ) from error
    require(
        name in ("auto", device.platform),
        f"training.device = {name!r}, and JAX sees {device.platform} only; install jaxformer[gpu] and a driver, or set "
        f"--training.device={device.platform}",
    )
    return device


@contextlib.contextmanager
def too_little_memory_told() -> Iterator[None]:
    """Raises `UserError` in place of JAX's error where the device has too little memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory ({str(error).splitlines()[0]:.120}); raise training.micro_batches, or "
            "lower training.rows_per_step, packing.row_length or the size of the model"
        ) from error
