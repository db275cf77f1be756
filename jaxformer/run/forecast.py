"""What a run was forecast to come to, in its folder before its first step: `forecast.json`, which nothing changes.

Its digest is in the record of the run from its first start on, so that nobody can write it afterwards unnoticed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.host.files import read_json, write_whole
from jaxformer.run.metrics import Series

FORECAST = "forecast.json"

# Of runs within the interval, and of validations within the band, as far as what was forecast is right.
INTERVAL, BAND = 0.9, 0.98


class Band(NamedTuple):
    """Where a validation within the run is expected."""

    step: int
    low: float
    high: float
    """`low` and `high`: bits per byte, of `BAND` of the runs."""


class Forecast(NamedTuple):
    """What a run is expected to come to, bits per byte."""

    median: float
    low: float
    high: float
    """`low` and `high`: of `INTERVAL` of the runs, on the validation documents of the sizes before it."""
    bands: tuple[Band, ...]
    """Of the validations of the run, the last one's included, where the sizes before it had them too."""
    digest: str
    """Hexadecimal SHA-256 of the file."""
    about: Mapping[str, Any]
    """All that the file holds."""

    def has(self, bits_per_byte: float) -> bool:
        """Returns whether a result lies in the interval."""
        return self.low <= bits_per_byte <= self.high


def write_forecast(workdir: Path, values: Mapping[str, Any]) -> Forecast:
    """Writes a forecast into a run folder, which need not exist, and returns it.

    Args:
        values: `median`, `low`, `high`, `bands`, and whatever tells what it is made of.

    Raises:
        UserError: the run has begun, or was forecast already, or the folder cannot be written.
    """
    require(not (workdir / "config.json").exists(), f"run folder {workdir}: the run has begun, and is forecast no more")
    require(not (workdir / FORECAST).exists(), f"run folder {workdir}: the run is forecast already, in {FORECAST}")
    content = (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / FORECAST, content)
    except OSError as error:
        raise UserError(f"{workdir / FORECAST}: {error.strerror}; free space, or choose another folder") from error
    return _parse(workdir / FORECAST, content)


def read_forecast(workdir: Path) -> Forecast | None:
    """Returns what a run was forecast, or None where it was not.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / FORECAST
    if read_json(path, _ADVICE) is None:
        return None
    return _parse(path, path.read_bytes())


_ADVICE = "remove it: the run goes on without, and a run that is finished counts as forecast no more"


def _parse(path: Path, content: bytes) -> Forecast:
    values = json.loads(content)
    try:
        median, low, high = (float(values[name]) for name in ("median", "low", "high"))
        bands = tuple(Band(int(one["step"]), float(one["low"]), float(one["high"])) for one in values["bands"])
        if not low <= median <= high < math.inf:
            raise ValueError(f"{median} in [{low}, {high}]")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {_ADVICE}") from error
    return Forecast(median, low, high, bands, hashlib.sha256(content).hexdigest(), values)


def beside_forecast(forecast: Forecast, validation: Series) -> str:
    """Returns a warning where the latest validation lies outside of what was forecast for it; '' where it does not.

    Args:
        validation: bits per byte by step.
    """
    if not len(validation.steps):
        return ""
    step, bits = int(validation.steps[-1]), float(validation.values[-1])
    band = next((one for one in forecast.bands if one.step == step), None)
    if band is None or not math.isfinite(bits) or band.low <= bits <= band.high:
        return ""
    expected = f"{band.low:.4f} to {band.high:.4f}, as {BAND:.0%} of such runs"
    if bits > band.high:
        what = "above: compare data, learning rate and batch with the smaller sizes before you wait for its end"
    else:
        what = "below, which smaller sizes do not explain: see that nothing it is validated on is in its training data"
    return f"the validation, {bits:.4f} bits per byte, was forecast at {expected}, and lies {what}"
