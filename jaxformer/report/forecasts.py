"""Forecasts and their results, as text, as pictures and as a page."""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.forecast import ForecastRun, standing
from jaxformer.ablation.ladder import Rung
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.experiment import trained_tokens
from jaxformer.flops import parameter_count
from jaxformer.host.console import format_duration, format_rows
from jaxformer.host.html import render
from jaxformer.report.figures import Picture, Plot, draw_pictures
from jaxformer.report.formatting import NOTHING, number
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.run.forecast import BAND, INTERVAL, Forecast
from jaxformer.statistics.scaling_law import NoLaw, predict_loss

HEADINGS = ("run", "forecast", f"{INTERVAL:.0%} between", "came out", "within", "from")

# Passes over the data, and multiples of the smaller sizes' passes, up to which repetition is ignored.
_UNREPEATED = 1.1

# How far beyond the largest size the law is drawn, in compute.
_BEYOND = 4.0

_BLUE = COLOURS[Word.KEEP]


class Forecasts(NamedTuple):
    """All runs with forecasts in a folder of runs."""

    runs: tuple[ForecastRun, ...]
    """By the time of their forecasts."""
    deleted: Sequence[bool | None] = ()
    """As of `outcomes_of_deleted`: they count, since otherwise deleting a bad run would improve the record."""

    @property
    def scored(self) -> list[ForecastRun]:
        """The runs with known results."""
        return [one for one in self.runs if one.is_scored]


class KnownSize(NamedTuple):
    """A size as described by forecasts and their results."""

    name: str
    parameters: float
    tokens: float
    compute: float
    bits_per_byte: Mapping[str, float]
    """The final value of each run, by its seed."""


def ladder_table(rungs: Sequence[Rung], seconds: Mapping[str, float], columns: int | None) -> list[str]:
    """Returns the lines of a table of the sizes of a ladder. Args: seconds: of a run, by experiment."""
    rows = [["experiment", "blocks", "width", "parameters", "tokens", "a step", "rate", "compute", "runs", "each"]]
    for rung in rungs:
        one = rung.resolved.experiment
        rows.append(
            [
                rung.name,
                str(one.model.depth),
                str(one.model.width),
                _short(parameter_count(one.model)),
                _short(trained_tokens(one)),
                _short(one.training.rows_per_step * one.packing.row_length),
                f"{one.optimizer.learning_rate:g}",
                f"{rung.compute:.3g} x",
                str(rung.seeds),
                format_duration(seconds[rung.name]),
            ]
        )
    return format_rows(rows, columns)


