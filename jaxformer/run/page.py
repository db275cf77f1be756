"""The page of a run: what it is, its progress and its curves, in a file that loads nothing and runs nothing."""

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.phases import Span, span_at
from jaxformer.experiment.lineage import describe_change
from jaxformer.host.console import format_duration, format_size
from jaxformer.host.files import read_json_or_empty, write_whole
from jaxformer.host.html import render
from jaxformer.host.signals import Stopped
from jaxformer.run.alarms import find_alarms, is_repetitive
from jaxformer.run.chart import Chart, Event, Points, make_chart, thin
from jaxformer.run.folder import peak_memory
from jaxformer.run.forecast import BAND, INTERVAL, Forecast, beside_forecast, read_forecast
from jaxformer.run.identity import CONFIG
from jaxformer.run.metrics import MetricsReader, Series, mean_rate
from jaxformer.run.samples import append_sample, read_samples, write_samples
from jaxformer.skip_steps import SPIKE

PAGE = "run.html"

# The most events, and samples, that are shown.
_MOST_EVENTS, _MOST_SAMPLES = 200, 12

# What marks a step whose loss was a spike, and one that was skipped.
_SPIKE, _SKIPPED = "\N{BLACK UP-POINTING TRIANGLE}", "\N{MULTIPLICATION X}"

# In place of a missing number.
_NOTHING = "\N{EN DASH}"

# Names of curves by the metric.
_LOSSES = {"train/loss": "training", "validation/loss": "validation"}
_NORMS = {"gradient_norm": "Gradient norms", "update_norm": "Update norms", "parameter_norm": "Parameter norms"}


class Records(NamedTuple):
    """The contents of a run folder."""

    config: Mapping[str, Any]
    """`config.json`."""
    summary: Mapping[str, Any]
    """`summary.json`; while the run goes on, its `seconds` and `peak_memory_bytes` so far."""
    series: Mapping[str, Series]
    """`metrics.jsonl`."""
    samples: Mapping[int, str]
    """`samples.jsonl`: texts by step."""
    other_seeds: Sequence[float] = ()
    """Final bits per byte of runs that differ only in the seed."""
    forecast: Forecast | None = None
    """The forecast of the run."""
    error: BaseException | None = None
    """What ended the run early; None if unknown."""

    @property
    def steps(self) -> int:
        """Steps trained so far."""
        return int(max((each.steps[-1] for each in self.series.values()), default=0))

    @property
    def status(self) -> str:
        """The state of the run, as far as is known."""
        if "status" in self.summary:
            return "finished"
        if self.error is None:
            return "not finished"
        return "stopped" if isinstance(self.error, Stopped) else "failed"

    def values(self, name: str) -> np.ndarray:
        """Returns the values of a metric by step; none where there is no such metric."""
        return self.series[name].values if name in self.series else np.zeros(0)

    def latest(self, name: str) -> float:
        """Returns the last value of a metric; NaN where there is none."""
        return float(self.values(name)[-1]) if name in self.series else math.nan

    def between(self, prefix: str, suffix: str = "") -> dict[str, Series]:
        """Returns the series with this prefix and suffix, by the name between."""
        rests = {name.removeprefix(prefix): each for name, each in self.series.items() if name.startswith(prefix)}
        return {name.removesuffix(suffix): each for name, each in rests.items() if name.endswith(suffix)}

    def accuracies(self) -> dict[str, Series]:
        """Returns the accuracy of each task by its name."""
        return {name: each for name, each in self.between("", "/acc").items() if "/" not in name}


class Figure(NamedTuple):
    """A number of the summary."""

    name: str
    value: str
    beside: str
    """Its error or its unit."""


class RunPage:
    """Draws the page of a run repeatedly while it goes on, with its samples."""

    def __init__(self, folder: Path, first_step: int):
        """Args: folder: of the run; first_step: at which it begins or resumes, and whose sample comes again."""
        self.path = folder / PAGE
        self._folder = folder
        self._metrics = MetricsReader(folder)
        self._samples = read_samples(folder, first_step)
        self._is_written = False  # The file may hold samples of steps that come again.

    def add_sample(self, step: int, text: str) -> None:
        """Appends a text that the model wrote after a step to `samples.jsonl`.

        Raises:
            OSError: it cannot be written; the next call tries again.
        """
        self._samples[step] = text
        was_written, self._is_written = self._is_written, False
        if was_written:
            append_sample(self._folder, step, text)
        else:
            write_samples(self._folder, self._samples)
        self._is_written = True

    def draw(self, seconds: float, spans: Sequence[Span], error: BaseException | None = None) -> list[str]:
        """Draws the page from the run's folder; returns the warnings that it shows.

        Args:
            seconds: that the run took so far.
            spans: of the run, each of which is judged by itself.
            error: that ended it early, if any.

        Raises:
            OSError: it cannot be written.
        """
        config, summary = (read_json_or_empty(self._folder / name) for name in (CONFIG, "summary.json"))
        so_far = {"seconds": seconds, "peak_memory_bytes": peak_memory()}
        others = read_other_seeds(self._folder, config)
        forecast = read_forecast(self._folder)
        records = Records(config, summary or so_far, self._metrics.read(), self._samples, others, forecast, error)
        first_step = span_at(spans, max(records.steps - 1, 0)).first_step
        alarms = find_alarms(records.series, records.samples.get(records.steps, ""), first_step)
        bits = records.series.get("validation/bits_per_byte")
        alarms += [line for line in [forecast and bits and beside_forecast(forecast, bits)] if line]
        drawn = datetime.datetime.now(datetime.UTC)
        write_whole(self.path, make_page(records, alarms, drawn).encode(), sync=False)
        return alarms


