"""A forecast is written before a run begins, counts only if the run began with it, and is kept with its outcome."""

import copy
import json

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.forecast import (
    FORECASTS,
    forecast_runs,
    forecast_values,
    keep_outcomes,
    read_forecasts,
    standing,
)
from jaxformer.ablation.ladder import Ladder, check_rungs, make_rungs, write_rungs
from jaxformer.ablation.sizes import smaller_sizes
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.sizes import Rate
from jaxformer.report.forecasts import describe_forecast
from jaxformer.run.forecast import FORECAST, Series, beside_forecast, read_forecast

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

NOISE = fake_runs.Noise(seed=0.002, run=0.002)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns a folder with a ladder of four sizes, of which three are finished on two seeds each."""
    folder = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_runs.write_root(folder / "experiments", tokenizer__vocabulary_size=512, model__vocabulary_size=512)
        ladder = Ladder("root", "root", (1, 2, 3, 4), (2,) * 4, Rate(4e-3, 0.0))
        rungs = make_rungs(ladder)
        assert len(write_rungs(ladder, rungs, "a command")) == 4
        assert write_rungs(ladder, rungs, "a command") == []
        for number, rung in enumerate(rungs[:3]):
            write(folder, rung.name, effect=-0.1 * number, seeds=2)
        write(folder, "root", effect=0.0, seeds=1)
    return folder


def write(folder, name, *, effect, seeds=1):
    for seed in range(seeds):
        fake_runs.write_run(folder / "runs", resolve(name), seed, effect=effect, noise=NOISE, tasks=())


@pytest.fixture
def ladder(finished, tmp_path, monkeypatch):
    """Returns the runs of a copy."""
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_only_smaller_sizes_of_the_same_experiment_are_read(ladder, tmp_path):
    fake_runs.write_variant(tmp_path / "experiments", "normed", {"model.qk_norm": True}, parent="root_d1")
    write(tmp_path, "normed", effect=0.0)
    sizes, notes = smaller_sizes(resolve("root_d4"), ladder)
    assert [one.name for one in sizes] == ["root_d1", "root_d2", "root_d3"] and not notes
    assert [len(one.runs) for one in sizes] == [2, 2, 2]
    assert smaller_sizes(resolve("root_d1"), ladder) == ([], [])


def test_a_forecast_is_made_once_and_scored_when_its_run_is_finished(ladder, tmp_path):
    target = resolve("root_d4")
    forecast, other = forecast_runs(target, range(2), ladder)
    assert forecast_runs(target, range(2), ladder) == []
    assert forecast.low < forecast.median < forecast.high
    assert [one.step for one in forecast.bands][-1] == target.experiment.training.steps
    assert read_forecast(ladder / "root_d4" / "seed_1") == other
    assert [one.run for one in read_forecasts(ladder)] == [None, None]
    base = read_forecasts(ladder)[0].forecast.about["sizes"][0]["bits_per_byte"]["0"]
    write(tmp_path, "root_d4", effect=forecast.median - base)
    one, other = read_forecasts(ladder)
    assert one.run and one.is_scored and one.forecast.has(one.run.bits_per_byte) and not other.is_scored
    assert abs(standing(one.forecast, one.run.bits_per_byte)) < 1
    for _ in range(2):  # Once is enough.
        keep_outcomes(ladder, [one, other])
    lines = [json.loads(line) for line in (ladder / FORECASTS).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["forecast", "forecast", "outcome"]
    assert lines[-1]["is_within"] and lines[-1]["digest"] == one.forecast.digest


def test_a_forecast_that_was_changed_or_came_later_does_not_count(ladder, tmp_path):
    path = ladder / "root_d4" / "seed_0" / FORECAST
    forecast_runs(resolve("root_d4"), [0], ladder)
    write(tmp_path, "root_d4", effect=-0.3)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"low": 0.0, "high": 9.0}))
    (found,) = read_forecasts(ladder)
    assert not found.is_scored and "did not begin with this forecast" in found.objection


def test_a_run_that_has_begun_is_not_forecast_and_too_few_sizes_forecast_nothing(ladder, tmp_path):
    write(tmp_path, "root_d4", effect=-0.3)
    assert forecast_runs(resolve("root_d4"), [0], ladder) == []
    with pytest.raises(UserError, match="2 smaller sizes with finished runs, but a forecast needs 3"):
        forecast_runs(resolve("root_d3"), [2], ladder)


def test_a_validation_that_was_not_finite_takes_its_band_and_no_more(ladder):
    sizes, _ = smaller_sizes(resolve("root_d4"), ladder)
    bands = forecast_values(resolve("root_d4").experiment, sizes)["bands"]
    sizes[0].runs[0].curve[-1, 1] = np.nan
    assert forecast_values(resolve("root_d4").experiment, sizes)["bands"] == bands[:-1] != bands


def test_a_damaged_forecast_is_named(ladder):
    forecast_runs(resolve("root_d4"), [0], ladder)
    path = ladder / "root_d4" / "seed_0" / FORECAST
    for damaged in ('{"median": 1}', '{"median": NaN, "low": 1, "high": 3, "bands": []}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"forecast.json: damaged .*remove it: the run goes on without"):
            read_forecast(path.parent)


def test_a_size_that_ended_above_a_smaller_one_is_named(ladder):
    (forecast,) = forecast_runs(resolve("root_d4"), [0], ladder)
    assert "ended above" not in describe_forecast(forecast)
    about = copy.deepcopy(dict(forecast.about))
    about["sizes"][1]["bits_per_byte"]["0"] += 5
    text = describe_forecast(forecast._replace(about=about))
    assert "root_d2 ended above root_d1: tune their learning rates first" in text


def test_a_validation_outside_of_its_band_is_told(ladder):
    (forecast,) = forecast_runs(resolve("root_d4"), [0], ladder)
    band = forecast.bands[0]
    for bits, word in ((band.high + 0.01, "above"), ((band.low + band.high) / 2, ""), (band.low - 0.01, "below")):
        told = beside_forecast(forecast, Series(np.array([band.step]), np.array([bits])))
        assert (word in told) and bool(told) == bool(word)
    assert beside_forecast(forecast, Series(np.array([band.step + 1]), np.array([9.0]))) == ""
    assert beside_forecast(forecast, Series(np.zeros(0, int), np.zeros(0))) == ""


def test_an_experiment_of_a_size_s_name_that_is_another_is_refused(ladder):
    rungs = make_rungs(one := Ladder("root", "root", (2,), (1,), Rate(1e-3, 0.0)))
    with pytest.raises(UserError, match="root_d2 differs from root at that size"):
        check_rungs(one, rungs)


def test_of_two_experiments_of_one_size_the_one_with_more_runs_counts(ladder, tmp_path):
    for path in sorted((tmp_path / "experiments").glob("root_d3.py")):
        (tmp_path / "experiments" / "faster.py").write_text(path.read_text().replace("0.004", "0.005"))
    write(tmp_path, "faster", effect=-0.15)
    sizes, notes = smaller_sizes(resolve("root_d4"), ladder)
    assert [one.name for one in sizes] == ["root_d1", "root_d2", "root_d3"]
    assert notes == ["faster: left out, since another size is as large, with more runs"]


def test_runs_of_other_code_are_left_out_by_name_unless_allowed(ladder):
    """The odd one is the first of the largest size, which the others are not held against."""
    path = ladder / "root_d3" / "seed_0" / "config.json"
    record = json.loads(path.read_text())
    record["starts"][-1]["code"] = "another"
    path.write_text(json.dumps(record))
    sizes, notes = smaller_sizes(resolve("root_d4"), ladder)
    assert [len(one.runs) for one in sizes] == [2, 2, 1] and sizes[-1].runs[0].seed == 1
    assert [note.partition("; ")[2] for note in notes] == ["--allow=code includes it"]
    assert "root_d3/seed_0: left out, unlike most runs of the sizes in code" in notes[0]
    sizes, notes = smaller_sizes(resolve("root_d4"), ladder, ["code"])
    assert [len(one.runs) for one in sizes] == [2, 2, 2] and not notes


def test_runs_that_were_validated_on_other_documents_are_left_out_whatever_is_allowed(ladder):
    path = next((ladder / "root_d1" / "seed_1" / "evaluations").glob("*/validation.documents.jsonl"))
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"text_bytes": 7}), *lines]) + "\n")
    sizes, notes = smaller_sizes(resolve("root_d4"), ladder, ["code", "versions", "device", "environment"])
    assert [len(one.runs) for one in sizes] == [1, 2, 2]
    assert [note.endswith("left out, unlike most runs of the sizes in evaluation") for note in notes] == [True]
