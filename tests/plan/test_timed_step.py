"""Which way to compute a step is the fastest is timed where the run is long enough, kept, and taken again."""

import dataclasses
import functools
import json

import jax
import pytest
from tiny_run import command, read_checkpoint, read_metrics, run_until

import jaxformer.train
from jaxformer.attention.dispatch import Implementation
from jaxformer.config import UserError
from jaxformer.experiment.resolution import load_experiment
from jaxformer.host.cache import cache_folder
from jaxformer.plan import timed_step
from jaxformer.plan.device_fit import choose_fit, compiled_here, device_at_hand, fit_to_device
from jaxformer.plan.run_time import fit_here, random_batch
from jaxformer.plan.timed_step import affordable, fastest_way, kept_way, time_steps, ways_to_time
from jaxformer.record import to_dict
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]

XLA, LONG = Implementation("xla"), 1e9
TINY = {
    "packing.row_length": "32",
    "training.rows_per_step": "4",
    "training.micro_batches": "0",
    "training.steps": "1000000",
    "model.width": "16",
    "model.depth": "2",
    "model.heads": "2",
    "model.vocabulary_size": "416",
    "tokenizer.vocabulary_size": "400",
}
UNROLLED, LOOP = "remat none, 1 micro-batch, blocks unrolled", "remat elementwise, 1 micro-batch"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def uncompiled(monkeypatch):
    """Lets every way fit, and compiles none; returns those that would have been."""
    asked = []

    def compiled(fit):
        asked.append(str(fit))
        return dataclasses.replace(fit, compiled=1000, program=object())

    monkeypatch.setattr("jaxformer.plan.device_fit.compiled_here", lambda *_: compiled)
    return asked


def tiny(**overrides):
    return load_experiment("baseline", TINY | {name.replace("__", "."): value for name, value in overrides.items()})


def gpu_here(experiment, memory=10**9):
    """Returns this machine as a GPU that has so much memory."""
    return device_at_hand(experiment)._replace(platform="gpu", memory=memory)


def timer_of(fastest):
    """Returns a timer that runs nothing, and says that one is the fastest."""
    return lambda functions: ({name: 512.0 if name == fastest else 600.0 for name in functions}, {})


def never(functions):
    pytest.fail("steps were timed")


def fitted(experiment, timer, record=None, seconds=LONG, memory=10**9):
    """Returns how the step of a run is computed here, and what is printed of it."""
    options = {"token_count": 400, "attention": XLA}
    batch = random_batch(4, 32, 400)
    fastest = functools.partial(fastest_way, batch=batch, seconds=lambda: seconds, timer=timer, **options)
    target = gpu_here(experiment, memory)
    computed, text = fit_to_device(experiment, target, record=record, fastest=fastest, **options)
    return computed.model.remat, computed.training.micro_batches, computed.model.scan_unroll, text


