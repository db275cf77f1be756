"""The device that a run was asked to compute on."""

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
