"""The times of two arms' steps in turns: no fault of the machine makes equals unlike, and what was measured is kept."""

import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation import clock_measurement, study_clocks
from jaxformer.ablation.clock import Clock, median_interval, read_clock
from jaxformer.ablation.clock_measurement import TimedSteps, clock_seconds, measure_clock, time_in_turns
from jaxformer.ablation.cost import Cost
from jaxformer.ablation.finished_runs import read_runs
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Measured, Rule, Word, decide
from jaxformer.config import UserError
from jaxformer.experiment.resolution import load_experiment
from jaxformer.host.own_code import read_source
from jaxformer.statistics.paired_difference import Difference

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

OWN = """
from dataclasses import dataclass
from jaxformer.experiment import Activation

@dataclass(frozen=True)
class Squared(Activation):
    times: float = 1.0

    def __call__(self, hidden_NF):
        return self.times * hidden_NF**2
"""


class Machine:
    """A machine of which time is counted: how much slower than idle it is depends on when, and on luck."""

    def __init__(self, slowness, seed=0):
        self.now, self.slowness, self.random = 0.0, slowness, np.random.default_rng(seed)

    def arm(self, step_seconds):
        def take(steps):
            self.now += steps * step_seconds * self.slowness(self.now, self.random)

        return TimedSteps(take, 1)

    def time(self, *step_seconds):
        return Clock(tuple(time_in_turns([self.arm(each) for each in step_seconds], lambda: self.now)))


def busy(now, random):
    """Seconds of load come and go, and every turn is disturbed."""
    return (1.8 if int(now * 1.7) % 3 == 0 else 1.0) * random.lognormal(0, 0.08)


def bursts(now, random):
    """One turn in ten takes several times as long."""
    return random.choice([1.0, 4.0], p=[0.9, 0.1]) * random.lognormal(0, 0.02)


def periodic(now, random):
    """Processor time runs out at the end of each tenth of a second, which is two turns."""
    return (1.5 if now % 0.1 > 0.06 else 1.0) * random.lognormal(0, 0.01)


def warming(now, random):
    """It slows down by a third while it is measured."""
    return 1 + now / 60


@pytest.mark.parametrize("slowness", [busy, bursts, periodic, warming])
def test_equal_arms_are_equal_and_a_tenth_more_is_found_whatever_the_machine_does(slowness):
    for seed in range(20):
        clock = Machine(slowness, seed).time(0.004, 0.004)
        low, high = clock.interval
        assert abs(clock.ratio - 1) < 0.03 and low - 0.005 <= 1 <= high + 0.005, (seed, clock.ratio, clock.interval)
        equal = Measured(Difference(0.0, 1e-8, math.inf), 3, 0.01, Cost(clock.ratio, (low, high), 1, 1, 1), 1.0)
        assert decide(equal, Rule()).word is Word.EQUIVALENT
        slower = Machine(slowness, seed).time(0.004, 0.0044).interval
        assert 1.0 < slower[0] < 1.105 and slower[1] > 1.095, (seed, slower)


def test_rounds_end_when_the_ratio_is_known_or_time_is_up():
    quiet = Machine(lambda now, random: random.lognormal(0, 0.005))
    assert len(quiet.time(0.004, 0.004).log_ratios) == 12 and quiet.now < 4
    loaded = Machine(lambda now, random: random.lognormal(0, 0.25))
    low, high = loaded.time(0.004, 0.004).interval
    assert 1.02 < high / low < 1.063 and 40 <= loaded.now < 160, "known within 3 %"
    noisy = Machine(lambda now, random: random.lognormal(0, 1.0))
    low, high = noisy.time(0.004, 0.004).interval
    assert high / low > 1.1 and 160 <= noisy.now < 170
    slow = Machine(lambda now, random: 1.0)
    assert len(slow.time(2.0, 2.0).log_ratios) == 12
    assert slow.now < 1.5 * clock_seconds([load_experiment("baseline")], 2.0)


def test_the_interval_of_a_median_misses_it_no_more_often_than_it_promises_whatever_the_values_are():
    assert median_interval(range(12), 0.01) == (1, 10)  # Of 2^12 outcomes 1 + 12 have fewer than two on a side.
    assert median_interval(range(7), 0.01) == (-math.inf, math.inf)
    random, missed = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = median_interval(random.standard_cauchy(24).tolist(), 0.1)
        missed += not low <= 0 <= high
    assert 0.02 < missed / 2000 < 0.1


NAMES = ("root", "normed", "deep", "worse")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments")
    fake_runs.write_variant(tmp_path / "experiments", "normed", {"model.norm": "layernorm"})
    fake_runs.write_variant(tmp_path / "experiments", "deep", {"model.depth": 6})
    fake_runs.write_variant(tmp_path / "experiments", "worse", {"model.logit_soft_cap": 30.0})
    effects = {"normed": 0.0, "deep": -0.03, "worse": 0.03}
    noise = fake_runs.Noise(run=1e-4, effect=0.0, residue=1e-4)
    fake_runs.write_study(tmp_path / "runs", NAMES, effects=effects, seeds=3, tasks=(), noise=noise)
    return tmp_path / "runs"