def _short(count: float) -> str:
    """Returns a number of parameters or tokens, with two digits or three: 360k, 1.3M, 2.5B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f}{name}"
    return f"{count:.0f}"


def describe_forecast(forecast: Forecast) -> str:
    """Returns a forecast in words."""
    sizes = forecast.about["sizes"]
    runs = sum(len(one["bits_per_byte"]) for one in sizes)
    forms = ", ".join(f"{name} is {weight:.0%}" for name, weight in forecast.about["forms"].items())
    low, high = forecast.low, forecast.high
    return (
        f"forecast {forecast.median:.4f} bits per byte, {INTERVAL:.0%} of runs between {low:.4f} and {high:.4f}, from "
        f"{runs} runs of {len(sizes)} smaller sizes. Of that, ± {forecast.about['seeds']:.4f} is seed noise; "
        f"the probability of a law {forms}. On other documents of the kind: ± "
        f"{forecast.about['other_documents']:.4f} more. {_rises(forecast)}{_repetition(forecast)}Written before the "
        f"run, {forecast.digest[:12]}"
    )


def _rises(forecast: Forecast) -> str:
    """Returns a sentence if a larger size ended above a smaller one, else ''."""
    ends = [(one["experiment"], np.mean([*one["bits_per_byte"].values()])) for one in forecast.about["sizes"]]
    above = [f"{one[0]} ended above {before[0]}" for before, one in itertools.pairwise(ends) if one[1] > before[1]]
    return f"{', '.join(above)}: tune their learning rates first. " if above else ""


def _repetition(forecast: Forecast) -> str:
    """Returns a sentence if a run reads its data more often than the smaller sizes, else ''."""
    passes = forecast.about["tokens"] / forecast.about.get("corpus_tokens", math.inf)
    before = max(one["tokens"] for one in forecast.about["sizes"]) / forecast.about["tokens"] * passes
    if passes <= max(_UNREPEATED, _UNREPEATED * before):
        return ""
    return (
        f"It reads its data {passes:.1f} times and smaller sizes up to {before:.1f} times. Repeated tokens are worth "
        "less, which is not counted, so expect a higher loss. "
    )


def describe_outcome(one: ForecastRun) -> str:
    """Returns in words how the forecast of a finished run came out."""
    if one.run is None:
        return "not finished yet"
    bits, low, high = one.run.bits_per_byte, one.forecast.low, one.forecast.high
    found = f"{bits:.4f} bits per byte, forecast {one.forecast.median:.4f} ({low:.4f} to {high:.4f})"
    if one.objection:
        return f"{found}; it does not count: {one.objection}"
    return f"{found}: {'within' if one.forecast.has(bits) else 'OUTSIDE'}"


def forecast_rows(forecasts: Forecasts) -> list[list[str]]:
    """Returns the cells of each run with a forecast, under `HEADINGS`."""
    rows = []
    for one in forecasts.runs:
        came_out, within = NOTHING, "not finished"
        if one.run:
            came_out = number(one.run.bits_per_byte, 4)
            within = one.objection or ("yes" if one.forecast.has(one.run.bits_per_byte) else "NO")
        between = f"{one.forecast.low:.4f} to {one.forecast.high:.4f}"
        sizes = one.forecast.about["sizes"]
        made_of = f"{len(sizes)} sizes, up to {sizes[-1]['experiment']}"
        rows.append(
            [f"{one.experiment} seed {one.seed}", f"{one.forecast.median:.4f}", between, came_out, within, made_of]
        )
    return rows


def summarise_forecasts(forecasts: Forecasts) -> str:
    """Returns how often the intervals were right, over runs, and over sizes, since runs of a size share a forecast."""
    scored, deleted = forecasts.scored, [one for one in forecasts.deleted if one is not None]
    hits = [one.forecast.has(one.run.bits_per_byte) for one in scored if one.run]
    first_of_size = {one.experiment: hit for one, hit in reversed([*zip(scored, hits, strict=True)])}
    made = len(forecasts.runs) + len(forecasts.deleted)
    gone = f", {len(forecasts.deleted)} of them deleted or unreadable since" * bool(forecasts.deleted)
    text = f"{made} run{'s' * (made != 1)} forecast{gone}"
    if not (hits or deleted):
        return f"{text}, none of them finished"
    finished, within = len(hits) + len(deleted), sum(hits) + sum(deleted)
    text += f", {finished} finished: {within} within the interval of the forecast, as {INTERVAL:.0%} of many should be"
    if len(first_of_size) == len(hits):
        return text
    firsts = f"{sum(first_of_size.values())} of {len(first_of_size)}"
    return f"{text}. Runs of one size share a forecast: of the first run of each, {firsts} are within"


def ladders(forecasts: Forecasts) -> list[list[ForecastRun]]:
    """Returns the runs of each ladder: forecasts with a size in common belong to one ladder."""
    found: list[tuple[set[str], list[ForecastRun]]] = []
    for one in forecasts.runs:
        names, runs = {one.experiment, *(size["experiment"] for size in one.forecast.about["sizes"])}, [one]
        for other in [each for each in found if each[0] & names]:
            names, runs = names | other[0], other[1] + runs
            found.remove(other)
        found.append((names, runs))
    return [runs for _, runs in found]


def sizes_of(runs: Sequence[ForecastRun]) -> list[KnownSize]:
    """Returns the sizes in the forecasts of a ladder and their results, by compute."""
    found: dict[str, KnownSize] = {}

    def add(name: str, about: Mapping[str, Any], bits_per_byte: Mapping[str, float]) -> None:
        before = found[name].bits_per_byte if name in found else {}
        bits = {**before, **bits_per_byte}
        found[name] = KnownSize(name, about["parameters"], about["tokens"], about["compute"], bits)

    for one in runs:
        for size in one.forecast.about["sizes"]:
            add(size["experiment"], size, size["bits_per_byte"])
        if one.run:
            add(one.experiment, one.forecast.about, {str(one.seed): one.run.bits_per_byte})
    return sorted(found.values(), key=lambda size: size.compute)


def draw_law(sizes: Sequence[KnownSize], forecasts: Sequence[ForecastRun]):
    """Returns the picture of the losses of a ladder's runs by compute, the law through them, and the forecasts."""
    figure = make_figure(7.2, 3.9)
    axes = figure.subplots()
    compute = np.array([one.compute for one in sizes])
    grid = np.geomspace(compute[0], _BEYOND * compute[-1], 30)
    along = [np.polyfit(np.log(compute), np.log([getattr(one, name) for one in sizes]), 1) for name in _OF_A_SIZE]
    losses = [list(one.bits_per_byte.values()) for one in sizes]
    parameters, tokens = ([getattr(one, name) for one in sizes] for name in _OF_A_SIZE)
    points = np.exp([np.polyval(line, np.log(grid)) for line in along]).T
    found = []
    with contextlib.suppress(NoLaw):
        found = [predict_loss(parameters, tokens, losses, *point) for point in points.tolist()]
    if found:
        low, high = np.array([one.interval(INTERVAL) for one in found]).T
        axes.fill_between(grid, low, high, color=_BLUE, alpha=0.13, lw=0, label=f"where {INTERVAL:.0%} of runs lie")
        axes.plot(grid, [one.median for one in found], color=_BLUE, lw=1.4, label="the law")
    for one in forecasts:
        place = one.forecast.about["compute"] * (1 + 0.04 * one.seed)
        axes.plot(
            [place] * 2, [one.forecast.low, one.forecast.high], color=GREY, lw=2.4, alpha=0.6, solid_capstyle="butt"
        )
        axes.plot([place], [one.forecast.median], "_", color=GREY, ms=9, mew=1.6)
    for one, bits in zip(sizes, losses, strict=True):
        axes.plot([one.compute] * len(bits), bits, "o", color=INK, ms=3.6, alpha=0.75, zorder=4)
        top = max(*bits, *(each.forecast.high for each in forecasts if each.experiment == one.name), 0.0)
        axes.annotate(
            f"{one.name}\n{_short(one.parameters)} parameters", (one.compute, top), xytext=(4, 6),
            textcoords="offset points", fontsize=7, color=GREY, zorder=1,
        )  # fmt: skip
    axes.plot([], [], "o", color=INK, ms=3.6, label="a run")
    if forecasts:
        axes.plot([], [], "-", color=GREY, lw=2.4, alpha=0.6, label="forecast before it was trained")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"1e{math.log10(value):.0f}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set(xlabel="training compute, floating-point operations", ylabel="validation bits per byte")
    axes.legend(fontsize=7.5, loc="upper right")
    return figure