def read_other_seeds(folder: Path, config: Mapping[str, Any]) -> list[float]:
    """Returns the final bits per byte of finished runs beside a folder that differ only in the seed."""

    def science(record: Mapping[str, Any]) -> dict:
        return {name: value for name, value in record.get("identity", {}).items() if name != "seed"}

    found = []
    for path in sorted(folder.absolute().parent.glob(f"*/{CONFIG}")):
        record, summary = read_json_or_empty(path), read_json_or_empty(path.with_name("summary.json"))
        bits = summary.get("validation/bits_per_byte")
        is_other = record.get("seed") != config["seed"] and science(record) == science(config)
        if is_other and isinstance(bits, float) and math.isfinite(bits):
            found.append(bits)
    return found


def make_page(records: Records, alarms: Sequence[str], drawn: datetime.datetime) -> str:
    """Returns the page of a run. Args: drawn: when, in UTC."""
    config, charts = records.config, make_charts(records)
    return render(
        Path(__file__).parent,
        "page.html.jinja",
        name=config["experiment"],
        seed=config["seed"],
        question=config["question"],
        steps=records.steps,
        all_steps=config["config"]["training"]["steps"],
        status=records.status,
        reason=records.error and (str(records.error) or type(records.error).__name__),
        drawn=f"{drawn:%Y-%m-%d %H:%M} UTC",
        alarms=alarms,
        figures=make_figures(records),
        about=describe_run(records),
        charts=[chart for chart in charts if chart],
        samples=_some(records.samples),
    )


