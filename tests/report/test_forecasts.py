"""Forecasts belong to one ladder if they have a size in common."""

from pathlib import Path

import pytest

from jaxformer.ablation.forecast import ForecastRun
from jaxformer.report.forecasts import Forecasts, describe_forecast, ladders, sizes_of
from jaxformer.run.forecast import Forecast

pytestmark = pytest.mark.device_free


def forecast_run(name, *sizes):
    about = [
        {"experiment": size, "parameters": at, "tokens": at, "compute": at, "bits_per_byte": {"0": 2.0 - 0.1 * at}}
        for at, size in enumerate(sizes, 1)
    ]
    at = len(sizes) + 1
    values = {"sizes": about, "parameters": at, "tokens": at, "compute": at}
    return ForecastRun(Path(name), name, 0, Forecast(1.0, 0.9, 1.1, (), name, values), None, "")


def test_ladders_are_joined_by_a_size_that_they_share_and_by_nothing_else():
    alone, first = forecast_run("b4", "b1", "b2", "b3"), forecast_run("a5", "a2", "a3", "a4")
    second, third = forecast_run("c4", "c1", "c2", "c3"), forecast_run("c9", "c7", "a2", "c2")
    found = ladders(Forecasts((alone, first, second, third)))
    assert [[one.experiment for one in runs] for runs in found] == [["b4"], ["c4", "a5", "c9"]]
    assert [size.name for size in sizes_of(found[0])] == ["b1", "b2", "b3"]
    assert {size.name for size in sizes_of(found[1])} == {"a2", "a3", "a4", "c1", "c2", "c3", "c7"}


@pytest.mark.parametrize(
    ("corpus_tokens", "said"),
    [(2, "It reads its data 2.0 times and smaller sizes up to 1.5 times"), (4, ""), (None, "")],
)
def test_a_forecast_says_where_data_are_repeated_more_than_at_smaller_sizes(corpus_tokens, said):
    forecast = forecast_run("b4", "b1", "b2", "b3").forecast
    more = {"forms": {}, "seeds": 0.0, "other_documents": 0.0} | (
        {"corpus_tokens": corpus_tokens} if corpus_tokens else {}
    )
    text = describe_forecast(forecast._replace(about={**forecast.about, **more}))
    assert said in text and bool(said) == ("Repeated" in text)