def test_what_was_measured_is_used_until_one_of_the_arms_is_another(runs, capsys):
    def read():
        return read_clock(*(read_runs(runs, name).finished for name in ("root", "normed")))

    assert read() is None
    path = fake_runs.write_clock(runs, "root", "normed", 0.9)
    assert (clock := read()) and clock.ratio == pytest.approx(0.9) and 0.89 < clock.interval[0] < 0.9
    kept, config = path.read_text(), runs / "root" / "seed_0" / "config.json"
    before = config.read_text()
    for name, value in {"code": "other", "device": "H100", "cores": 99, "attention": {"name": "cudnn"}}.items():
        config.write_text(json.dumps(json.loads(before) | {name: value}))
        assert read() is None, name
    config.write_text(before)
    assert read() is not None and capsys.readouterr().err == ""
    for damaged in ("{", json.dumps(json.loads(kept) | {"log_ratios": [None, 1]})):
        path.write_text(damaged)
        assert read() is None and "measures it again" in capsys.readouterr().err


def test_only_what_a_verdict_depends_on_is_measured_once_and_then_decides(runs):
    study, asked = Study(parent="root", variants=NAMES[1:]), []

    def judge(ratios):
        def measure(pairs):
            folders = [(Path(parent), Path(variant)) for parent, variant in pairs]
            asked.append([(parent.parent.name, variant.parent.name) for parent, variant in folders])
            for parent, variant in folders:
                assert parent.name == variant.name == "seed_0"
                if ratio := ratios.get(variant.parent.name):
                    fake_runs.write_clock(runs, "root", variant.parent.name, ratio)

        return {one.variant: one for one in judge_study(study, runs, measure_clocks=measure).comparisons}

    untimed = {one.variant: one for one in judge_study(study, runs).comparisons}
    words = {name: one.verdict.word for name, one in untimed.items()}
    assert words == {"normed": Word.EQUIVALENT, "deep": Word.KEEP, "worse": Word.REVERT}
    assert "time per token was not measured" in untimed["normed"].verdict.reason
    assert all(any("not measured" in note for note in untimed[name].notes) for name in ("normed", "deep"))
    timed = judge({"normed": 0.9, "deep": 9.0})
    assert asked == [[("root", "normed"), ("root", "deep")]]
    assert timed["normed"].verdict.word is Word.CHEAPER and timed["worse"].verdict == untimed["worse"].verdict
    blocked = timed["deep"].verdict
    assert blocked.word is Word.UNDECIDED and "train the parent on 9.00 x its tokens" in blocked.reason
    assert judge({}) == timed and len(asked) == 1, "what is measured is not measured again"


@pytest.mark.slow
def test_a_run_takes_as_long_as_itself(uninterrupted, compiled, monkeypatch, tmp_path):
    run = tmp_path / "best_fit" / "seed_3"
    shutil.copytree(uninterrupted("best_fit"), run, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setattr(clock_measurement, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(clock_measurement, "_TURN_SECONDS", 1e-6)
    measure_clock(run, run)
    found = read_runs(tmp_path, "best_fit").finished
    clock = read_clock(found, found)
    assert clock and len(clock.log_ratios) == 12 and 0.2 < clock.ratio < 5, "one step at a time, on any machine"
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"device": "H100"}))
    with pytest.raises(UserError, match="ran with device H100, here: "):
        measure_clock(run, run)
    # A run of an activation whose code the process that measures has yet to load.
    path = tmp_path / "own.py"
    path.write_text(OWN)
    record["config"]["model"]["activation"] = {"part": "own.Squared", "code": read_source(path).digest, "times": 2.0}
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"Squared\(times=2.0\) is code of own.py"):
        measure_clock(run, run)
    measure_clock(run, run, [path])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no process fewer cores")
def test_a_pair_of_runs_on_different_numbers_of_cores_is_timed_on_the_fewer(
    uninterrupted, compiled, monkeypatch, tmp_path
):
    more, fewer = tmp_path / "best_fit" / "seed_3", tmp_path / "best_fit" / "seed_4"
    for run, cores, seed in ((more, 2, 3), (fewer, 1, 4)):
        shutil.copytree(uninterrupted("best_fit"), run, ignore=shutil.ignore_patterns("checkpoints"))
        record = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(record | {"cores": cores, "seed": seed}))
    monkeypatch.setattr(clock_measurement, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(clock_measurement, "_TURN_SECONDS", 1e-6)
    before = os.sched_getaffinity(0)
    try:
        measure_clock(more, fewer)
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert (tmp_path / "best_fit" / "clock.json").exists()


def test_the_process_that_measures_is_given_the_files_of_own_parts(monkeypatch, tmp_path):
    variant = (
        "from jaxformer.experiment import Variant\n{}\nEXPERIMENT = Variant(parent='baseline', question='?', {})\n"
    )
    others = "change={'model.activation': Squared()}, expected=(-1, 1), source='a test'"
    for name in ("own", "unused"):
        code = OWN if name == "own" else OWN.replace("**2", "**3")
        (tmp_path / f"{name}.py").write_text(variant.format(code, others))
    own, _ = (load_experiment(str(tmp_path / f"{name}.py")) for name in ("own", "unused"))
    arms = {"own": own, "baseline": load_experiment("baseline")}
    monkeypatch.setattr(study_clocks, "load_finished_run", lambda run: SimpleNamespace(experiment=arms[run.name]))
    given = []
    monkeypatch.setattr(study_clocks, "in_another_process", lambda _, *call: given.append(call))
    study_clocks.measure_clocks([("runs/baseline", "runs/own")])
    assert given == [(measure_clock, Path("runs/baseline"), Path("runs/own"), [tmp_path / "own.py"])]
