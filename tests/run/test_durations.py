"""What runs took is kept in the cache, and the plans of further runs go by it."""

import math
import re

import pytest
import tiny_run

from jaxformer.experiment.resolution import load_experiment
from jaxformer.host.cache import cache_folder
from jaxformer.plan.device_fit import computed_with
from jaxformer.plan.estimate import print_plan
from jaxformer.run.durations import Durations, keep_durations, recall_durations

pytestmark = pytest.mark.device_free

FIRST = Durations(
    data=9.0,
    start=8.0,
    step=0.5,
    first_evaluation=7.0,
    evaluation=2.0,
    last_evaluation=4.0,
    compiled_evaluation=5.0,
)
SECOND = Durations(data=1.0, start=3.0, step=0.7, first_evaluation=6.0, evaluation=3.0, compiled_evaluation=3.0)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))


def baseline(**overrides):
    return load_experiment("baseline", {name.replace("__", "."): value for name, value in overrides.items()})


def known(durations):
    return {name: value for name, value in vars(durations).items() if math.isfinite(value)}


def test_nothing_is_known_before_the_first_run():
    assert known(recall_durations(baseline())) == {}


def test_runs_of_the_same_experiment_are_recalled_whole_and_what_is_made_once_as_it_was_fastest():
    keep_durations(baseline(), FIRST)
    assert recall_durations(baseline()).data == 0.0, "what the first run prepared is there"
    keep_durations(baseline(optimizer__learning_rate="1e-3", training__steps="200"), SECOND)
    assert known(recall_durations(baseline())) == {
        "data": 1.0,
        "start": 3.0,
        "step": pytest.approx(0.6),
        "first_evaluation": 6.0,
        "evaluation": 2.5,
        "last_evaluation": 4.0,
        "compiled_evaluation": 4.0,
    }


def test_runs_of_another_model_tell_what_compiling_an_evaluation_takes_and_of_the_same_corpus_that_it_is_prepared():
    keep_durations(baseline(), FIRST)
    assert known(recall_durations(baseline(model__depth="2"))) == {"data": 0.0, "compiled_evaluation": 5.0}
    assert "data" not in known(recall_durations(baseline(tokenizer__vocabulary_size="512")))
    assert known(recall_durations(baseline(evaluation__validation_bytes="1000")))["step"] == 0.5


def test_runs_of_other_versions_or_with_other_processors_tell_nothing(monkeypatch):
    keep_durations(baseline(), FIRST)
    monkeypatch.setattr("jaxformer.run.durations.usable_processors", lambda: 999)
    assert known(recall_durations(baseline())) == {}


def test_damaged_lines_and_a_cache_that_cannot_be_written_do_no_harm(monkeypatch, tmp_path):
    keep_durations(baseline(), FIRST)
    with (cache_folder() / "durations.jsonl").open("a") as file:
        file.write('{"machine": [\n7\n{"durations": 3}\n')
    keep_durations(baseline(), FIRST)
    assert recall_durations(baseline()).step == 0.5
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "file"))
    keep_durations(baseline(), FIRST)
    assert known(recall_durations(baseline())) == {}


def test_plan_of_a_run_that_was_made_here_goes_by_what_it_took(tmp_path, experiment_files, capsys, monkeypatch):
    path = experiment_files["best_fit"]
    assert tiny_run.main(tiny_run.command(path, tmp_path / "run")) == 0
    took = recall_durations(computed_with(load_experiment(str(path)), "none", 1))
    assert took.step > 0 and took.start > 0 and took.first_evaluation > 0 and took.corpus_tokens > 0
    capsys.readouterr()
    monkeypatch.setattr("jaxformer.plan.run_time.make_state", None)
    print_plan(load_experiment(str(path)))
    printed = capsys.readouterr().out
    assert " tokens/s, as in such runs here\n" in printed
    tokens = tiny_run.ROWS * tiny_run.T / took.step
    assert float(re.search(r"([\d,.]+) tokens/s", printed)[1].replace(",", "")) == pytest.approx(tokens, rel=0.01)
