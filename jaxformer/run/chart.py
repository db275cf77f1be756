"""Charts of numbers by step, in the form in which a template draws them in a page without scripts.

Positions are percent of the width from the left, or of the height from the top. Lines are paths in a square of 100
units, which the page stretches. Texts and marks lie over it, so that they keep their size on a narrow screen.

Axes: N value, P point that is drawn.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxformer.run.metrics import Series

# Values that a point averages in a noisy curve, if they are enough for so many points.
_AVERAGED, _FEWEST_POINTS = 20, 40

# Curves of so many points have a dot on each.
_MOST_DOTS = 50


class Points(NamedTuple):
    """The points drawn for a series: each stands for neighbouring values."""

    first_P: np.ndarray
    last_P: np.ndarray
    """Steps of the first and of the last value."""
    mean_P: np.ndarray
    low_P: np.ndarray
    high_P: np.ndarray
    """Mean, smallest and largest of the finite values; NaN where there are none."""

    @property
    def steps_P(self) -> np.ndarray:
        """Where they are drawn."""
        return (self.first_P + self.last_P) / 2


class Tick(NamedTuple):
    """A number at an axis."""

    place: float
    label: str


class Line(NamedTuple):
    """A curve as it is drawn."""

    name: str
    latest: str
    """Its last value."""
    path: str
    dots: str
    """Path of its dots; '' for none."""
    band: str
    """Path around its smallest and largest values; '' for none."""


class Strip(NamedTuple):
    """A part of the width that shows the values in it when the pointer is over it."""

    left: float
    width: float
    text: str


class Event(NamedTuple):
    """Something that happened at a step."""

    step: int
    value: float
    """Where it is marked; at the top if it is not finite."""
    sign: str
    """Character that marks it."""
    text: str


class Mark(NamedTuple):
    """An event as it is drawn."""

    left: float
    top: float
    sign: str
    text: str


class Chart(NamedTuple):
    """A chart."""

    name: str
    heading: str
    about: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    strips: list[Strip]
    marks: list[Mark]


def thin(series: Series, most: int) -> Points:
    """Returns at most so many points of a series that is not empty, each of about as many values."""
    steps, values = series
    starts = np.unique(np.linspace(0, len(values), min(len(values), most) + 1).astype(int)[:-1])
    is_finite = np.isfinite(values)
    counts = np.add.reduceat(is_finite.astype(float), starts)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(is_finite, values, 0.0), starts) / counts
    low, high = (
        np.where(counts > 0, extreme.reduceat(np.where(is_finite, values, none), starts), np.nan)
        for extreme, none in ((np.minimum, np.inf), (np.maximum, -np.inf))
    )
    return Points(steps[starts], steps[np.append(starts[1:], len(steps)) - 1], mean, low, high)


def make_chart(
    name: str,
    heading: str,
    about: str,
    curves: Mapping[str, Series | Points],
    *,
    points: int = 100,
    scale: Literal["linear", "from 0", "logarithmic"] = "linear",
    with_range: str = "",
    without_start: bool = False,
    events: Sequence[Event] = (),
) -> Chart | None:
    """Returns a chart of curves by name, or None where none has a finite value.

    Args:
        name: identifies it in the page.
        heading: the text above it.
        about: the unit, and further notes.
        curves: in the order of their colours; points are drawn as they are.
        points: the most of a curve.
        scale: of the vertical axis; a logarithmic one omits values that are not above 0.
        with_range: name of a noisy curve: its points are averages, in a band from the smallest to the largest values.
        without_start: whether the vertical axis may cut off the first eighth of each curve, which is often far above
            the rest.
        events: what is marked.
    """
    thinned = {}
    for key, one in curves.items():
        if isinstance(one, Series):
            values = _logarithm(one.values) if scale == "logarithmic" else one.values
            most = min(points, max(_FEWEST_POINTS, len(values) // _AVERAGED)) if key == with_range else points
            one = thin(one._replace(values=values), most)
        if np.isfinite(one.mean_P).any():
            thinned[key] = one
    if not thinned:
        return None
    axes = _Axes(
        max(float(each.last_P[-1]) for each in thinned.values()) or 1.0,
        *_limits(thinned, scale, with_range, without_start),
        scale == "logarithmic",
    )
    if max(np.nanmax(each.mean_P) for each in thinned.values()) > axes.high:
        about += "; the first steps lie above what is shown"
    return Chart(
        name,
        heading,
        about,
        [_line(key, each, axes, with_band=key == with_range) for key, each in thinned.items()],
        [Tick(float(axes.x(step)), label) for step, label in _ticks(0, axes.last_step, least=1)],
        [Tick(float(axes.y(value)), label) for value, label in axes.y_ticks()],
        _strips(thinned, axes, with_range),
        [_mark(event, axes) for event in events],
    )


class _Axes(NamedTuple):
    """What lies where."""

    last_step: float
    low: float
    high: float
    is_logarithmic: bool

    def x(self, steps) -> np.ndarray:
        return 100 * np.asarray(steps) / self.last_step

    def y(self, values) -> np.ndarray:
        return np.clip(100 * (self.high - np.asarray(values)) / (self.high - self.low), -100, 200)

    def y_ticks(self) -> list[tuple[float, str]]:
        return _log_ticks(self.low, self.high) if self.is_logarithmic else _ticks(self.low, self.high)

    def shown(self, value: float) -> str:
        """Returns a value as text."""
        value = 10.0**value if self.is_logarithmic else value
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _logarithm(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log10(values), np.nan)


def _limits(thinned: Mapping[str, Points], scale: str, with_range: str, without_start: bool) -> tuple[float, float]:
    """Returns the smallest and the largest number of the vertical axis."""
    shown = []
    for key, each in thinned.items():
        start = len(each.mean_P) // 8 if without_start else 0
        shown.append(each.mean_P[start:])
        if key == with_range:  # Without a few outliers.
            low_P, high_P = (x[start:][np.isfinite(x[start:])] for x in (each.low_P, each.high_P))
            shown += [np.quantile(low_P, [0.02]), np.quantile(high_P, [0.98])] if len(low_P) else []
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if not len(finite):  # Only the start has finite values.
        return _limits(thinned, scale, with_range, False)
    low, high = float(finite.min()), float(finite.max())
    low = min(low, 0.0) if scale == "from 0" else low
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room * (scale != "from 0" or low < 0), high + room


def _line(name: str, points: Points, axes: _Axes, with_band: bool) -> Line:
    x_P, y_P = axes.x(points.steps_P), axes.y(points.mean_P)
    finite = np.isfinite(points.mean_P)
    dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in zip(x_P[finite], y_P[finite], strict=True))
    around = ""
    if with_band:
        x, low, high = x_P[finite], axes.y(points.low_P[finite]), axes.y(points.high_P[finite])
        around = _path(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])) + "Z"
    latest = axes.shown(points.mean_P[finite][-1])
    return Line(name, latest, _path(x_P, y_P), "" if with_band or len(x_P) > _MOST_DOTS else dots, around)


def _path(x_P: np.ndarray, y_P: np.ndarray) -> str:
    parts, pen = [], "M"
    for x, y in zip(x_P.tolist(), y_P.tolist(), strict=True):
        if math.isfinite(y):
            parts.append(f"{pen}{x:.2f} {y:.2f}")
        pen = "L" if math.isfinite(y) else "M"
    return "".join(parts)


def _mark(event: Event, axes: _Axes) -> Mark:
    top = float(np.clip(axes.y(event.value), 0, 100)) if math.isfinite(event.value) else 0.0
    return Mark(float(axes.x(event.step)), top, event.sign, event.text)


def _strips(thinned: Mapping[str, Points], axes: _Axes, with_range: str) -> list[Strip]:
    """Returns a strip around each point of the curve that has the most, with the values within."""
    most = max(thinned.values(), key=lambda each: len(each.mean_P))
    places = most.steps_P
    borders = np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [axes.last_step]])
    texts: list[list[str]] = [[] for _ in places]
    for key, each in thinned.items():
        at = np.clip(np.searchsorted(borders, each.steps_P, side="right") - 1, 0, len(places) - 1)
        for number, mean, low, high in zip(at, each.mean_P, each.low_P, each.high_P, strict=True):
            if math.isfinite(mean):
                spread = f" ({axes.shown(low)} to {axes.shown(high)})" if key == with_range and low < high else ""
                texts[number].append(f"{key} {axes.shown(mean)}{spread}")
    return [
        Strip(left, right - left, f"{_steps(first, last)}: {'; '.join(parts)}")
        for (left, right), first, last, parts in zip(
            itertools.pairwise(axes.x(borders).tolist()), most.first_P, most.last_P, texts, strict=True
        )
        if parts
    ]


def _steps(first: float, last: float) -> str:
    return f"step {first:,.0f}" if first == last else f"steps {first:,.0f} to {last:,.0f}"


def _short(value: float, digits: int = 0) -> str:
    return f"{value / 1000:,g}k" if value >= 10_000 else f"{value:,.{digits}f}"


def _spacing(low: float, high: float) -> float:
    """Returns the distance of three to six ticks: 1, 2 or 5 times a power of 10."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * rough)


def _ticks(low: float, high: float, least: float = 0.0) -> list[tuple[float, str]]:
    """Returns round numbers between two, at least so far apart, and their labels."""
    spacing = max(_spacing(low, high), least)
    digits = max(0, -math.floor(math.log10(spacing) + 1e-9))
    numbers = spacing * np.arange(math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9) + 1)
    return [(value, f"{value:.3g}" if digits > 4 and value else _short(value, digits)) for value in numbers.tolist()]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Returns numbers between two powers of 10, by their logarithm, and their labels."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 2.5 else (1, 2, 5)
    numbers = [factor * 10.0**decade for decade in decades[:: 1 + len(decades) // 7] for factor in factors]
    within = [(math.log10(value), f"{value:.3g}") for value in numbers if low <= math.log10(value) <= high]
    return within if len(within) > 1 else [(value, f"{10.0**value:.3g}") for value in np.linspace(low, high, 4)[1:3]]