_OF_A_SIZE = ("parameters", "tokens")


def draw_standings(forecasts: Forecasts):
    """Returns the picture of where results lie in their intervals; None if none is known."""
    scored = forecasts.scored
    if not scored:
        return None
    figure = make_figure(7.2, 0.9 + 0.22 * len(scored))
    axes = figure.subplots()
    axes.axvspan(-1, 1, color=_BLUE, alpha=0.13, lw=0)
    axes.axvline(0, color=_BLUE, lw=1.2)
    for row, one in enumerate(reversed(scored)):
        place = standing(one.forecast, one.run.bits_per_byte) if one.run else math.nan
        is_within = abs(place) <= 1
        axes.plot([place], [row], "o" if is_within else "X", color=INK if is_within else COLOURS[Word.REVERT], ms=6)
    axes.set_yticks(range(len(scored)), [f"{one.experiment} seed {one.seed}" for one in reversed(scored)])
    axes.set_ylim(-0.7, len(scored) - 0.3)
    reach = max(1.6, *(1.1 * abs(standing(one.forecast, one.run.bits_per_byte)) for one in scored if one.run))
    axes.set_xlim(-reach, reach)
    axes.set_xticks([-1, 0, 1], ["lower end", "forecast", "upper end"])
    axes.set_xlabel(f"where the result lies in its interval, in which {INTERVAL:.0%} should")
    return figure


def draw_forecasts(forecasts: Forecasts, folder: Path) -> list[Picture]:
    """Writes a PNG of each picture of all forecasts to a folder; returns the pictures."""
    plots = []
    for runs in ladders(forecasts):
        sizes = sizes_of(runs)
        plots.append(
            Plot(
                f"law_{sizes[0].name}",
                lambda _, sizes=sizes, runs=runs: draw_law(sizes, runs),
                f"The ladder from {sizes[0].name} on",
                "Each dot is a finished run, by compute, with ten times as much from one mark to the next. The line is "
                f"the law through all of them, the largest included, drawn on to {_BEYOND:g} times its compute. Grey: "
                "the forecast of a run before it began, from smaller sizes alone, with its median as a tick.",
            )
        )
    plots.append(Plot("standings", draw_standings, "How the forecasts came out", "Each mark is a finished run. Marks "
                      "should scatter around the middle, and one of ten should lie outside."))  # fmt: skip
    return draw_pictures(forecasts, folder, plots)


def forecasts_page(forecasts: Forecasts, pictures: Sequence[Picture]) -> str:
    """Returns the page of all forecasts."""
    return render(
        Path(__file__).parent,
        "forecasts.html.jinja",
        colours=COLOURS,
        summary=summarise_forecasts(forecasts),
        interval=f"{INTERVAL:.0%}",
        band=f"{BAND:.0%}",
        pictures=pictures,
        headings=HEADINGS,
        rows=forecast_rows(forecasts),
        classes=["text main", "number", "number", "number", "text", "text"],
    )
