"""The plan of a run: what is printed without anything being read or run, and when steps are timed."""

import math
import re

import pytest

import jaxformer.plan.estimate
import jaxformer.plan.run_time
import jaxformer.step
from jaxformer.config import UserError, replace
from jaxformer.data.phases import Phase
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.resolution import load_experiment
from jaxformer.plan.device_fit import choose_fit, device_at_hand
from jaxformer.plan.estimate import print_plan
from jaxformer.plan.run_time import (
    IMPORTING,
    Speed,
    estimate_run_seconds,
    expected_durations,
    run_seconds,
    speed_here,
)
from jaxformer.run.durations import Durations

pytestmark = pytest.mark.device_free


@pytest.fixture
def no_step(monkeypatch):
    def train_step(state, batch):
        raise AssertionError("a step was run")

    monkeypatch.setattr(jaxformer.step, "train_step", train_step)


@pytest.mark.parametrize("size", ["27m", "100m", "500m"])
def test_real_size_is_planned_for_a_gpu_that_is_not_here(size, no_step, capsys):
    print_plan(load_experiment(f"baseline_{size}"), "H100")
    printed = capsys.readouterr().out
    assert re.match(r"verdict     fits: [\d.]+ GB of H100's 72.0 GB; takes [\d:]+( days)?\n", printed)
    assert "65,536 a step, 2,500,001,792 in 38,147 steps, 1 x the corpus" in printed
    assert "JAX may take 72.0 GB (H100)" in printed and "40% of the peak, 989 TFLOP/s" in printed
    assert "remat elementwise, 1 micro-batch" in printed
    assert "5.00 GB, 2,500,000,000 tokens at most" in printed
    assert re.search(r"and about [\d.]+ GB of the host's memory, with a copy of the state while it is saved", printed)


@pytest.mark.parametrize("overrides", [{"mesh.data": "3"}, {"mesh.fsdp": "2", "training.micro_batches": "32"}])
def test_rows_that_the_devices_to_come_do_not_divide_are_refused(overrides):
    with pytest.raises(UserError, match=r"rows_per_step \(32\) must be a multiple"):
        print_plan(load_experiment("baseline_100m", overrides), "H100")


PHASES = (Phase(start=0.0, rows_per_step=16), Phase(start=0.5), Phase(start=0.9, row_length=4096))


def test_run_in_phases_is_planned_by_the_tokens_of_each(no_step, capsys):
    plain = load_experiment("baseline_27m", {"training.steps": "2000"})
    print_plan(replace(plain, {"training.phases": PHASES}), "H100")
    printed = capsys.readouterr().out
    for line in (
        "tokens      111,411,200 in 2,000 steps",
        "            from step 0: 16 rows x 2048 = 32,768 tokens\n",
        "            from step 1,000: 32 rows x 2048 = 65,536 tokens\n",
        "            from step 1,800: 32 rows x 4096 = 131,072 tokens\n",
    ):
        assert line in printed
    with pytest.raises(UserError, match=r"rows_per_step \(16\) must be a multiple"):
        print_plan(replace(plain, {"training.phases": PHASES, "mesh.data": 32}), "H100")


@pytest.mark.parametrize(
    ("where", "overrides", "verdict"),
    [
        ("T4", {"model.remat": "none", "training.micro_batches": "1"}, "does not fit: [0-9.]+ GB of T4's 14.4 GB"),
        ("T4", {}, "fits: [0-9.]+ GB of T4's 14.4 GB; takes [0-9]+ days"),  # It computes in float32.
        (
            "H100",
            {"training.steps": "100000000"},
            "fits: [0-9.]+ GB of H100's 72.0 GB; but too slow: takes [0-9]+ days",
        ),
        ("H100", {"training.steps": "1000000000"}, "fits: .*; but too slow: takes [0-9]+ years"),
    ],
)
def test_the_first_line_is_the_verdict(where, overrides, verdict, no_step, capsys):
    print_plan(load_experiment("baseline_100m", overrides), where)
    assert re.fullmatch(f"verdict     {verdict}", capsys.readouterr().out.splitlines()[0])


def test_memory_of_a_cpu_is_that_of_the_machine(no_step, monkeypatch, capsys):
    for module in ("devices.device", "plan.estimate"):
        monkeypatch.setattr(f"jaxformer.{module}.usable_memory", lambda: 4_000_000_000)
    print_plan(load_experiment("baseline_500m"))
    line = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"verdict     does not fit: [0-9.]+ GB of this machine's 4.00 GB", line)


def test_run_of_several_processes_is_planned_in_one(no_step, capsys):
    overrides = {"mesh.processes": "4", "mesh.data": "2", "mesh.fsdp": "2"}
    print_plan(load_experiment("baseline", overrides))
    printed = capsys.readouterr().out
    assert "(4 x cpu)" in printed and "1 micro-batch of 1 row\n" in printed and "of what matmuls reach here" in printed


def test_step_that_takes_long_here_is_estimated_and_not_run(no_step, capsys):
    experiment = load_experiment("baseline_500m")
    print_plan(experiment)
    printed = capsys.readouterr().out
    assert "40% of what matmuls reach here" in printed
    # No computer of a test does 1e15 floating-point operations per second, nor takes years for one.
    assert estimate_run_seconds(experiment) > 8.7e18 / 1e15