def _some(samples: Mapping[int, str]) -> list[tuple[int, str, bool]]:
    """Returns evenly spread samples, the last included: step, text, and whether it repeats itself."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), _MOST_SAMPLES)).astype(int))
    return [(step, samples[step], is_repetitive(samples[step])) for step in np.array([*samples])[chosen].tolist()]


def make_figures(records: Records) -> list[Figure]:
    """Returns the numbers of the summary: the quality of the model, and its cost."""
    summary, rate = records.summary, mean_rate(records.values("train/tokens_per_second"))
    error = _plus_minus(records.latest("validation/bits_per_byte_standard_error"), 4)
    figures = [
        Figure("validation", _number(records.latest("validation/bits_per_byte"), 4), f"{error} bits per byte"),
        Figure("validation loss", _number(records.latest("validation/loss"), 4), "nats per token"),
        Figure("training loss", _number(_mean(records.values("train/loss")[-100:]), 4), "nats, last 100 steps"),
    ]
    ends = [*records.other_seeds, *([records.latest("validation/bits_per_byte")] if "status" in summary else [])]
    if len(ends) > 1:
        spread = f"{np.std(ends, ddof=1):.4f}"
        figures.append(Figure("seeds differ by", spread, f"bits per byte, standard deviation of {len(ends)} runs"))
    if records.forecast:
        one = records.forecast
        beside = f"bits per byte, {INTERVAL:.0%} between {one.low:.4f} and {one.high:.4f}"
        if "status" in summary:
            is_within = one.has(records.latest("validation/bits_per_byte"))
            beside += f"; the run ended {'within' if is_within else 'outside'}"
        figures.append(Figure("forecast", _number(one.median, 4), beside))
    for task in records.accuracies():
        error = _plus_minus(100 * records.latest(f"{task}/acc_standard_error"), 1)
        figures.append(Figure(task, f"{100 * records.latest(f'{task}/acc'):.1f} %", f"{error} accuracy"))
    return [
        *figures,
        Figure("speed", _number(rate, 0), "tokens per second"),
        Figure("time", format_duration(summary["seconds"]), "with evaluations"),
        Figure("memory", format_size(summary["peak_memory_bytes"]), "at its peak"),
    ]


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else _NOTHING


def _plus_minus(error: float, digits: int) -> str:
    return f"± {error:.{digits}f}" if math.isfinite(error) else ""


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def describe_run(records: Records) -> list[tuple[str, list[str]]]:
    """Returns what the run is, as names and lines."""
    config = records.config
    lineage = config["lineage"]
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    restarts = [f"{start['step']:,}" for start in config["starts"][1:]]
    about = {
        "parent": [", ".join(lineage["parents"])] if lineage["parents"] else [],
        "changes": describe_change(lineage["change"]),
        "follows": describe_change(lineage["consequences"]),
        "command line": describe_change(lineage["overrides"]),
        "device": [f"{config['devices']} x {config['device']}, attention {config['attention']['name']}"],
        "versions": [versions],
        "resumed": [f"after step {', '.join(restarts)}"] if restarts else [],
    }
    return [(name, lines) for name, lines in about.items() if lines]


def make_charts(records: Records) -> list[Chart | None]:
    """Returns the charts of a run, None in place of one without numbers."""
    series = records.series
    events, counts = find_events(series)
    about = ["nats per token; shaded: from the smallest to the largest of the steps that a point averages"]
    about += [f"{what}: {count:,}" for what, count in counts.items() if count]
    if sum(counts.values()) > len(events):
        about.append(f"{len(events)} of them are shown")

    def one(metric: str, heading: str, unit: str, factor: float = 1.0, **options) -> Chart | None:
        name = f"train/{metric}"
        found = {heading.lower(): series[name]._replace(values=factor * series[name].values)} if name in series else {}
        return make_chart(metric, heading, unit, found, **options)

    rises = {"with_range": "gradient norm", "without_start": True}
    norms = {metric: records.between(f"train/{metric}/") for metric in _NORMS}
    tasks = {name: each._replace(values=100 * each.values) for name, each in records.accuracies().items()}
    corpora = records.between("validation/", "/bits_per_byte")
    return [
        make_chart(
            "loss",
            "Loss",
            "; ".join(about),
            {name: series[metric] for metric, name in _LOSSES.items() if metric in series},
            points=160,
            with_range="training",
            without_start=True,
            events=events,
        ),
        _forecast_chart(records),
        make_chart("corpora", "Validation by corpus", "bits per byte", corpora, without_start=True),
        make_chart("tasks", "Tasks", "% of the items answered correctly", tasks),
        one("learning_rate", "Learning rate", "of the schedule, without the factors of groups"),
        one("gradient_norm", "Gradient norm", "before clipping", **rises),
        *(
            make_chart(metric, heading, "by part of the model", norms[metric], scale="logarithmic")
            for metric, heading in _NORMS.items()
        ),
        one("tokens_per_second", "Tokens per second", "targets, on all devices", scale="from 0"),
        one("waiting_for_data", "Waiting for data", "% of the time", 100.0, scale="from 0"),
        *(_layers_chart(name, series) for name in series if f"{name}/min" in series),
    ]


def _layers_chart(name: str, series: Mapping[str, Series]) -> Chart | None:
    """Returns the chart of what layers report by a name: the mean of its values, and their range."""
    mean, low, high = (thin(series[each], 160) for each in (name, f"{name}/min", f"{name}/max"))
    about = "mean over the layers, and over the values of each; shaded: from the smallest to the largest"
    curve = mean._replace(low_P=low.low_P, high_P=high.high_P)
    return make_chart(name.replace("/", "_"), name.removeprefix("train/"), about, {"mean": curve}, with_range="mean")


def _forecast_chart(records: Records) -> Chart | None:
    """Returns the chart of the validations beside their forecast; None without a forecast."""
    if not (records.forecast and records.forecast.bands):
        return None
    steps, low, high = (np.array(each) for each in zip(*records.forecast.bands, strict=True))
    expected = Points(steps, steps, (low + high) / 2, low, high)
    bits = records.series.get("validation/bits_per_byte")
    curves = {"validation": bits} if bits else {}
    about = (
        f"bits per byte; shaded: where {BAND:.0%} of such runs were expected before the first step (outside, it warns)"
    )
    return make_chart(
        "forecast", "Validation and forecast", about, {**curves, "forecast": expected}, with_range="forecast"
    )


def find_events(series: Mapping[str, Series]) -> tuple[list[Event], dict[str, int]]:
    """Returns the skipped steps and those whose loss was a spike, and the number of each.

    If there are too many to show, the smallest spikes are left out.
    """
    if not {"train/loss", "train/spike_score", "train/skipped_steps"} <= series.keys():
        return [], {}
    (steps, losses), (_, scores), (_, skipped) = (
        series[f"train/{name}"] for name in ("loss", "spike_score", "skipped_steps")
    )
    is_skipped = np.diff(skipped, prepend=0.0) > 0
    found = np.flatnonzero(is_skipped | (scores > SPIKE))
    heights = np.where(np.isfinite(losses[found]), scores[found], math.inf)
    chosen = np.sort(found[np.argsort(-heights, kind="stable")][:_MOST_EVENTS])
    events = []
    for i in chosen.tolist():
        text = f"step {steps[i]:,}: loss {losses[i]:.4g}"
        if math.isfinite(losses[i]):
            text += f", {scores[i]:.1f} standard deviations above the last"
        sign = _SKIPPED if is_skipped[i] else _SPIKE
        events.append(Event(int(steps[i]), float(losses[i]), sign, f"{text}{', skipped' if is_skipped[i] else ''}"))
    counts = {f"{_SPIKE} spikes": len(found) - int(is_skipped.sum()), f"{_SKIPPED} skipped": int(is_skipped.sum())}
    return events, counts
