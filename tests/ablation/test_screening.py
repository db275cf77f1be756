"""Screenings: which runs they are, what cannot be screened together, and what finished runs say."""

import dataclasses
from types import SimpleNamespace

import fake_runs
import numpy as np
import pytest
from variant_files import HEADER, variant

from jaxformer.ablation import screening as module
from jaxformer.ablation.finished_runs import ended_seeds, final_bits_per_byte, read_runs
from jaxformer.ablation.q_values import other_questions
from jaxformer.ablation.screening import (
    Screening,
    describe_runs,
    make_follow_up,
    read_result,
    resolve_rows,
    screening_jobs,
)
from jaxformer.ablation.seeds import FIRST_SCREENING_SEED, seeds_of
from jaxformer.ablation.study import Study, mean_seconds, resolve_study
from jaxformer.ablation.study_file import load_screening, load_study
from jaxformer.config import UserError
from jaxformer.experiment.change import differences
from jaxformer.experiment.resolution import resolve
from jaxformer.report.screening import (
    describe_aliases,
    describe_follow_up,
    describe_plan,
    describe_result,
    effects_table,
)

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

CHANGES = {
    "normed": {"model.qk_norm": True},
    "layer": {"model.norm": "layernorm"},
    "capped": {"model.logit_soft_cap": 30.0},
    "untied": {"model.tied_embeddings": False},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function (name, expression) -> an experiment file, in a folder that has a parent and four variants."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "studies").mkdir(parents=True)

    def write(name, expression):
        (tmp_path / "experiments" / f"{name}.py").write_text(f"{HEADER}EXPERIMENT = {expression}\n")

    write("root", "replace(load_experiment('baseline'), {'model.width': 64})")
    for name, change in CHANGES.items():
        write(name, variant(repr(change)))
    return write


SCREENING = Screening(parent="root", variants=tuple(CHANGES), seeds=2)


def test_each_row_is_the_parent_with_the_changes_that_are_on(write, tmp_path):
    rows = resolve_rows(SCREENING)
    assert [rows[0].name, len(rows), len({one.name for one in rows})] == ["root", 8, 8]
    for one, on_N in zip(rows, SCREENING.design.on_RN, strict=True):
        changed = {path: after for path, (_, after) in differences(rows[0].experiment, one.experiment).items()}
        expected = [CHANGES[name] for name, on in zip(SCREENING.variants, on_N, strict=True) if on]
        assert changed == {path: value for each in expected for path, value in each.items()}
    jobs = screening_jobs(SCREENING, rows, tmp_path / "runs")
    assert [job.seed for job in jobs] == [FIRST_SCREENING_SEED] * 8 + [FIRST_SCREENING_SEED + 1] * 8
    assert f"--experiment={rows[3].name}" in jobs[3].arguments and jobs[3].needs == (jobs[0].workdir,)
    assert not {job.seed for job in jobs} & {*seeds_of(resolve_study(Study(parent="root", variants=("normed",))))}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"tuned": variant("{'optimizer.b2': 0.9}")}, "tuned is compared at its own best learning rate"),
        (
            {"relu": variant("{'model.norm': 'layernorm', 'model.activation': 'relu2'}", bundle="'one'")},
            "both set model.n",
        ),
        (
            {"normed_capped": variant("{'model.logit_soft_cap': 9.0}", parent="normed")},
            "is not a single change of root",
        ),
        (
            {
                "narrow": variant("{'model.feed_forward_width': 96}"),
                "gated": variant("{'model.activation': 'swiglu'}", consequences="(SolvedFeedForwardWidth(),)"),
            },
            "narrow and gated both set model.feed_forward_width",
        ),
        (
            {"x" * 120: variant("{'model.z_loss': 1e-4}"), "y" * 130: variant("{'model.activation': 'relu2'}")},
            "too long",
        ),
    ],
)
def test_what_cannot_be_screened_together_is_refused_in_a_line(write, variants, message):
    for name, expression in variants.items():
        write(name, expression)
    with pytest.raises(UserError, match=message) as refusal:
        resolve_rows(Screening(parent="root", variants=(*CHANGES, *variants)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": ("a", "b")}, "takes 3 to 23 changes, not 2"),
        ({"runs": 12}, "would repeat each other"),
        ({"runs": 9}, "designs have 8, 12"),
        ({"variants": ("a@b", "c", "d")}, "without a parent: not a@b"),
        ({"variants": ("a", "a", "d")}, "names a variant twice"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_what_is_no_screening_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SCREENING, **fields)


def test_a_study_of_another_kind_is_refused(write, tmp_path):
    path = tmp_path / "experiments" / "studies" / "plain.py"
    path.write_text("from jaxformer import Study\nSTUDY = Study(parent='root', variants=('normed',))\n")
    with pytest.raises(UserError, match="this is not a screening: `jaxformer ablate --study=plain` runs it"):
        load_screening("plain")
    path.write_text(
        f"from jaxformer import Screening\nSTUDY = Screening(parent='root', variants={SCREENING.variants})\n"
    )
    with pytest.raises(UserError, match="this is a screening: `jaxformer screen --study=plain` runs it"):
        load_study("plain")


def named_rows():
    """Returns the rows of the screening, of which nothing but the names is read."""
    named = [[name for name, on in zip(CHANGES, on_N, strict=True) if on] for on_N in SCREENING.design.on_RN]
    return [SimpleNamespace(name="+".join(names) or "root") for names in named]


def values_of(rows, monkeypatch, effects_N, runs, diverged=()):
    """Makes run folders come to the sum of the changes that are on in them."""
    rng = np.random.default_rng(0)
    bits = {}
    for one, on_N in zip(rows, SCREENING.design.on_RN, strict=True):
        for number, seed in enumerate(SCREENING.run_seeds):
            noise = 0.002 * rng.standard_normal() + 0.1 * number
            bits[runs / one.name / f"seed_{seed}"] = 2.0 + float(on_N @ effects_N) + noise
    monkeypatch.setattr(module, "final_bits_per_byte", bits.get)
    monkeypatch.setattr(module, "has_diverged", lambda folder: any(name in folder.parent.name for name in diverged))


def test_finished_runs_give_the_effects_and_which_survive(tmp_path, monkeypatch):
    rows, effects_N = named_rows(), np.array([0.01, -0.05, 0.03, -0.02])
    values_of(rows, monkeypatch, effects_N, tmp_path)
    found = read_result(SCREENING, rows, tmp_path)
    assert [each.mean for each in found.effects.values()] == pytest.approx(effects_N, abs=0.003)
    assert [*found.effects] == [*CHANGES] and found.survivors == ("layer", "untied")
    table = "\n".join(effects_table(found))
    assert table.index("layer") < table.index("untied") < table.index("normed") < table.index("capped")
    assert table.count("survives") == 2
    one_seed = dataclasses.replace(SCREENING, seeds=1)
    single = read_result(one_seed, rows, tmp_path)
    assert single.survivors == ("layer",) and single.record()["effects"]["layer"] == {
        "mean": single.effects["layer"].mean
    }
    assert "The best quarter survives, at most 1 change." in describe_result(one_seed, "root", single)[-1]
    assert effects_table(single)[1].split() == ["layer", f"{single.effects['layer'].mean:+.4f}", "survives"]
    values_of(rows, monkeypatch, abs(effects_N), tmp_path)
    found = read_result(SCREENING, rows, tmp_path)
    assert "None survives" in describe_follow_up(found, None, np.inf)


def test_the_follow_up_stays_within_the_hours_and_counts_what_is_trained(write, tmp_path):
    runs, hour = tmp_path / "runs", dict.fromkeys(("root", *CHANGES), 3600.0)
    best = ("layer", "untied", "capped")
    asked = {hours: make_follow_up("root", best, runs, hour, hours) for hours in (np.inf, 43, 22, 21, 15, 6, 5)}
    found = {hours: one and (one.study.variants, one.study.seeds, one.device_hours) for hours, one in asked.items()}
    assert found[np.inf] == (best, 11, 44) and found[43] == (best[:2], 11, 33) and found[22] == (best[:1], 11, 22)
    assert found[21] == (best[:1], 8, 16) and found[15] == (best[:1], 6, 12) and found[6] == (best[:1], 3, 6)
    assert found[5] is None and make_follow_up("root", (), runs, hour) is None
    command = f"jaxformer ablate --parent=root --variants=layer,untied --seeds=11 --runs={runs}"
    assert asked[43].command == command and asked[43].record()["command"] == command
    result = SimpleNamespace(survivors=best)
    assert "in 33.00 device hours (there is no time for capped): jaxf" in describe_follow_up(result, asked[43], 43)
    assert "5.00 device hours are left, too few to confirm layer" in describe_follow_up(result, None, 5)
    fake_runs.write_run(runs, resolve("root"), 0, tasks=())
    assert make_follow_up("root", best, runs, hour).device_hours == 43


def test_what_was_only_screened_is_no_finished_seed_of_an_experiment(write, tmp_path):
    runs = tmp_path / "runs"
    ordinary, screened = (fake_runs.write_run(runs, resolve("root"), n, tasks=()) for n in (0, FIRST_SCREENING_SEED))
    fake_runs.write_run(runs, resolve("normed"), FIRST_SCREENING_SEED, tasks=())
    read = read_runs(runs, "root")
    assert (
        read.folders == [ordinary] and [run.seed for run in read.finished] == [0] and ended_seeds(runs / "root") == [0]
    )
    assert final_bits_per_byte(screened) and mean_seconds(runs / "normed"), "each by itself is an ordinary run"
    assert other_questions(runs, "root", ()) == {}, "normed was not asked"
    fake_runs.write_run(runs, resolve("normed"), 0, tasks=())
    assert other_questions(runs, "root", ()) == {"normed": 1}


def test_the_parent_is_named_as_its_runs_are(write, tmp_path):
    """`normed@root` is the file `normed` itself, whose runs lie in runs/normed."""
    screening = Screening(parent="normed@root", variants=("layer", "capped", "untied"))
    rows = resolve_rows(screening)
    assert describe_runs(screening, rows)["parent"] == rows[0].name == "normed"
    assert {one.name.rpartition("@")[2] for one in rows} == {"normed"}
    assert {job.workdir.parent.name for job in screening_jobs(screening, rows, tmp_path)} == {one.name for one in rows}
    assert describe_runs(screening, rows)["seeds"] == [FIRST_SCREENING_SEED]
    with pytest.raises(UserError, match=r"takes names of experiments, not a path: experiments/root\.py"):
        Screening(parent="experiments/root.py", variants=screening.variants)


def test_the_change_that_diverges_is_named(tmp_path, monkeypatch):
    rows = named_rows()
    values_of(rows, monkeypatch, np.zeros(4), tmp_path, diverged=("capped",))
    with pytest.raises(UserError, match="4 of the 8 runs of a seed diverged, exactly those with capped"):
        read_result(SCREENING, rows, tmp_path)
    values_of(rows, monkeypatch, np.zeros(4), tmp_path, diverged=("capped", "layer"))
    with pytest.raises(UserError, match=r"6 of the 8 .* no single variant explains them"):
        read_result(SCREENING, rows, tmp_path)
    values_of(rows, monkeypatch, np.zeros(4), tmp_path)
    monkeypatch.setattr(module, "final_bits_per_byte", lambda folder: None)
    with pytest.raises(UserError, match="root/seed_1000000: not finished"):
        read_result(SCREENING, rows, tmp_path)


def test_the_plan_recommends_by_what_is_expected_beside_the_noise(write):
    parent, *variants = module.resolve_variants(SCREENING)
    for noise, words in (
        (0.2, "Screening is the better method"),
        (0.02, "Screening is not the better method"),
        (float("nan"), "depends on the seed noise"),
    ):
        sentences = describe_plan(SCREENING, parent, variants, noise, 0.5)
        assert words in sentences[-1] and "on 11 other seeds. That takes about 5.50 device hours" in sentences[-2]
    assert (
        "With so few changes, one seed finds more" in sentences[-3]
        and "8 runs on each of 2 seeds, resolution IV" in sentences[0]
    )
    few = "Screening is not the better method with fewer than 11 changes and hours for at most 3 seeds of each: "
    few += "train one seed"
    for hours, words in (
        (7.5, few),
        (7.6, "Screening is the better method"),
    ):  # Three seeds of four changes and the parent take 7.5.
        assert describe_plan(SCREENING, parent, variants, 0.2, 0.5, hours)[-1].startswith(words)
    three = dataclasses.replace(SCREENING, variants=SCREENING.variants[:3])
    sentences = describe_plan(three, parent, variants[:3], 0.2, 0.5)
    assert sentences[-1].startswith("Screening is not the better method with fewer than 4 changes: train one seed")
    aliased = dataclasses.replace(SCREENING, variants=tuple("abcdefghijk"))
    assert "aliased with other changes: up to 0.17 of the interactions of 45 pairs" in describe_aliases(aliased)
