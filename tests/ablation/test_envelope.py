"""Arms at their own best learning rate: the rounds that find it, and the comparison there."""

import collections
import json
import math

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation import run_study
from jaxformer.ablation.envelope import make_arm, shared_seeds, weights_at_best
from jaxformer.ablation.judge import judge
from jaxformer.ablation.ledger import latest_verdicts, read_ledger
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.records import comparison_file, read_records
from jaxformer.ablation.run_study import describe_failures, run_jobs
from jaxformer.ablation.study import Study, make_jobs
from jaxformer.ablation.tuning import RateSearch, at_octave, missing_runs
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve, with_overrides
from jaxformer.host.files import read_json, write_json
from jaxformer.jobs.queue import State
from jaxformer.report.findings import collect_findings, device_hours, notes
from jaxformer.report.text import decision_table
from jaxformer.run.metrics import Writer

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

# Best octaves of each, and what it is better by there: at the parent's own rate `constant` looks worse than it is.
BEST = {"root": 1.0, "constant": 0.5, "gated": 1.0}
EFFECTS = {"constant": -0.03, "gated": -0.02}
SECONDS = {"root": 10.0, "constant": 10.0, "gated": 10.0}
STUDY = Study(parent="root", variants=("constant", "gated"), rule=Rule(margin=0.001))
NOISE = fake_runs.Noise(effect=0.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return tmp_path


def write_files(folder):
    fake_runs.write_root(folder / "experiments")
    fake_runs.write_variant(folder / "experiments", "constant", {"optimizer.schedule": "wsd"}, retune="auto")
    fake_runs.write_variant(folder / "experiments", "gated", {"model.activation": "swiglu"})


class Done:
    """The process of a run that is over."""

    def __init__(self, status=0):
        self.status = status

    def poll(self):
        return self.status

    terminate = kill = lambda self: None


class FailsLast:
    """The process of a run that trains well until all others of its round are over, and fails then."""

    def __init__(self, folder, started, others):
        self.started, self.others = started, others
        with Writer(folder, 0) as writer:
            writer.write(20, {"train/loss": 3.0, "train/gradient_norm": 1.0})

    def poll(self):
        return 1 if len(self.started) >= self.others else None

    terminate = kill = lambda self: None


def fake_launch(runs, started, *, diverges_from=math.inf, dies_after=math.inf):
    """Returns a launch that writes a finished run at once, of a loss that is a parabola of the octave."""

    def launch(job, slot, slots):
        if len(started) >= dies_after:
            raise KeyboardInterrupt
        options = dict(argument[2:].split("=", 1) for argument in job.arguments)
        own = resolve(options.pop("experiment"))
        seed = int(options.pop("seed"))
        del options["workdir"]
        one = with_overrides(own, options)
        octave = math.log2(one.experiment.optimizer.learning_rate / own.experiment.optimizer.learning_rate)
        started.append((own.name, seed, round(octave, 6)))
        if octave >= diverges_from:
            fake_runs.write_diverged(runs, one, seed)
            return Done(1)
        effect = EFFECTS.get(own.name, 0.0) + 0.1 * (octave - BEST[own.name]) ** 2
        assert fake_runs.write_run(runs, one, seed, effect=effect, noise=NOISE, items=4) == job.workdir
        return Done()

    return launch


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(run_study.Queue.watch, "__defaults__", (0.0,))


def test_a_study_goes_on_in_rounds_until_each_arm_has_its_best_rate_between_two_others(folder, at_once):
    runs, started = folder / "runs", []
    jobs = make_jobs(STUDY, runs, SECONDS)
    assert [job.seed for job in jobs.now] == sorted(job.seed for job in jobs.now)
    assert all(jobs.now[0].workdir in job.needs for job in jobs.now[1:]), "nothing begins before that trains"
    assert len(jobs.now) + len(jobs.later) == 3 + 3 + 2 * (5 + 2 * 3) - 3, "three rates each, five on the first seed"
    with pytest.raises(KeyboardInterrupt):
        run_jobs(STUDY, runs, SECONDS, fake_launch(runs, started, dies_after=12))
    statuses = run_jobs(STUDY, runs, SECONDS, fake_launch(runs, started))
    assert len(set(started)) == len(started), "what is finished is not trained again"
    assert {status.state.value for status in statuses} == {"finished"}
    assert started[0] == ("root", 0, 0)
    tried = {name: sorted({o for n, seed, o in started if n == name and seed == 2}) for name in SECONDS}
    assert tried == {"root": [0, 0.5, 1, 1.5], "constant": [0, 0.5, 1], "gated": [0]}
    assert not any(make_jobs(STUDY, runs, SECONDS).later)

    outcome = judge_study(STUDY, runs)
    constant, gated = outcome.comparisons
    assert constant.verdict.word is Word.KEEP and constant.difference.mean == pytest.approx(-0.03, abs=0.006)
    parent, variant = constant.best_rates
    own = resolve("root").experiment.optimizer.learning_rate
    assert parent.compared == pytest.approx(2 * own, rel=0.1) and variant.compared == pytest.approx(1.41 * own, rel=0.1)
    assert parent.excess == pytest.approx(0.1, abs=0.01) and variant.tried == tuple(own * 2**o for o in (0, 0.5, 1))
    assert constant.until_next[1] == pytest.approx(3 * (constant.cost.device_hours + constant.cost.parent_device_hours))
    assert gated.best_rates is None and any("costs 0.1" in note for note in gated.notes), gated.notes
    finding = collect_findings(outcome)[0]
    assert notes(finding)[0].startswith("each at its best learning rate: root at ") and finding.hours > 0
    assert device_hours(outcome, "root") > 10 * outcome.runs["root"][0].device_hours
    assert "each at its best learning rate: root at" in " ".join(decision_table(outcome).split())
    kept = json.loads((runs / "constant" / comparison_file(STUDY)).read_text())
    assert (
        kept["best_rates"][1]["compared"] == variant.compared
        and kept["best_rates"][1]["recommended"] == variant.recommended
    )


def test_a_rate_that_diverges_is_an_answer_and_no_failure(folder, at_once):
    study, runs = Study(parent="root", variants=("constant",)), folder / "runs"
    statuses = run_jobs(study, runs, SECONDS, fake_launch(runs, [], diverges_from=1))
    assert {status.state.value for status in statuses} == {"finished"}
    (found,) = judge_study(study, runs).comparisons
    assert found.verdict.word is not Word.REVERT and found.best_rates[0].bits_per_byte[2] == math.inf
    assert any("root is taken at" in note and "a neighbouring rate diverged" in note for note in found.notes)


def test_what_diverges_at_its_own_rate_has_a_q_value_and_counts_in_that_of_others(folder):
    runs = folder / "runs"
    for name, diverges_from in (("root", 9), ("constant", 0)):
        search = RateSearch(resolve(name), runs)
        while missing := missing_runs(search.trials(3), 3):
            for octave, seed in missing:
                effect, one = EFFECTS.get(name, 0.0) + 0.1 * (octave + 1) ** 2, at_octave(search.own, octave)
                if octave < diverges_from:
                    fake_runs.write_run(runs, one, seed, effect=effect, noise=NOISE, tasks=())
                else:
                    fake_runs.write_diverged(runs, one, seed)
    for name, seed in [("root", 1), ("root", 2), *(("gated", seed) for seed in range(3))]:
        fake_runs.write_run(runs, resolve(name), seed, effect=0.1 + EFFECTS.get(name, 0), noise=NOISE, tasks=())
    constant = judge("root", "constant", runs)
    assert constant.comparison.verdict.word is Word.KEEP and constant.questions == ("constant", "gated")
    assert 0 < constant.comparison.q_value < 0.05
    assert judge("root", "gated", runs).questions == ("gated", "constant")
    found = judge_study(STUDY, runs)
    assert all(one.q_value > 0 for one in found.comparisons) and found.questions["gated"] == ("constant", "gated")


def test_where_the_parent_fails_after_others_of_its_round_no_further_round_begins_and_it_is_named(folder, at_once):
    study, runs, started = Study(parent="root", variants=("constant",)), folder / "runs", []
    others, first = len(make_jobs(study, runs).now) - 1, runs / "root" / "seed_0"

    def launch(job, slot, slots):
        if job.workdir == first:
            first.mkdir(parents=True)
            job.log.write_text("\n--- started\njaxformer: the disk is full\n")
            return FailsLast(first, started, others)
        return fake_launch(runs, started)(job, slot, slots)

    statuses = run_jobs(study, runs, SECONDS, launch, parallel=2)
    assert collections.Counter(status.state for status in statuses) == {
        State.FINISHED: others,
        State.FAILED: 1,
        State.BLOCKED: 2,
    }
    (line,) = describe_failures(statuses)
    assert line == f"root seed 0 failed: the disk is full; not trained, since they need it: 2; see {first}.log"


def test_what_lacks_rates_is_compared_at_the_parents_and_says_so(folder):
    fake_runs.write_variant(folder / "experiments", "fixed", {"optimizer.b2": 0.9}, retune="off")
    effects = EFFECTS | {"fixed": -0.03}
    fake_runs.write_study(
        folder / "runs", ("root", "constant", "fixed", "gated"), effects=effects, noise=NOISE, items=4
    )
    study = Study(parent="root", variants=("constant", "fixed", "gated"), rule=Rule(margin=0.001))
    constant, fixed, gated = judge_study(study, folder / "runs").comparisons
    assert "at the parent's learning rate; each is compared at its best rate, and about 16" in constant.verdict.reason
    assert constant.verdict.word is Word.UNDECIDED and math.isnan(constant.q_value)
    assert constant.difference is None and constant.to_time is None
    assert latest_verdicts(read_ledger(folder / "runs"))["root", "constant"]["difference"] is None
    assert read_records(folder / "runs" / "constant")[0].difference is None
    assert fixed.notes[0] == "at the parent's learning rate: the change moves the best rate, but retune is off"
    assert all(one.verdict.word is Word.KEEP for one in (fixed, gated))
    assert gated.notes[-1].startswith("no tuning of root at ") and gated.notes[-1].endswith(
        "the gain may hold only at this rate; see `jaxformer tune --experiment=root`"
    )
    own = resolve("root").experiment.optimizer.learning_rate
    for excess, is_flagged in ((0.0004, False), (0.0234, True)):
        write_json(folder / "runs/root/tuning.json", {"learning_rate": own, "excess": excess, "recommended": 2 * own})
        gated = judge_study(study, folder / "runs").comparisons[-1]
        assert any("costs 0.0234 bits per byte beside its best" in note for note in gated.notes) is is_flagged
        assert not any("no tuning" in note for note in gated.notes)


def test_a_parent_is_tuned_by_what_was_tuned_for_it_and_not_by_a_change_of_the_rate(folder):
    experiments, runs = folder / "experiments", folder / "runs"
    fake_runs.write_variant(experiments, "faster", {"optimizer.learning_rate": 0.006})
    about = f"parent='root', evidence={'0' * 64!r}, verdict='KEEP', first_seed=1000"
    fake_runs.write_experiment(experiments, "changed", f"Promoted(variant='faster', {about})")
    tuned = "change={'optimizer.learning_rate': 0.006}"
    fake_runs.write_experiment(experiments, "tuned", f"Promoted(variant='constant', {tuned}, {about})")
    for parent, is_flagged in (("changed", True), ("tuned", False)):
        for name, effect in ((parent, 0.0), (f"gated@{parent}", -0.03)):
            for seed in range(1000, 1003):
                fake_runs.write_run(runs, resolve(name), seed, effect=effect, noise=NOISE, tasks=())
        found = judge(parent, f"gated@{parent}", runs).comparison
        assert found.verdict.word is Word.KEEP
        assert any(note.startswith(f"no tuning of {parent} at 0.006") for note in found.notes) is is_flagged


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """A folder with the runs of both arms at rates around the best ones."""
    folder = tmp_path_factory.mktemp("rates")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("root", "constant"):
            own = resolve(name)
            for octave in (-1, -0.5, 0, 0.5, 1):
                for seed in range(3 if abs(octave) < 1 else 1):
                    options = {"effect": EFFECTS.get(name, 0.0) + 0.1 * (octave - 0.2) ** 2, "noise": NOISE, "items": 4}
                    fake_runs.write_run(folder / "runs", at_octave(own, octave), seed, **options)
    return folder


@pytest.fixture
def trained(rates, monkeypatch):
    """The runs of both arms, as a search reads them."""
    monkeypatch.chdir(rates)
    return {name: RateSearch(resolve(name), rates / "runs").read()[0] for name in ("root", "constant")}


def test_the_run_at_the_best_rate_is_the_parabola_through_each_document(trained):
    arm = make_arm(resolve("constant"), trained["constant"], 3)
    assert arm.tuning.bracket == (-0.5, 0.0, 0.5) and weights_at_best(arm.tuning).sum() == pytest.approx(1)
    best, place = arm.at_best(), arm.tuning.place
    for seed in range(3):
        three = [trained["constant"][octave, seed] for octave in arm.tuning.bracket]
        for name, one in best[seed].validation.items():
            bits_PI = np.stack([run.validation[name].bits for run in three])
            parabolas = np.polynomial.polynomial.polyfit(arm.tuning.bracket, bits_PI, 2)
            np.testing.assert_allclose(one.bits, np.polynomial.polynomial.polyval(place, parabolas), rtol=1e-9)
    assert np.mean([run.bits_per_byte for run in best]) == pytest.approx(arm.tuning.mean.value, abs=1e-9)
    assert shared_seeds(list(trained.values())) == 3
    fewer = {trial: run for trial, run in trained["root"].items() if trial != (0.5, 2)}
    assert shared_seeds([fewer, trained["constant"]]) == 2


def test_no_verdict_is_recorded_where_a_run_at_another_rate_cannot_be_read(rates, trained):
    runs = rates / "runs"
    path = runs / at_octave(resolve("constant"), 0.5).name / "seed_0" / "metrics.jsonl"
    before, lines = path.read_bytes(), read_ledger(runs)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"constant~.*metrics\.jsonl: steps are missing; train the run again"):
        judge("root", "constant", runs)
    assert read_ledger(runs) == lines
    path.write_bytes(before)
    assert judge("root", "constant", runs).comparison.best_rates


def test_runs_at_other_rates_must_share_all_but_the_rate(rates, trained):
    study = Study(parent="root", variants=("constant",))
    compared = judge_study(study, rates / "runs").comparisons[0]
    assert compared.flags == () and compared.difference is not None
    path = rates / "runs" / at_octave(resolve("constant"), 0.5).name / "seed_1" / "config.json"
    record = read_json(path)
    for change, kind in (
        ({"identity": record["identity"] | {"optimizer.b1": 0.5}}, "change"),
        ({"starts": [record["starts"][0] | {"code": "other"}]}, "code"),
    ):
        write_json(path, record | change)
        (found,) = judge_study(study, rates / "runs").comparisons
        assert found.verdict.word is Word.NOT_COMPARED and found.best_rates
        assert {flag.partition(":")[0] for flag in found.flags} == {kind}
        if kind == "change":
            with pytest.raises(UserError, match=r"constant~.* has changed since .*seed_1 was trained"):
                make_jobs(study, rates / "runs", SECONDS)
    write_json(path, record)
