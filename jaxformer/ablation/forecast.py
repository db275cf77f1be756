"""Forecasts of a size's result, written down before it is trained, and scored afterwards.

`forecasts.jsonl` beside the runs collects them: a line when one is made, and a line when its run is finished. A
forecast counts if its run began with it: the run's record holds the digest from its first start on.
"""

import contextlib
import datetime
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun, load_finished_run
from jaxformer.ablation.sizes import Size, size_of, smaller_sizes
from jaxformer.config import UserError
from jaxformer.experiment.experiment import Experiment, evaluated_steps
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.json_lines import append_json_line, read_json_lines
from jaxformer.run.forecast import BAND, FORECAST, INTERVAL, Forecast, read_forecast, write_forecast
from jaxformer.statistics.scaling_law import FEWEST_SIZES, NoLaw, predict_loss

FORECASTS = "forecasts.jsonl"


class TooFewSizes(UserError):
    """Too few smaller sizes are finished for a forecast."""


class ForecastRun(NamedTuple):
    """A run that was forecast."""

    workdir: Path
    experiment: str
    seed: int
    forecast: Forecast
    run: FinishedRun | None
    """None while it is not finished."""
    objection: str
    """Why the forecast does not count; '' if it does."""

    @property
    def is_scored(self) -> bool:
        """Whether the result is known."""
        return self.run is not None and not self.objection


def forecast_values(target: Experiment, sizes: Sequence[Size]) -> dict[str, Any]:
    """Returns the content of `forecast.json` for a run of an experiment, from its finished smaller sizes.

    Raises:
        TooFewSizes: fewer than `FEWEST_SIZES`.
        UserError: no law goes through them.
    """
    if len(sizes) < FEWEST_SIZES:
        raise TooFewSizes(
            f"{target.name}: {len(sizes)} smaller size{'s' * (len(sizes) != 1)} with finished runs, but a forecast "
            f"needs {FEWEST_SIZES}; train them with `jaxformer ladder`"
        )
    size, steps = size_of(target), target.training.steps
    about = [one.parameters for one in sizes], [one.tokens for one in sizes]
    try:
        found = predict_loss(*about, [one.bits_per_byte for one in sizes], size.parameters, size.tokens)
    except NoLaw as error:
        means = ", ".join(f"{one.name} {np.mean(one.bits_per_byte):.4f}" for one in sizes)
        raise UserError(f"{target.name}: {error} ({means}); tune the learning rates of the sizes") from error
    low, high = found.interval(INTERVAL)
    bands = []
    for step in evaluated_steps(target):
        within = [one.at_share(step / steps) for one in sizes]
        if all(within) and step:
            with contextlib.suppress(ValueError):  # No band without a law, or with a non-finite validation.
                band = predict_loss(*about, within, size.parameters, size.tokens).interval(BAND)
                bands.append({"step": step, "low": band[0], "high": band[1]})
    return {
        "experiment": target.name,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": size.parameters,
        "tokens": size.tokens,
        "compute": size.compute,
        "corpus_tokens": _corpus_tokens(sizes[-1]),
        "median": found.median,
        "low": low,
        "high": high,
        "other_documents": _documents_error(sizes[-1]),
        "seeds": found.seeds,
        "forms": found.forms,
        "bands": bands,
        "sizes": [
            {
                "experiment": one.name,
                "parameters": one.parameters,
                "tokens": one.tokens,
                "compute": one.compute,
                "bits_per_byte": {str(run.seed): run.bits_per_byte for run in one.runs},
            }
            for one in sizes
        ],
        "documents": documents_of(sizes[-1].runs[0]),
    }


def _corpus_tokens(size: Size) -> int:
    """Returns the number of training tokens in the corpora."""
    return sum(one["training_tokens"] for one in size.runs[0].record["corpora"].values())


def _documents_error(size: Size) -> float:
    """Returns the standard error of a size's bits per byte from the choice of its validation documents."""
    return float(size.runs[0].summary["validation/bits_per_byte_standard_error"])


def documents_of(run: FinishedRun) -> dict[str, str]:
    """Returns the digest of the validation documents of each corpus that a run was validated on."""
    return {name: f"{one.digest} {len(one.bits)}" for name, one in run.validation.items()}


