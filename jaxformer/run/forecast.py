"""The forecast of a run, written to its folder before its first step: `forecast.json`, which never changes.

The run records its digest at its first start, so that a forecast written later would be noticed.
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

# Share of runs within the interval, and of validations within the band, if the forecast is right.
INTERVAL, BAND = 0.9, 0.98


class Band(NamedTuple):
    """The range in which a validation within the run is expected."""

    step: int
    low: float
    high: float
    """`low` and `high`, bits per byte: the range of `BAND` of the runs."""


class Forecast(NamedTuple):
    """The expected result of a run, bits per byte."""

    median: float
    low: float
    high: float
    """`low` and `high`: the range of `INTERVAL` of the runs, on the validation documents of the smaller sizes."""
    bands: tuple[Band, ...]
    """For the validations of the run, the last included, where the smaller sizes had them too."""
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
        values: `median`, `low`, `high`, `bands`, and anything that shows how it was made.

    Raises:
        UserError: the run has begun, or has a forecast, or the folder cannot be written.
    """
    require(not (workdir / "config.json").exists(), f"run folder {workdir}: the run has begun; forecast it before")
    require(not (workdir / FORECAST).exists(), f"run folder {workdir}: the run already has a forecast, {FORECAST}")
    content = (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / FORECAST, content)
    except OSError as error:
        raise UserError(f"{workdir / FORECAST}: {error.strerror}; free space, or choose another folder") from error
    return _parse(workdir / FORECAST, content)


def read_forecast(workdir: Path) -> Forecast | None:
    """Returns the forecast of a run, or None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / FORECAST
    if read_json(path, _ADVICE) is None:
        return None
    return _parse(path, path.read_bytes())


_ADVICE = "remove it: the run goes on without, and no longer counts as forecast"


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
    """Returns a warning if the latest validation lies outside of its forecast, else ''.

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
        what = "above: compare data, learning rate and batch size with the smaller sizes before you let it go on"
    else:
        what = "below, which smaller sizes do not explain: check that no validation text is in its training data"
    return f"the validation, {bits:.4f} bits per byte, was forecast at {expected}, but lies {what}"
