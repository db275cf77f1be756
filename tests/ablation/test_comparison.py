"""A comparison finds what was planted, by formulas that can be followed, and refuses what is not comparable."""

import json
import math
import shutil

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.clock import Clock
from jaxformer.ablation.comparability import ALLOWABLE, ONE_DOCUMENT, parse_allowed
from jaxformer.ablation.comparison import compare_runs, interaction
from jaxformer.ablation.finished_runs import load_finished_run, read_runs
from jaxformer.ablation.margin import margin_of_tokens, worth_in_tokens
from jaxformer.ablation.noise_floor import NoiseFloor, noise_floor
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve
from jaxformer.host.files import read_json, write_json
from jaxformer.statistics.variance_prior import fit_prior

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

NAMES = ("root", "deep", "short", "gated", "both")
EFFECTS = {"deep": -0.03, "gated": -0.01, "both": -0.05, "short": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Experiments, and five seeds of each in `runs`."""
    folder = tmp_path_factory.mktemp("compare")
    fake_runs.write_root(folder / "experiments")
    fake_runs.write_variant(folder / "experiments", "deep", {"model.depth": 6})
    fake_runs.write_variant(folder / "experiments", "gated", {"model.activation": "swiglu"})
    fake_runs.write_variant(folder / "experiments", "short", {"packing.row_length": 128})
    fake_runs.write_merge(folder / "experiments", "both", ("deep", "gated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("XLA_FLAGS", raising=False)
        speeds = {"deep": 0.8}
        fake_runs.write_study(folder / "runs", NAMES, effects=EFFECTS, speeds=speeds, seeds=5, items=40)
    return folder


@pytest.fixture(scope="module")
def arms(folder):
    return {name: read_runs(folder / "runs", name).finished for name in NAMES}


def documents(run):
    """Returns (bits, bytes) of a run's documents, read here."""
    path = run.workdir / "evaluations" / f"step_{run.summary['steps']}" / "validation.documents.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([[row["nats"] / math.log(2), row["text_bytes"]] for row in rows]).T


def test_a_pair_on_different_numbers_of_cores_is_noted_where_they_round(arms):
    def with_cores(device, *of_runs):
        pairs = zip(arms["deep"], of_runs, strict=False)
        starts = [[{"step": 10 * i, "cores": n} for i, n in enumerate(cores)] for _, cores in pairs]
        return [
            run._replace(
                record=run.record | {"device": device, "starts": [run.record["starts"][0] | each for each in one]}
            )
            for run, one in zip(arms["deep"], starts, strict=False)
        ]

    def noted(device):
        found = compare_runs(with_cores(device, [1], [1], [2], [2]), with_cores(device, [1], [2], [2], [2, 1]))
        return [note for note in found.notes if "cores" in note]

    (note,) = noted("cpu")
    assert "different numbers of CPU cores" in note and "(seed 1, 3)" in note
    assert not noted("NVIDIA H100")


def test_the_difference_is_that_of_the_files(arms):
    found = compare_runs(arms["root"], arms["deep"])
    by_hand = []
    for parent, variant in zip(arms["root"], arms["deep"], strict=True):
        (ours, size), (theirs, _) = documents(variant), documents(parent)
        by_hand.append((ours - theirs).sum() / size.sum())
    assert found.difference.mean == pytest.approx(np.mean(by_hand), rel=1e-9)
    assert found.seed_variance == pytest.approx(np.var(by_hand, ddof=1), rel=1e-9)
    assert found.difference.mean == pytest.approx(found.variant_bits - found.parent_bits, abs=1e-12)
    assert (found.parent, found.variant, found.seeds, found.flags) == ("root", "deep", (0, 1, 2, 3, 4), ())
    assert found.lineage["change"] == {"model.depth": [4, 6]}


@pytest.mark.parametrize(("name", "word"), [("deep", Word.KEEP), ("gated", Word.KEEP), ("both", Word.KEEP)])
def test_what_was_planted_is_found(arms, name, word):
    parent = "deep" if name == "both" else "root"
    found = compare_runs(arms[parent], arms[name])
    planted = EFFECTS[name] - EFFECTS.get(parent, 0)
    assert found.difference.mean == pytest.approx(planted, abs=4 * found.difference.standard_error)
    assert found.verdict.word is word
    assert found.pairing < 0.3 and found.noise == pytest.approx(np.std([r.bits_per_byte for r in arms[parent]], ddof=1))


def test_time_and_parameters_are_reported_beside(arms):
    cost = compare_runs(arms["root"], arms["deep"], clock=Clock((math.log(1.25),) * 11 + (9.0,))).cost
    assert cost.time_per_token == pytest.approx(1.25) and cost.time_interval == pytest.approx((1.25, 1.25))
    assert cost.parameters > 1.1 and cost.device_hours == pytest.approx(1.25 * cost.parent_device_hours, rel=0.05)


def test_what_moves_the_data_is_paired_by_seed_alone_and_says_so(arms):
    found = compare_runs(arms["root"], arms["short"])
    assert found.difference is not None and not found.flags
    assert any("no batches" in note for note in found.notes) and any("0.500 x" in note for note in found.notes)


@pytest.fixture
def spoilt(arms, tmp_path):
    """A function (file, change of its object) -> the runs of `gated`, the first of them with that change."""

    def spoil(name, change):
        first, *others = arms["gated"]
        copy = tmp_path / "gated" / "seed_0"
        for path in first.workdir.rglob("*"):
            if path.is_file():
                target = copy / path.relative_to(first.workdir)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        path = copy / name
        if name.endswith(".jsonl"):
            path.write_text("".join(change(line) for line in path.read_text().splitlines(keepends=True)))
        else:
            write_json(path, change(read_json(path)))
        return [load_finished_run(copy), *others]

    return spoil


def put(path, value):
    """Returns a function that sets what is at a path of keys."""

    def change(record):
        node = record
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return record

    return change


LAST = "evaluations/step_40"


@pytest.mark.parametrize(
    ("kind", "file", "change"),
    [
        ("code", "config.json", put(["starts", 0, "code"], "other")),
        ("change", "config.json", put(["identity", "model.width"], 64)),
        ("change", "config.json", put(["lineage", "overrides"], {"model.width": [128, 64]})),
        ("data", "config.json", put(["digests", "corpus.0"], "other")),
        ("data", "config.json", put(["digests", "corpus.0.removed"], "other")),
        ("data", "config.json", put(["digests", "plan.0"], "other")),
        ("tokenizer", "config.json", put(["digests", "tokenizer"], "other")),
        ("versions", "config.json", put(["starts", 0, "versions"], {"jax": "0.0.1"})),
        ("device", "config.json", put(["starts", 0, "device"], "TPU v9")),
        ("environment", "config.json", put(["starts", 0, "environment"], {"JAX_DISABLE_JIT": "True"})),
        # A variant of 8e-3 that was applied to 4e-3 is another question to 1e-2.
        ("change", "config.json", put(["lineage", "change", "model.activation"], ["relu2", "swiglu"])),
        ("change", "config.json", put(["lineage", "change", "model.qk_norm"], [False, True])),
        ("code", "config.json", put(["starts", 0, "own_code"], {"experiment gated": "other"})),
        ("code", f"{LAST}/validation.json", put(["code"], "other")),
        ("code", f"{LAST}/arc_easy.json", put(["code"], "other")),
        ("environment", f"{LAST}/arc_easy.json", put(["environment"], {"XLA_FLAGS": "--xla_a=1"})),
        ("evaluation", f"{LAST}/arc_easy.json", put(["row_length"], 7)),
        ("evaluation", f"{LAST}/validation.json", put(["corpora", "pystdlib", "digest"], "other")),
        ("evaluation", f"{LAST}/arc_easy.json", put(["items_digest"], "other")),
        ("evaluation", f"{LAST}/arc_easy.json", put(["version"], 99)),
        ("batches", "metrics.jsonl", lambda line: line.replace('"train/batch": 1', '"train/batch": 2')),
    ],
)
def test_runs_that_do_not_share_what_they_should_are_flagged_and_not_compared(arms, spoilt, kind, file, change):
    variants = spoilt(file, change)
    found = compare_runs(arms["root"], variants)
    assert found.verdict.word is Word.NOT_COMPARED and found.difference is None and found.tasks == {}
    assert found.flags and {flag.partition(":")[0] for flag in found.flags} == {kind}, found.flags
    if kind in ALLOWABLE:
        allowed = compare_runs(arms["root"], variants, allow=[kind])
        assert allowed.difference is not None and any(note.startswith(f"allowed: {kind}: ") for note in allowed.notes)


def test_runs_of_other_code_are_reported_apart_by_their_commits(arms, spoilt):
    def other(record):
        record["starts"][0] |= {"code": "other", "git": {"commit": "a" * 40, "changes": "b" * 64}}
        return record

    found = compare_runs(arms["root"], spoilt("config.json", other))
    pairs = [flag for flag in found.flags if "differ between" in flag]
    assert pairs and all(flag.endswith(f"commit {'a' * 10} with changes {'b' * 10})") for flag in pairs)


def test_code_of_a_parents_files_must_be_the_same_and_a_variant_may_have_its_own(arms):
    def with_code(runs, **own_code):
        record = {**runs[0].record, "starts": [{**runs[0].record["starts"][0], "own_code": own_code}]}
        return [run._replace(record={**run.record, "starts": record["starts"]}) for run in runs]

    root, gated = (arms[name] for name in ("root", "gated"))
    found = compare_runs(with_code(root, root="a"), with_code(gated, root="a", gated="b"))
    assert not found.flags and "gated runs code of its own: gated" in found.notes
    part = {"module jaxformer.parts.mixture_of_experts": "c"}
    assert not any("of its own" in note for note in compare_runs(root, with_code(gated, **part)).notes)
    assert compare_runs(with_code(root, **part), gated).flags, "a part of the parent that changed moves the comparison"
    for theirs in ({"root": "b", "gated": "b"}, {"gated": "b"}):
        moved = compare_runs(with_code(root, root="a"), with_code(gated, **theirs))
        assert moved.flags and all(flag.startswith("code: root differ between ") for flag in moved.flags)


def test_documents_of_one_source_count_as_one(arms):
    def relabelled(runs, divisor):
        (name, one), *_ = runs[0].validation.items()
        return [
            run._replace(validation={name: run.validation[name]._replace(sources=one.documents // divisor)})
            for run in runs
        ]

    apart, paired = (compare_runs(*(relabelled(arms[name], n) for name in ("root", "gated"))) for n in (1, 2))
    assert apart.difference == compare_runs(arms["root"], arms["gated"]).difference
    assert paired.difference.mean == apart.difference.mean
    assert paired.difference.item_degrees_of_freedom < apart.difference.item_degrees_of_freedom
    one = compare_runs(*(relabelled(arms[name], 1000) for name in ("root", "gated")))
    assert f"evaluation: {ONE_DOCUMENT}" in one.flags


def test_options_of_jax_that_differ_are_named_with_both_values(arms, spoilt):
    found = compare_runs(arms["root"], spoilt("config.json", put(["starts", 0, "environment"], {"JAX_X": "1"})))
    pairs = [flag for flag in found.flags if "differ between" in flag]
    assert pairs and all(flag.endswith("(JAX_X: not set; 1)") for flag in pairs)


def test_runs_of_versions_that_recorded_no_options_are_compared(arms, spoilt):
    def older(record):
        for each in (record, *record.get("starts", [])):
            del each["environment"]
        return record

    assert not compare_runs(arms["root"], spoilt("config.json", older)).flags
    assert not compare_runs(arms["root"], spoilt(f"{LAST}/validation.json", older)).flags


def test_only_what_leaves_a_comparison_a_meaning_may_be_allowed():
    assert parse_allowed(" code, versions,") == ("code", "versions")
    with pytest.raises(UserError, match="--allow = 'evaluation' is unknown"):
        parse_allowed("evaluation")


def test_a_corpus_of_one_document_cannot_be_compared(arms):
    def cut(run):
        ((name, one),) = run.validation.items()
        alone = one._replace(
            documents=one.documents[:1], bits=one.bits[:1], text_bytes=one.text_bytes[:1], sources=one.sources[:1]
        )
        return run._replace(validation={name: alone})

    found = compare_runs([cut(run) for run in arms["root"]], [cut(run) for run in arms["gated"]])
    assert found.flags == (f"evaluation: {ONE_DOCUMENT}",)


def test_the_runs_own_speeds_decide_nothing(arms):
    found = compare_runs(arms["root"], arms["deep"])  # Whose runs were slower by a quarter.
    assert math.isnan(found.cost.time_per_token) and found.cost.time_interval == (0.0, math.inf)
    assert found.to_time and found.verdict.word is Word.KEEP and "time" not in found.verdict.reason
    timed = compare_runs(arms["root"], arms["deep"], clock=Clock((0.0,) * 12))
    assert not timed.to_time and timed.notes == found.notes[:-1] and "was not measured" in found.notes[-1]


def test_seeds_between_two_interim_analyses_wait(arms):
    def relabelled(name):
        runs = [*arms[name], *arms[name][:2]]
        return [run._replace(record={**run.record, "seed": seed}) for seed, run in enumerate(runs)]

    seven = compare_runs(relabelled("root"), relabelled("gated"))
    assert seven.seeds == tuple(range(6))
    assert "1 more seed than the interim analysis after 6 takes, left for that after 8" in seven.notes
    assert seven.difference == compare_runs(relabelled("root")[:6], relabelled("gated")[:6]).difference


def test_runs_of_an_arm_that_differ_among_themselves_are_not_compared(arms, spoilt):
    first, *others = arms["root"]
    moved = {**first.record, "identity": {**first.record["identity"], "optimizer.b1": 0.5}}
    found = compare_runs([*others, first._replace(record={**moved, "seed": 9})], arms["gated"])
    assert found.flags[0].startswith("change: configurations differ among the runs of root")


def test_failures_of_the_parent_are_reported(arms):
    found = compare_runs(arms["root"], arms["gated"], parent_failures={7: "diverged"})
    assert any("the parent failed: seed 7 diverged" in note for note in found.notes)


def test_folders_that_are_no_seeds_are_no_runs_and_copies_are_left_out(folder, tmp_path):
    source = folder / "runs" / "gated" / "seed_0"
    shutil.copytree(source, tmp_path / "gated" / "seed_0_old")
    assert read_runs(tmp_path, "gated") == ([], [], ())
    shutil.copytree(source, tmp_path / "gated" / "seed_7")
    folders, finished, unreadable = read_runs(tmp_path, "gated")
    assert (folders, finished) == ([], []) and "it holds gated, seed 0; move it back" in unreadable[0]


def test_other_seeds_are_no_pairs(arms):
    found = compare_runs(arms["root"][:2], arms["gated"][2:])
    assert found.verdict.word is Word.NOT_COMPARED and "share none" in found.verdict.reason
    assert compare_runs(arms["root"][:3], arms["gated"][1:]).seeds == (1, 2)


def test_failed_runs_revert_the_change(arms):
    failures = {4: "diverged: its loss or gradient is not finite"}
    found = compare_runs(arms["root"], arms["gated"][:4], failures=failures)
    assert found.verdict.word is Word.REVERT and "seed 4 diverged" in found.verdict.reason
    alone = compare_runs(arms["root"], [], variant="gated", failures=failures)
    assert (alone.verdict.word, alone.variant) == (Word.REVERT, "gated")
    with pytest.raises(UserError, match="no finished run of the parent"):
        compare_runs([], arms["gated"])


def test_a_seed_on_which_both_arms_fail_decides_nothing(arms):
    both, once = {4: "diverged"}, {4: "diverged", 9: "diverged"}
    found = compare_runs(arms["root"][:4], arms["gated"][:4], failures=both, parent_failures=both)
    assert found.verdict == compare_runs(arms["root"][:4], arms["gated"][:4]).verdict
    assert any(note.startswith("seed 4 failed in both") for note in found.notes)
    reverted = compare_runs(arms["root"][:4], arms["gated"][:4], failures=once, parent_failures=both)
    assert reverted.verdict.word is Word.REVERT and "seed 9" in reverted.verdict.reason
    assert "seed 4" not in reverted.verdict.reason
    nothing = compare_runs(arms["root"], [], variant="gated", failures=both, parent_failures=both)
    assert nothing.verdict.word is Word.NOT_COMPARED and "seed 4 failed in both" in nothing.verdict.reason


def test_the_margin_is_what_a_share_of_the_tokens_is_worth_on_the_parents_curve(arms):
    steps = np.arange(1, 1001)
    # Before and behind the part that is fitted: the warmup, and the decay.
    losses = np.where(steps <= 300, 9.0, np.where(steps <= 600, 5 - 0.4 * np.log(steps), 1.0))
    runs = [run._replace(losses=losses + 0.01 * i * np.log(steps)) for i, run in enumerate(arms["root"][:3])]
    per_nat = [run.bits_per_byte / run.summary["validation/loss"] for run in runs]
    slopes = [(0.4 - 0.01 * i) * each for i, each in enumerate(per_nat)]
    margin = margin_of_tokens(runs, 0.02)
    assert margin.bits_per_byte == pytest.approx(np.mean(slopes) * np.log(1.02))
    assert margin.standard_error == pytest.approx(np.std(slopes, ddof=1) / np.sqrt(3) * np.log(1.02))
    assert compare_runs(runs, arms["gated"][:3], allow=("batches",)).margin == margin.bits_per_byte
    assert compare_runs(runs, arms["gated"][:3], rule=Rule(margin=0.003)).margin == 0.003
    short = margin_of_tokens([run._replace(losses=losses[:5]) for run in runs], 0.02)
    assert math.isnan(short.bits_per_byte)
    risen = margin_of_tokens([run._replace(losses=np.log(steps)) for run in runs], 0.02)
    assert risen.bits_per_byte == 0.0, "a curve that does not fall makes no tokens worth anything"


def test_tasks_stand_guard_with_p_values_for_their_number(arms):
    tasks = compare_runs(arms["root"], arms["deep"]).tasks
    assert list(tasks) == ["arc_easy", "hellaswag", "winogrande"]
    assert tasks["hellaswag"].metric == "acc_norm" and tasks["arc_easy"].metric == "acc"
    for task in tasks.values():
        assert task.p_value >= task.accuracy.p_value
        assert task.variant - task.parent == pytest.approx(task.accuracy.mean)
    one = compare_runs(arms["root"][:1], arms["deep"][:1], floor=noise_floor(arms["root"]))
    assert all(0 < task.p_value <= 1 for task in one.tasks.values())


def test_one_seed_has_the_noise_of_the_parents_own_seeds(arms):
    alone = compare_runs(arms["root"][:1], arms["gated"][:1])
    assert not alone.difference.seeds_counted and alone.verdict.word is Word.UNDECIDED
    floor = noise_floor(arms["root"])
    informed = compare_runs(arms["root"][:1], arms["gated"][:1], floor=floor)
    assert informed.difference.seeds_counted
    assert informed.difference.seed_variance == pytest.approx(2 * floor.standard_deviation**2)


def test_the_variances_of_other_variants_make_the_prior():
    floor = NoiseFloor((0, 1, 2), (2.0, 2.1, 2.2), {name: (1e-4, 2) for name in "abcd"} | {"wild": (1.0, 2)})
    assert floor.standard_deviation == pytest.approx(0.1)
    calm = floor.prior("wild", 3)
    assert calm == fit_prior(np.full(4, 1e-4), np.full(4, 2.0)), "its own does not count"
    assert floor.prior("a", 3).degrees_of_freedom < calm.degrees_of_freedom
    few = floor._replace(variances={"a": (1e-4, 2), "b": (1e-4, 2), "c": (1e-4, 2)})
    assert few.prior("a", 3) is None and few.prior("d", 3) is not None
    assert few.prior("a", 1).variance == pytest.approx(0.02)


def test_an_interaction_is_what_the_whole_exceeds_the_sum_by(arms):
    found = interaction(arms["both"], [arms["deep"], arms["gated"]], arms["root"])
    means = {name: np.mean([run.bits_per_byte for run in arms[name]]) for name in NAMES}
    assert found.mean == pytest.approx(means["both"] - means["deep"] - means["gated"] + means["root"], abs=1e-12)
    assert interaction(arms["both"][:1], [arms["deep"], arms["gated"]], arms["root"]) is None


def test_a_gain_is_worth_the_tokens_in_which_the_parents_curve_falls_as_far(arms):
    steps = np.arange(1, 1001)
    runs = [run._replace(losses=5 - 0.4 * np.log(steps)) for run in arms["root"][:3]]
    slope = 0.4 * runs[0].bits_per_byte / runs[0].summary["validation/loss"]
    assert worth_in_tokens(-slope * math.log(1.5), runs[:1]) == pytest.approx(1.5)
    assert worth_in_tokens(slope * math.log(1.5), runs[:1]) == pytest.approx(1 / 1.5)
    # What counts as equal is worth the share of the tokens by which the margin is defined.
    assert worth_in_tokens(-margin_of_tokens(runs, 0.02).bits_per_byte, runs) == pytest.approx(1.02)
    found = compare_runs(runs, arms["gated"][:3], allow=("batches",))
    assert found.worth == worth_in_tokens(found.difference.mean, runs) and math.isfinite(found.worth)
    # Trained for longer, a variant that gains what its tokens are worth to the parent is worth none beside.
    longer = [run._replace(summary=run.summary | {"tokens": 1.5 * run.summary["tokens"]}) for run in arms["gated"][:3]]
    assert compare_runs(runs, longer, allow=("batches",)).worth == pytest.approx(found.worth / 1.5)
    assert worth_in_tokens(-slope * math.log(1.5), runs[:1], 1.5) == pytest.approx(1.0)
    assert 1e8 < worth_in_tokens(-1e9, runs) < math.inf


@pytest.mark.parametrize("losses", [np.full(1000, 5.0), np.log(np.arange(1, 1001)), np.arange(5.0)])
def test_on_a_curve_that_does_not_fall_no_gain_has_a_worth(arms, losses):
    runs = [run._replace(losses=losses) for run in arms["root"][:3]]
    assert all(math.isnan(worth_in_tokens(difference, runs)) for difference in (-0.1, 0.0, 0.1))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "", "steps are missing"),
        ("summary.json", "{}", "damaged .*steps"),
        (f"{LAST}/arc_easy.items.jsonl", "", "items are missing"),
        (f"{LAST}/validation.documents.jsonl", "", "documents of pystdlib are missing"),
        (f"{LAST}/validation.documents.jsonl", "{", "damaged"),
    ],
)
def test_damaged_runs_are_refused_in_one_line(arms, spoilt, name, text, message):
    run = spoilt("config.json", lambda record: record)[0]
    (run.workdir / name).write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        load_finished_run(run.workdir)
    assert "\n" not in str(refused.value)
    record = read_json(run.workdir / "config.json")
    write_json(run.workdir / "config.json", {name: record[name] for name in record if name != "lineage"})
    with pytest.raises(UserError, match="an older version made it, without lineage"):
        load_finished_run(run.workdir)
    (run.workdir / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_finished_run(run.workdir)


def test_runs_from_trained_weights_are_compared_with_each_other_and_not_with_one_from_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments", init_from="runs/other/seed_0")
    fake_runs.write_variant(tmp_path / "experiments", "deep", {"model.depth": 6})
    fake_runs.write_variant(tmp_path / "experiments", "later", {"init_from": "runs/other/seed_1"})
    fake_runs.write_variant(tmp_path / "experiments", "drawn", {"init_from": ""})
    fake_runs.write_study(tmp_path / "runs", ("root", "deep", "later", "drawn"), items=4)
    root, deep, later, drawn = (read_runs(tmp_path / "runs", n).finished for n in ("root", "deep", "later", "drawn"))
    assert not compare_runs(root, deep).flags and not compare_runs(root, later).flags
    assert "from trained weights: seeds only vary the order of the data" in compare_runs(root, deep).notes
    assert "change: some start from trained weights and others from scratch" in compare_runs(root, drawn).flags
    moved = [
        run._replace(record=run.record | {"identity": run.record["identity"] | {"init_from": "other"}}) for run in deep
    ]
    assert compare_runs(root, moved).flags == ("change: init_from differ otherwise than deep declares",)


def test_a_merge_is_resolved_as_its_runs_say(folder, arms, monkeypatch):
    monkeypatch.chdir(folder)
    assert arms["both"][0].record["lineage"]["parents"] == list(resolve("both").lineage.parents)