@pytest.mark.parametrize(
    ("overrides", "seconds", "timed"),
    [
        ({}, 30, (1, 1, 4)),
        ({"training.micro_batches": "4"}, 15, (2, 2, 2)),  # Micro-batches of a row, as those that fit.
        ({"training.rows_per_step": "3"}, 30, None),
        ({}, 99, None),
        ({}, 5, (4, 1, 1)),
    ],
)
def test_step_that_takes_long_is_timed_with_fewer_rows_in_no_larger_micro_batches(
    overrides, seconds, timed, monkeypatch
):
    experiment, found = load_experiment("baseline", {"training.micro_batches": "1"} | overrides), []
    target = device_at_hand(experiment)
    fit = choose_fit(experiment, target)
    whole = training_flops(experiment) / experiment.training.steps * (1 + fit.cost)
    monkeypatch.setattr(jaxformer.plan.run_time, "_matmul_rate", lambda _: whole / 0.4 / seconds)

    def time_steps(one, share):
        found.append((one.training.rows_per_step, one.training.micro_batches, share))
        return Speed(1.0, 1.0, "")

    monkeypatch.setattr(jaxformer.plan.run_time, "_time_steps", time_steps)
    speed_here(experiment, target, fit, Durations())
    assert found == ([timed] if timed else [])


def test_a_run_that_was_made_here_fits(monkeypatch, capsys):
    known = Durations(step=1.0, peak_memory=2.0e9)
    monkeypatch.setattr(jaxformer.plan.estimate, "recall_durations", lambda _: known)
    monkeypatch.setattr("jaxformer.devices.device.usable_memory", lambda: 1_000_000)
    print_plan(load_experiment("baseline"))
    assert capsys.readouterr().out.startswith("verdict     fits: 2.00 GB of this machine's ")


def test_parts_of_the_time_are_told_and_sum_up(no_step, tmp_path):
    experiment = load_experiment("baseline", {"training.steps": "900", "evaluation.every_steps": "400"})
    known = Durations(data=1.0, start=2.0, step=0.5, first_evaluation=9.0, evaluation=4.0, last_evaluation=6.0)
    speed = Speed(known.step, 0.0, "")
    assert run_seconds(experiment, known, speed) == (1.0, IMPORTING + 2.0, 450.0, 9.0 + 4.0 + 6.0)
    assert run_seconds(experiment, known, speed).total == IMPORTING + 472.0
    # A validation's 37,500 tokens are 19 batches of 2,048 tokens, at a third of the time of those of 2 steps.
    unknown = run_seconds(experiment, Durations(compiled_evaluation=5.0), speed)
    assert unknown.evaluations == pytest.approx(5.0 + 3 * 19 * 2 * 0.5 / 3)
    assert unknown.data > 1.0
    elsewhere = replace(experiment, {"corpus.kind": "jsonl", "corpus.path": "hf://datasets/a/b/*.jsonl"})
    assert math.isnan(run_seconds(elsewhere, Durations(), speed).data)
    assert math.isfinite(run_seconds(elsewhere, Durations(), speed).total)
    packed = replace(experiment, {"corpus.kind": "jsonl", "corpus.path": str(tmp_path / "a.jsonl.gz")})
    (tmp_path / "a.jsonl.gz").write_bytes(b"packed")
    assert math.isnan(run_seconds(packed, Durations(), speed).data), "how much text it is, nobody knows"
    absent = replace(experiment, {"corpus.kind": "jsonl", "corpus.path": str(tmp_path / "absent.jsonl")})
    assert math.isnan(run_seconds(absent, Durations(), speed).data)


def test_passes_are_those_over_the_text_that_is_there_and_not_over_the_budget(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jaxformer.plan.run_time, "_matmul_rate", lambda _: 1e3)
    path = tmp_path / "a.txt"
    path.write_text("a" * 40_960)
    print_plan(load_experiment("baseline", {"corpus.path": str(path), "corpus.tokens": "1_638_400"}))
    assert "in 1,600 steps, about 1.6e+02 x the corpus (0.0 MB of text)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("corpus", "line"),
    [
        ({}, r"about [\d.]+ x the corpus \([\d.]+ MB of text\)"),
        ({"corpus.kind": "tfds", "corpus.path": "c4", "corpus.tokens": "3276800"}, "0.5 x the corpus"),
        ({"corpus.kind": "jsonl", "corpus.path": "hf://datasets/a/b/*.jsonl"}, "1,638,400 in 1,600 steps"),
    ],
)
def test_passes_over_the_data_are_told_as_far_as_they_are_known(corpus, line, monkeypatch, no_step, capsys):
    monkeypatch.setattr(jaxformer.plan.run_time, "_matmul_rate", lambda _: 1e3)
    print_plan(load_experiment("baseline", corpus))
    assert re.search(f"^tokens .*{line}$", capsys.readouterr().out, re.M)


def test_on_a_terminal_a_step_is_expected_to_take_what_matmuls_tell_and_in_a_log_nothing_is_computed(monkeypatch):
    experiment = load_experiment("baseline")
    target, whole = device_at_hand(experiment), training_flops(experiment) / experiment.training.steps
    monkeypatch.setattr(jaxformer.plan.run_time, "_matmul_rate", lambda _: whole / 0.4 / 3)
    for on_terminal, step in ((True, 3.0), (False, math.nan)):
        monkeypatch.setattr(jaxformer.plan.run_time, "is_terminal", lambda _, answer=on_terminal: answer)
        assert expected_durations(experiment, target).step == pytest.approx(step, nan_ok=True)
    known = Durations(step=7.0)
    monkeypatch.setattr(jaxformer.plan.run_time, "recall_durations", lambda _: known)
    monkeypatch.setattr(jaxformer.plan.run_time, "is_terminal", lambda _: True)
    assert expected_durations(experiment, target) == known
