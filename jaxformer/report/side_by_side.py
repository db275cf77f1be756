"""Runs side by side, as text and as a page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.comparison import TaskDifference
from jaxformer.ablation.side_by_side import Contrast, ShownRun, declared_name
from jaxformer.experiment.lineage import describe_change
from jaxformer.host.console import format_duration, format_rows, format_size, wrap
from jaxformer.host.html import render
from jaxformer.report.formatting import NOTHING, number, percent, with_error
from jaxformer.run.chart import Chart, make_chart
from jaxformer.run.metrics import Series, mean_rate

# Last steps of the training loss, whose mean is shown: a single one means little.
_LAST_STEPS = 100

HEADINGS = ("run", "seed", "steps", "bits per byte", f"loss (last {_LAST_STEPS})", "tokens/s", "time", "memory")

# The charts: metric, heading, unit.
_CURVES = (
    ("train/loss", "Training loss", "nats per token, each point an average"),
    ("validation/bits_per_byte", "Validation", "bits per byte"),
    ("train/learning_rate", "Learning rate", "at its peak for matrices"),
    ("train/gradient_norm", "Gradient norm", "before clipping"),
    ("train/tokens_per_second", "Tokens per second", "targets, on all devices"),
)


class DescribedContrast(NamedTuple):
    """A contrast in words."""

    heading: str
    lines: list[tuple[str, list[str]]]
    """Its contents, by name."""


def describe_runs(runs: Sequence[ShownRun]) -> list[list[str]]:
    """Returns the cells of each run, under `HEADINGS`."""
    return [_cells(run, name) for run, name in zip(runs, run_names(runs), strict=True)]


def run_names(runs: Sequence[ShownRun]) -> list[str]:
    """Returns a name for each run: its experiment's, with its folder if several share it."""
    names = [run.record["experiment"] for run in runs]
    are_unique = len({(name, run.record["seed"]) for name, run in zip(names, runs, strict=True)}) == len(runs)
    return names if are_unique else [str(run.workdir) for run in runs]


def _cells(run: ShownRun, name: str) -> list[str]:
    def values(metric: str) -> np.ndarray:
        return run.series[metric].values if metric in run.series else np.full(1, np.nan)

    summary, steps = run.finished.summary if run.finished else {}, run.experiment.training.steps
    done = int(run.series["train/loss"].steps[-1])
    speed = mean_rate(values("train/tokens_per_second"))
    return [
        name,
        str(run.record["seed"]),
        f"{done:,}" if done == steps else f"{done:,} of {steps:,}",
        number(float(values("validation/bits_per_byte")[-1]), 4),
        number(float(values("train/loss")[-_LAST_STEPS:].mean()), 4),
        f"{speed:,.0f}" if math.isfinite(speed) else NOTHING,
        format_duration(summary["seconds"]) if summary else "",
        format_size(summary["peak_memory_bytes"]) if summary else "",
    ]


def describe_contrast(contrast: Contrast) -> DescribedContrast:
    """Returns in words how runs differ, and whether that is evidence."""
    (first, *_), (other, *_) = contrast.first, contrast.other
    names = run_names((first, other))
    if names[0] == names[1]:
        by_seed = [f"{names[0]} seed {run.record['seed']}" for run in (first, other)]
        names = [str(run.workdir) for run in (first, other)] if contrast.is_again else by_seed
    same = "nothing that affects what is learned" if contrast.is_again else "nothing but the seed"
    lines = [("differs by", describe_change(contrast.changes) or [same])]
    if contrast.difference:
        pairs = f"{contrast.seeds} shared seed{'s' * (contrast.seeds != 1)}" if contrast.seeds else "different seeds"
        over = f"paired over {contrast.documents:,} documents, {pairs}; below 0 is better"
        lines.append(("bits per byte", [f"{with_error(contrast.difference)}, {over}"]))
    else:
        lines.append(("bits per byte", [f"not compared: {contrast.no_difference}"]))
    lines += [(name, [_describe_task(task)]) for name, task in contrast.tasks.items()]
    verdict = ["ad hoc, not evidence:", *contrast.reservations]
    if not contrast.reservations:
        parent, variant = (declared_name(run.record) for run in (first, other))
        study = f"`jaxformer ablate --parent={parent} --variants={variant}`"
        verdict = [f"{study} decides by a rule fixed beforehand"]
    lines.append(("verdict", verdict))
    return DescribedContrast(f"{names[1]} beside {names[0]}", lines)


def _describe_task(task: TaskDifference) -> str:
    difference = f"{100 * task.accuracy.mean:+.1f} ± {100 * task.accuracy.standard_error:.1f} points"
    return f"{difference} ({task.metric} {percent(task.parent)}, then {percent(task.variant)})"


def comparison_text(runs: Sequence[ShownRun], contrasts: Sequence[Contrast], columns: int | None) -> str:
    """Returns the runs as a table for a terminal, and below it how each differs from the first."""
    lines = format_rows([[*HEADINGS], *describe_runs(runs)], columns)
    for heading, about in map(describe_contrast, contrasts):
        lines += ["", heading]
        for name, (line, *further) in about:
            lines += wrap(f"  {name:13} {line}", columns, indent=16)
            lines += [each for one in further for each in wrap(f"{'':16}{one}", columns, indent=18)]
    return "\n".join(lines)


def comparison_charts(runs: Sequence[ShownRun]) -> list[Chart]:
    """Returns the charts of several runs, each a curve of its own."""
    names = [f"{name} seed {run.record['seed']}" for name, run in zip(run_names(runs), runs, strict=True)]
    charts = []
    for metric, heading, unit in _CURVES:
        curves: dict[str, Series] = {}
        for name, run in zip(names, runs, strict=True):
            if metric in run.series:
                curves[name] = run.series[metric]
        name, is_loss = metric.rpartition("/")[2], metric.endswith("loss")
        charts.append(make_chart(name, heading, unit, curves, points=60, without_start=is_loss))
    return [chart for chart in charts if chart]


def comparison_page(runs: Sequence[ShownRun], contrasts: Sequence[Contrast]) -> str:
    """Returns the page of runs side by side."""
    return render(
        Path(__file__).parent,
        "side_by_side.html.jinja",
        names=list(dict.fromkeys(run_names(runs))),
        headings=HEADINGS,
        rows=describe_runs(runs),
        classes=["text main", *["number"] * (len(HEADINGS) - 1)],
        contrasts=[describe_contrast(contrast) for contrast in contrasts],
        charts=comparison_charts(runs),
    )