def test_the_fastest_is_taken_told_kept_and_taken_again(uncompiled, capsys):
    *way, text = fitted(tiny(), timer_of(LOOP))
    assert way == ["elementwise", 1, 1]
    assert len(uncompiled) == 4 and uncompiled[0] == UNROLLED and LOOP in uncompiled, "the cheapest first"
    assert f": {LOOP}, the fastest of 4 that were timed: 512 ms, on 20" in text
    assert f"a step with {LOOP} takes 512 ms" in capsys.readouterr().out
    assert fitted(tiny(), never) == (*way, text)
    assert len(uncompiled) == 4, "it is known to fit"
    (line,) = (cache_folder() / "fastest.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["what"] == "step"
    assert line["choice"] == {"remat": "elementwise", "micro_batches": 1, "scan_unroll": 1, "bytes": 1000}
    assert line["key"]["device"] == "cpu" and line["key"]["versions"].keys() == {"jax", "jaxlib"}


def test_a_plan_goes_by_what_was_timed(uncompiled):
    experiment = tiny()
    fitted(experiment, timer_of(LOOP))
    fit = fit_here(experiment, gpu_here(experiment))
    assert (fit.scan_unroll, fit.remat) == (1, "elementwise") and fit.timed.startswith(
        "the fastest of 4 that were timed"
    )
    assert kept_way(experiment, gpu_here(experiment)._replace(attention="pallas")) is None


@pytest.mark.parametrize(
    "overrides", [{"model__width": "32"}, {"optimizer__name": "muon"}, {"training__rows_per_step": "8"}]
)
def test_another_step_is_another_matter_and_another_learning_rate_is_not(uncompiled, overrides):
    fitted(tiny(), timer_of(LOOP))
    changed = tiny(**overrides)
    assert kept_way(changed, gpu_here(changed)) is None
    same = tiny(optimizer__learning_rate="1e-3", training__steps="200")
    assert kept_way(same, gpu_here(same)) is not None
    assert kept_way(same, gpu_here(same, memory=2 * 10**9)) is None, "where more may fit"


def test_other_versions_are_timed_anew(uncompiled, monkeypatch):
    fitted(tiny(), timer_of(LOOP))
    monkeypatch.setattr(timed_step, "timed_with", lambda: {"device": "cpu", "versions": {"jax": "other"}})
    assert kept_way(tiny(), gpu_here(tiny())) is None


def test_a_short_run_times_nothing_and_goes_by_what_a_long_one_has_kept(uncompiled):
    *_, text = fitted(tiny(), never, seconds=100.0)
    assert text.endswith("the cheapest that fits")
    fitted(tiny(), timer_of(LOOP))
    assert "the fastest of 4" in fitted(tiny(), never, seconds=100.0)[-1]


def test_compiling_and_timing_take_no_more_than_a_hundredth_of_the_run():
    experiment = tiny(training__steps="1000")  # A step takes a thousandth, and seven of them 0.7 %.
    for seconds, most in ((100.0, 0), (7000.0, 0), (29e3, 1), (10**9, 1)):
        assert affordable(experiment, seconds) == most
    long = tiny(training__steps="1000000")
    counts = [affordable(long, seconds) for seconds in (2100.0, 2300.0, 5e3, 1e5)]
    assert counts == [0, 1, 2, 8]
    assert affordable(tiny(training__steps="1000000", model__depth="50"), 5e3) == 0


def test_only_what_fits_is_timed_and_of_several_parts_the_fewest():
    experiment = tiny(model__remat="none", training__rows_per_step="8")
    target = gpu_here(experiment)
    asked = []

    def compiled(fit):
        asked.append((fit.micro_batches, fit.scan_unroll))
        is_large = fit.micro_batches == 1 or (fit.micro_batches == 2 and fit.scan_unroll == 2)
        return dataclasses.replace(fit, compiled=target.memory if is_large else 1000, program=object())

    found = ways_to_time(experiment, target, compiled, 8)
    assert [(fit.micro_batches, fit.scan_unroll) for fit in found] == [(2, 1), (4, 2)]
    assert asked == [(1, 2), (1, 1), (2, 2), (2, 1), (4, 2)]
    asked.clear()
    assert ways_to_time(experiment, target, compiled, 2) == [] and len(asked) == 2


def test_a_step_that_is_set_by_hand_is_not_compiled_to_be_timed(uncompiled):
    set_by_hand = tiny(model__remat="none", model__scan_unroll="1", training__micro_batches="1")
    assert fitted(set_by_hand, never)[-1].endswith(", as configured") and uncompiled == []
    # Where only the loop is open, that is timed.
    assert fitted(tiny(model__remat="none", training__micro_batches="1"), timer_of(UNROLLED))[2] == 2


def test_a_way_that_fails_is_named(uncompiled, capsys):
    def timer(functions):
        first, *others = functions
        return dict.fromkeys(others, 7.0), {first: "JaxRuntimeError: INTERNAL: no"}

    *_, text = fitted(tiny(), timer)
    assert f"{UNROLLED} failed (JaxRuntimeError: INTERNAL: no)" in text
    assert f"the step with {UNROLLED} fails: JaxRuntimeError: INTERNAL: no" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^step: nothing that was timed runs .*; set model.remat and"):
        fitted(tiny(optimizer__name="muon"), lambda functions: ({}, dict.fromkeys(functions, "no")))


def test_a_step_that_fails_takes_its_state_along_and_the_next_one_gets_another():
    experiment = tiny()
    target = gpu_here(experiment)
    candidates = ways_to_time(experiment, target, compiled_here(experiment, target, 400, XLA), 8)[:2]

    class Failing:
        in_tree = candidates[0].program.in_tree

        def __call__(self, state, batch):
            jax.tree.map(lambda x: x.delete(), state)
            raise RuntimeError("out of memory")

    failing = dataclasses.replace(candidates[0], program=Failing())
    found = timed_step._time([failing, candidates[1]], random_batch(4, 32, 400), 400, XLA, time_steps)
    assert [*found.times] == [str(candidates[1])]
    assert found.failures == {str(failing): "RuntimeError: out of memory"}


def test_a_resumed_run_keeps_its_way_though_another_was_timed_since(uncompiled):
    fitted(tiny(), timer_of(LOOP))
    record = {
        "device": jax.devices()[0].device_kind,
        "config": {"model": {"remat": "elementwise", "scan_unroll": 2}, "training": {"micro_batches": 2}},
    }
    *way, text = fitted(tiny(), never, record)
    assert way == ["elementwise", 2, 2] and text.endswith("as the run began")
    *way, text = fitted(tiny(), never, record | {"device": "another"})
    assert way == ["elementwise", 1, 1] and "the fastest of 4" in text


def test_several_processes_compute_together_as_the_first_one_keeps_or_estimates(monkeypatch):
    experiment = tiny()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jaxformer.devices.fastest.from_first", lambda value: value)
    target = gpu_here(experiment)
    options = {"batch": None, "token_count": 400, "attention": XLA, "seconds": lambda: LONG, "timer": never}

    def compiled(fit):
        return dataclasses.replace(fit, compiled=1000, program=object())

    assert fastest_way(experiment, target, compiled, **options) is None


def test_run_whose_step_is_timed_learns_the_same_and_is_resumed_as_it_began(
    experiment_files, uninterrupted, monkeypatch, tmp_path, capsys
):
    expected = uninterrupted("best_fit")
    monkeypatch.setattr(jaxformer.train, "device_at_hand", gpu_here)
    monkeypatch.setattr(jaxformer.train, "steps_seconds", lambda *_: LONG)
    monkeypatch.setattr(timed_step, "affordable", lambda *_: 2)
    seen = []

    def timer(functions):
        seen.append([*functions])
        time_steps(functions)
        return timer_of(UNROLLED)(functions)

    monkeypatch.setattr(jaxformer.train, "fastest_way", functools.partial(fastest_way, timer=timer))
    arguments = command(experiment_files["best_fit"], tmp_path / "run")
    run_until("step", 6, arguments)
    assert f": {UNROLLED}, the fastest of" in " ".join(capsys.readouterr().out.split())
    (cache_folder() / "fastest.jsonl").unlink()
    assert main(arguments) == 0
    assert f": {UNROLLED}, as the run began" in " ".join(capsys.readouterr().out.split())
    assert len(seen) == 1
    assert read_metrics(tmp_path / "run") == read_metrics(expected)
    for ours, theirs in zip(*(read_checkpoint(each)[0].values() for each in (tmp_path / "run", expected)), strict=True):
        assert (ours == theirs).all()
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["model"]["scan_unroll"] == 2


def test_estimate_is_as_before_where_nothing_is_timed():
    experiment = tiny()
    target = gpu_here(experiment)
    assert choose_fit(experiment, target).timed == "" and to_dict(experiment)["model"]["scan_unroll"] == 0
