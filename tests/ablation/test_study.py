"""A study: what is to be run, in which order; what came out, kept beside the runs and used again."""

import json
import math

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.records import comparison_file
from jaxformer.ablation.study import (
    Study,
    estimate_seconds,
    make_jobs,
    resolve_study,
    resolve_what_can_be,
)
from jaxformer.ablation.study_file import load_study
from jaxformer.ablation.training_jobs import make_job
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve, with_overrides
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import Queue
from jaxformer.plan.run_time import IMPORTING
from jaxformer.report.summary import summarise_study
from jaxformer.report.text import decision_table
from jaxformer.statistics.significance import interim_level

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

CHANGES = {
    "deep": {"model.depth": 6},
    "gated": {"model.activation": "swiglu"},
    "capped": {"model.logit_soft_cap": 30.0},
    "normed": {"model.qk_norm": True},
    "blocked": {"model.z_loss": 1e-4},
}
EFFECTS = {"gated": -0.03, "deep": 0.02, "both": -0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    experiments = folder / "experiments"
    fake_runs.write_root(experiments)
    fake_runs.write_root(experiments, "other", model__width=64)
    for name, change in CHANGES.items():
        fake_runs.write_variant(experiments, name, change, retune="off")
    fake_runs.write_variant(experiments, "gated_deep", {"model.depth": 6}, parent="gated", retune="off")
    fake_runs.write_merge(experiments, "both", ("deep", "gated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        seeds = dict.fromkeys(["root", *CHANGES, "both"], 3) | {"root": 4}
        fake_runs.write_study(folder / "runs", list(seeds), effects=EFFECTS, seeds=seeds, items=20)
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


ALL = Study(parent="root", variants=(*CHANGES, "both"), parent_seeds=4)


def test_a_parent_has_as_many_seeds_as_its_variants_where_none_are_given():
    assert Study(parent="root", variants=("a",), seeds=4).parent_seeds == 4


def test_jobs_are_ordinary_commands_seed_by_seed_and_parents_first(tmp_path):
    study = Study(parent="root", variants=("gated", "gated_deep"), seeds=2, parent_seeds=3)
    seconds = {"root": 60.0, "gated": 70.0, "gated_deep": 80.0}
    jobs = make_jobs(study, tmp_path, seconds).now
    order = [(job.name, job.seed) for job in jobs]
    assert order == [(name, seed) for seed in (0, 1) for name in seconds] + [("root", 2)]
    workdir = tmp_path / "gated" / "seed_1"
    arguments = ("--experiment=gated", "--seed=1", f"--workdir={workdir}")
    parents = (tmp_path / "root" / "seed_0", tmp_path / "root" / "seed_1")
    assert jobs[4] == Job("gated", 1, arguments, workdir, 40, 70.0, parents)
    assert [len(job.needs) for job in jobs] == [0, 1, 2, 1, 2, 3, 1]
    turned = make_jobs(Study(parent="root", variants=("gated_deep", "gated"), seeds=1), tmp_path, seconds).now
    assert [job.name for job in turned][:3] == ["root", "gated", "gated_deep"], "a parent comes before its variants"
    kept = make_jobs(Study(parent="gated", variants=("gated_deep",), seeds=1, parent_seeds=1), tmp_path, seconds).now
    gated = tmp_path / "gated" / "seed_0"
    assert [(job.name, job.needs) for job in kept] == [("gated", ()), ("gated_deep", (gated,))], (
        "root was decided before"
    )


def test_no_run_needs_one_that_the_study_does_not_make(folder, tmp_path):
    """`plain` is compared with `slower` at its own rate, which is compared with `slow` at other rates alone."""
    experiments = folder / "experiments"
    fake_runs.write_variant(experiments, "slow", {"optimizer.schedule": "wsd"})
    fake_runs.write_variant(experiments, "slower", {"optimizer.b2": 0.9}, parent="slow")
    fake_runs.write_variant(experiments, "plain", {"model.qk_norm": True}, parent="slower")
    jobs = make_jobs(Study(parent="root", variants=("slow", "slower", "plain")), tmp_path).now
    assert Queue(jobs) and {job.seed for job in jobs if job.name == "slower"} == {0, 1, 2}
    assert all(math.isnan(job.estimated_seconds) for job in jobs)


def test_an_experiment_of_several_processes_is_no_job(tmp_path):
    spread = with_overrides(resolve("root"), {"mesh.processes": "2", "mesh.data": "2"})
    with pytest.raises(UserError, match=r"root: mesh\.processes = 2, but a queue starts one process for each run"):
        make_job(spread, 0, tmp_path, 1.0)


def test_seeds_begin_where_none_chose_the_promoted_parent(folder, tmp_path):
    text = f"Promoted(variant='gated', parent='root', evidence={'0' * 64!r}, verdict='KEEP', first_seed=1000)"
    fake_runs.write_experiment(folder / "experiments", "next", text)
    jobs = make_jobs(
        Study(parent="next", variants=("deep",), seeds=1, parent_seeds=3), tmp_path, {"next": 1.0, "deep@next": 1.0}
    ).now
    first = tmp_path / "next" / "seed_1000"
    assert [(job.name, job.seed, job.needs) for job in jobs] == [
        ("next", 1000, ()),
        ("deep@next", 1000, (first,)),
        ("next", 1001, (first,)),
        ("next", 1002, (first,)),
    ]
    beside_root = make_jobs(Study(parent="root", variants=("next",), seeds=1, parent_seeds=1), tmp_path).now
    assert [(job.name, job.seed) for job in beside_root] == [("root", 1000), ("next", 1000)]


def test_variants_are_applied_to_the_studys_parent():
    names = [
        one.name for one in resolve_study(Study(parent="other", variants=("gated", "both", "deep@gated@other", "deep")))
    ]
    assert names == ["other", "gated@other", "both@other", "deep@gated@other", "deep@other"]
    with pytest.raises(UserError, match="gated_deep is compared with gated: add it to the study"):
        resolve_study(Study(parent="root", variants=("gated_deep",)))


def test_a_study_does_not_mix_trained_weights_with_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "experiments"
    fake_runs.write_root(experiments)
    fake_runs.write_variant(experiments, "deep", {"model.depth": 6})
    fake_runs.write_variant(experiments, "warm", {"init_from": "runs/root/seed_0"})
    fake_runs.write_variant(experiments, "later", {"init_from": "runs/root/seed_1"}, parent="warm")
    with pytest.raises(
        UserError, match=r"warm starts from trained weights \(runs/root/seed_0\) and root from scratch: "
    ):
        resolve_study(Study(parent="root", variants=("deep", "warm")))
    with pytest.raises(UserError, match=r"warm starts from trained weights .* and root from scratch"):
        make_jobs(Study(parent="root", variants=("deep", "warm")), tmp_path, {})
    same = resolve_study(Study(parent="warm", variants=("deep", "later")))
    assert [one.experiment.init_from for one in same] == [f"runs/root/seed_{seed}" for seed in (0, 0, 1)]


def test_expected_seconds_are_those_of_finished_runs_and_else_by_flops(tmp_path):
    resolved = resolve_study(Study(parent="root", variants=("gated", "deep")))
    fake_runs.write_run(tmp_path, resolved[0], 0, speed=2.0)
    fake_runs.write_run(tmp_path, resolved[1], 0, speed=0.5)
    seconds = estimate_seconds(resolved, tmp_path)
    tokens = 40 * 4 * 256
    assert seconds["root"] == pytest.approx(IMPORTING + tokens / 2000)
    assert seconds["gated"] == pytest.approx(IMPORTING + tokens / 500)
    assert 1.2 < seconds["deep"] / seconds["root"] < 1.5
    with pytest.raises(UserError, match="give the seconds"):
        estimate_seconds(resolved, tmp_path / "none")
    assert estimate_seconds(resolved, tmp_path / "none", {"root": 10.0})["root"] == 10.0


def test_a_study_is_judged_as_it_was_planted(folder):
    outcome = judge_study(ALL, folder / "runs")
    words = {one.variant: one.verdict.word for one in outcome.comparisons}
    assert words["gated"] is Word.KEEP and words["deep"] is Word.REVERT and words["both"] is Word.KEEP
    assert not {words["capped"], words["normed"], words["blocked"]} & {Word.KEEP, Word.REVERT, Word.NOT_COMPARED}
    whole = outcome.interactions["both"]
    assert whole.mean == pytest.approx(0.0, abs=4 * whole.standard_error), "its effect is the sum of both"
    both = next(one for one in outcome.comparisons if one.variant == "both")
    assert both.parent == "deep" and both.difference.mean == pytest.approx(-0.03, abs=0.01)
    q_values = {one.variant: one.q_value for one in outcome.comparisons}
    assert q_values["gated"] < 0.05 < 0.9 < q_values["deep"], "what is worse is no discovery"


def test_what_came_out_is_kept_beside_the_runs(folder):
    outcome = judge_study(ALL, folder / "runs")
    for one in outcome.comparisons:
        stored = json.loads((folder / "runs" / one.variant / comparison_file(ALL)).read_text())
        assert stored["study"] == {"parent": "root", "variants": list(ALL.variants)}
        assert stored["verdict"]["word"] == one.verdict.word.value
        assert stored["difference"]["mean"] == one.difference.mean and stored["q_value"] == one.q_value
    noise = json.loads((folder / "runs" / "root" / "noise.json").read_text())
    assert noise["seeds"] == [0, 1, 2, 3] and set(noise["variances"]) == set(CHANGES)
    bits = [run.bits_per_byte for run in outcome.runs["root"]]
    assert noise["bits_per_byte"] == bits and noise["standard_deviation"] == pytest.approx(np.std(bits, ddof=1))


def test_studies_that_ask_the_same_question_keep_their_comparisons_apart(folder):
    judge_study(ALL, folder / "runs")
    kept = folder / "runs" / "gated" / comparison_file(ALL)
    before, other = kept.read_bytes(), Study(parent="root", variants=("gated",))
    judge_study(other, folder / "runs")
    assert kept.read_bytes() == before and (kept.parent / comparison_file(other)).exists()
    assert comparison_file(other) == comparison_file(Study(parent="root", variants=("gated",), seeds=2))


def test_the_noise_floor_of_an_earlier_study_is_used_again_unless_the_parent_is_another(folder):
    runs = folder / "runs"
    (runs / "root" / "noise.json").unlink(missing_ok=True)
    one = Study(parent="root", variants=("gated",))
    (alone,) = judge_study(one, runs).comparisons
    judge_study(ALL, runs)
    (informed,) = judge_study(one, runs).comparisons
    assert informed.difference.seed_degrees_of_freedom > alone.difference.seed_degrees_of_freedom == 2
    path = runs / "root" / "noise.json"
    stored = json.loads(path.read_text())
    stored["made_with"]["code"] = "other"
    path.write_text(json.dumps(stored))
    (again,) = judge_study(one, runs).comparisons
    assert again.difference == alone.difference


def test_what_may_be_chance_among_so_many_questions_is_not_kept(folder):
    strict = Study(parent="root", variants=tuple(CHANGES), parent_seeds=4, rule=Rule(q=1e-12))
    judged = {one.variant: one.verdict for one in judge_study(strict, folder / "runs").comparisons}
    assert judged["gated"].word is Word.UNDECIDED and "may be chance" in judged["gated"].reason
    assert judged["gated"].more_seeds == 1 and judged["gated"].more_hours > 0, "it goes on to the next analysis"
    assert judged["deep"].word is Word.REVERT


def test_failures_on_disk_are_reported_and_revert(folder, tmp_path):
    root, gated, capped = resolve_study(Study(parent="root", variants=("gated", "capped")))
    for seed in range(3):
        fake_runs.write_run(tmp_path, root, seed)
    fake_runs.write_diverged(tmp_path, gated, 0)
    fake_runs.write_stopped_early(tmp_path, capped, 1, step=17, reason="hopeless")
    outcome = judge_study(Study(parent="root", variants=("gated", "capped", "normed")), tmp_path)
    diverged, stopped = outcome.comparisons
    assert (diverged.variant, diverged.verdict.word) == (
        "gated",
        Word.REVERT,
    ) and "seed 0 diverged" in diverged.verdict.reason
    assert stopped.verdict.word is Word.REVERT and "seed 1 stopped early at step 17: hopeless" in stopped.verdict.reason
    assert {name: hours for name, hours in outcome.lost_hours.items() if hours} == {"capped": 0.01}
    lines = decision_table(outcome).splitlines()
    (row,) = (number for number, line in enumerate(lines) if line.startswith("normed"))
    assert "NOT COMPARED" in lines[row] and "no run of it has ended" in lines[row + 1]


def test_the_table_shows_the_margin_the_noise_and_every_decision(folder):
    outcome = judge_study(ALL, folder / "runs")
    text = decision_table(outcome)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for one in outcome.comparisons:
        low, high = one.difference.interval(1 - interim_level(len(one.seeds)))
        shown = f"{one.difference.mean:+.4f} ± {one.difference.standard_error:.4f}  [{low:+.4f}, {high:+.4f}]"
        assert shown in lines[one.variant] and one.verdict.word.value in lines[one.variant]
        assert f"{one.worth:.2f} x" in lines[one.variant]
        if one.verdict.more_seeds:
            assert f"{one.verdict.more_seeds} more seed" in " ".join(text.split())
    assert f"Margin: {outcome.comparisons[0].margin:.4f}" in text and "Noise floor of root: 0." in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("STUDY = 3", "must assign a Study"),
        ("STUDY = Study(parent='root', variants=())", "needs a variant"),
        ("STUDY = Study(parent='root', variants=('a', 'a'))", "twice"),
        (
            "STUDY = Study(parent='root', variants=('a',), seeds=4, parent_seeds=3)",
            "parent_seeds .3. must be at least seeds .4.",
        ),
        ("STUDY = Study(parent='root', variants=('a',), seeds=0)", "seeds"),
        ("STUDY = Study(parent='root')", "variants"),
        ("STUDY =", "invalid syntax"),
        ("STUDY = Study(parent='root', variants=1)", "variants must be a tuple, not 1"),
        ("STUDY = Study(parent='root', variants=(1,))", "variants.0 must be of type str, not 1"),
        ("STUDY = Study(parent='experiments/root.py', variants=('a',))", "not a path: experiments/root"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_files_that_are_no_study_are_refused(tmp_path, text, message):
    path = tmp_path / "study.py"
    path.write_text(f"from jaxformer.ablation.study import Study\n{text}\n")
    with pytest.raises(UserError, match=message) as refused:
        load_study(str(path))
    assert "\n" not in str(refused.value) and "study.py" in str(refused.value)
    with pytest.raises(UserError, match="no such file"):
        load_study(str(tmp_path / "none.py"))


def test_a_study_without_a_finished_parent_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run of the parent"):
        judge_study(Study(parent="root", variants=("gated",)), tmp_path)


def test_a_run_that_cannot_be_read_is_left_out_and_named_everywhere(folder, tmp_path):
    root, gated = resolve_study(Study(parent="root", variants=("gated",)))
    for seed in range(3):
        fake_runs.write_run(tmp_path, root, seed)
        fake_runs.write_run(tmp_path, gated, seed, effect=-0.02)
    (tmp_path / "gated" / "seed_1" / "summary.json").write_text("{")
    (tmp_path / "root" / "seed_4").symlink_to(tmp_path / "nowhere")
    outcome = judge_study(Study(parent="root", variants=("gated",)), tmp_path)
    (found,) = outcome.comparisons
    assert found.seeds == (0, 2)
    assert [line.split(":")[0] for line in outcome.unread] == [
        f"run folder {tmp_path}/root/seed_4",
        f"{tmp_path}/gated/seed_1/summary.json",
    ]
    assert found.notes == (f"not read: {outcome.unread[1]}",)
    assert all(line in " ".join(decision_table(outcome).split()) for line in outcome.unread)
    assert dict(summarise_study(outcome))["Not read"] == "; ".join(outcome.unread)


def test_a_variant_of_a_variant_without_runs_is_not_compared_and_the_reason_is_given(folder, tmp_path):
    study = Study(parent="root", variants=("gated", "gated_deep", "nowhere"))
    root, gated, gated_deep = resolve_what_can_be(study)[0]
    fake_runs.write_run(tmp_path, root, 0)
    fake_runs.write_diverged(tmp_path, gated, 0)
    fake_runs.write_run(tmp_path, gated_deep, 0)
    outcome = judge_study(study, tmp_path)
    words = {one.variant: (one.verdict.word, one.verdict.reason) for one in outcome.comparisons}
    assert words["gated"][0] is Word.REVERT
    word, reason = words["gated_deep"]
    assert word is Word.NOT_COMPARED and reason.startswith("its parent, gated, has no finished run")
    assert "its seed 0 diverged" in reason
    assert len(outcome.unread) == 1 and "unknown experiment 'nowhere'" in outcome.unread[0]
    assert decision_table(outcome)


def test_a_parent_without_a_run_that_can_be_read_is_refused_with_what_became_of_its_runs(folder, tmp_path):
    study = Study(parent="root", variants=("gated",))
    root, _ = resolve_study(study)
    with pytest.raises(UserError, match=r"root: no finished run of the parent; train it first$"):
        judge_study(study, tmp_path)
    fake_runs.write_diverged(tmp_path, root, 0)
    with pytest.raises(UserError, match=r"no finished run of the parent: seed 0 diverged.*; see .*root/seed_0.log$"):
        judge_study(study, tmp_path)
    (fake_runs.write_run(tmp_path, root, 1) / "summary.json").write_text("")
    with pytest.raises(
        UserError, match=r"no finished run of the parent can be read: seed 0 .*seed_1/summary.json: unr"
    ):
        judge_study(study, tmp_path)


def test_a_study_of_a_variant_alone_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="unknown experiment 'gatd'; did you mean gated"):
        judge_study(Study(parent="root", variants=("gatd",)), tmp_path)