def forecast_runs(target: Resolved, seeds: Sequence[int], runs: Path, allow: Collection[str] = ()) -> list[Forecast]:
    """Writes forecasts into the folders of an experiment's runs that have neither begun nor a forecast; returns all.

    They differ only in the seed. Notices name what was left out.

    Args:
        allow: as of `smaller_sizes`.

    Raises:
        UserError: there are too few smaller sizes, or the forecast cannot be written.
    """
    folders = {seed: runs / target.name / f"seed_{seed}" for seed in seeds}
    new = {
        seed: folder
        for seed, folder in folders.items()
        if not ((folder / "config.json").exists() or (folder / FORECAST).exists())
    }
    if not new:
        return []
    sizes, notes = smaller_sizes(target, runs, allow)
    for note in notes:
        print_notice(note)
    values, made = forecast_values(target.experiment, sizes), []
    for seed, folder in new.items():
        made.append(write_forecast(folder, {"seed": seed, **values}))
        _keep(runs, {"kind": "forecast", "digest": made[-1].digest, **made[-1].about})
    return made


def read_forecasts(runs: Path) -> list[ForecastRun]:
    """Returns all runs with forecasts in a folder of runs, by the time of their forecasts, with their results.

    Unreadable ones are named and left out.
    """
    found = []
    for path in runs.glob(f"*/seed_*/{FORECAST}"):
        try:
            forecast = read_forecast(path.parent)
            if forecast:
                found.append(_forecast_run(path.parent, forecast))
        except (UserError, KeyError, TypeError, ValueError) as error:
            print_notice(f"not scored: {error}")
    return sorted(found, key=lambda one: (str(one.forecast.about.get("made")), one.experiment, one.seed))


def _forecast_run(workdir: Path, forecast: Forecast) -> ForecastRun:
    name, seed = workdir.parent.name, int(workdir.name.removeprefix("seed_"))
    if not (workdir / "summary.json").exists():
        return ForecastRun(workdir, name, seed, forecast, None, "")
    run, objection = load_finished_run(workdir), ""
    if run.record.get("forecast") != forecast.digest:
        objection = "the run did not begin with this forecast"
    elif documents_of(run) != forecast.about["documents"]:
        objection = "the run and the smaller sizes were validated on different documents"
    return ForecastRun(workdir, name, seed, forecast, run, objection)


def keep_outcomes(runs: Path, forecasts: Sequence[ForecastRun]) -> list[dict[str, Any]]:
    """Appends the results of forecasts that `forecasts.jsonl` does not have yet; returns what it held."""
    try:
        lines = read_json_lines(runs / FORECASTS, ("kind", "digest", "experiment"))
    except OSError as error:
        print_notice(f"{runs / FORECASTS}: {error.strerror or error}")
        return []
    known = {line["digest"] for line in lines if line["kind"] == "outcome"}
    for one in forecasts:
        if one.run is not None and one.forecast.digest not in known:
            bits = float(one.run.bits_per_byte)
            result = {"bits_per_byte": bits, "is_within": one.forecast.has(bits), "objection": one.objection}
            _keep(runs, {"kind": "outcome", "digest": one.forecast.digest, "experiment": one.experiment, **result})
    return lines


def outcomes_of_deleted(lines: Sequence[Mapping[str, Any]], forecasts: Sequence[ForecastRun]) -> list[bool | None]:
    """Returns for each forecast whose run is gone whether the result lay in its interval, None if unknown.

    Args:
        lines: of `forecasts.jsonl`.
        forecasts: those whose runs exist.
    """
    here = {one.forecast.digest for one in forecasts}
    made = dict.fromkeys(line["digest"] for line in lines if line["kind"] == "forecast" and line["digest"] not in here)
    results = {line["digest"]: line for line in lines if line["kind"] == "outcome" and not line.get("objection")}
    return [results[digest].get("is_within") if digest in results else None for digest in made]


def _keep(runs: Path, line: dict[str, Any]) -> None:
    try:
        append_json_line(runs / FORECASTS, line)
    except OSError as error:
        print_notice(f"{runs / FORECASTS}: {error.strerror or error}; the forecast is only kept in its run's folder")


def standing(forecast: Forecast, bits_per_byte: float) -> float:
    """Returns the position of a result in its interval: 0 in the middle, -1 and 1 at the ends."""
    end = forecast.high if bits_per_byte > forecast.median else forecast.low
    return math.copysign((bits_per_byte - forecast.median) / (end - forecast.median), bits_per_byte - forecast.median)
