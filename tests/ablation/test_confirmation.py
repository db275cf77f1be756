"""A promoted variant is confirmed once, on seeds and documents that no verdict has read."""

import json
import re
from types import SimpleNamespace

import fake_runs
import jax
import numpy as np
import pytest

from jaxformer.ablation import confirmation
from jaxformer.ablation.checks import Checked
from jaxformer.ablation.comparison import BestRate, Comparison
from jaxformer.ablation.confirmation import confirmation_jobs, plan_confirmation
from jaxformer.ablation.earlier import EarlierRuns, describe_now, find_earlier
from jaxformer.ablation.ledger import CONFIRMATION, read_ledger
from jaxformer.ablation.records import write_record
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.commands import confirm
from jaxformer.data.corpus import part_names
from jaxformer.evaluation.validation import select_validation
from jaxformer.experiment.resolution import load_experiment, resolve, with_overrides
from jaxformer.host.files import write_json

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

RATE = "optimizer.learning_rate"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder in which `gated` was promoted."""
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments", evaluation__validation_bytes=0)
    promote(tmp_path / "runs", "gated", {"model.activation": "swiglu"}, ("next", "alias"))
    seconds = dict.fromkeys(("root", "next", "alias", "sibling"), 9.0)
    monkeypatch.setattr(confirm, "check_runs", lambda *_, **__: Checked(seconds, EarlierRuns([], [])))
    return tmp_path / "runs"


def promote(runs, variant, change, names, *, word=Word.KEEP, margin=0.004, rates=None, tuned=""):
    """Writes a variant, the comparison that it was promoted by, and the experiments that it became."""
    experiments, folder = runs.parent / "experiments", runs / variant
    folder.mkdir(parents=True, exist_ok=True)
    fake_runs.write_variant(experiments, variant, change)
    best = rates and tuple(BestRate(0.01, rate, rate, (), (), 0.0, 0.0) for rate in rates)
    compared = Comparison("root", variant, Verdict(word, "why"), margin, {}, "Is it?", best_rates=best)
    digest = write_record(runs, Study(parent="root", variants=(variant,)), compared)
    text = f"variant={variant!r}, parent='root', evidence={digest!r}, verdict='KEEP: -0.1', first_seed=1000{tuned}"
    for name in names:
        fake_runs.write_experiment(experiments, name, f"Promoted({text})")


def write_arms(runs, effect, seeds=5, names=("root", "next")):
    for seed in range(1000, 1000 + seeds):
        for name, gain in zip(names, (0.0, effect), strict=True):
            fake_runs.write_run(runs, resolve(name), seed, effect=gain, tasks=())


@pytest.mark.parametrize(("effect", "answer"), [(-0.05, "CONFIRMED"), (0.0, "NOT CONFIRMED"), (0.05, "NOT CONFIRMED")])
def test_a_gain_is_confirmed_once_and_the_answer_stays(runs, effect, answer, capsys):
    fake_runs.write_run(runs, resolve("root"), 0, effect=9.0, tasks=())  # Of another seed than the question's.
    write_arms(runs, effect)
    assert confirm.main(["next"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"next, gated: {answer}: ") and "fresh seeds alone" in printed
    (line,) = [line for line in read_ledger(runs) if line["kind"] == CONFIRMATION]
    assert line["answer"] == answer and line["seeds"] == [1000, 1001, 1002, 1003, 1004]
    before = (runs / "decisions.jsonl").read_bytes()
    for name in ("next", "alias"):  # Under another name it is the same change, and the same seeds.
        assert confirm.main([name, "--seeds=3"]) == 0
        assert f"gated: {answer}: " in (again := capsys.readouterr().out) and "answered" in again
    assert (runs / "decisions.jsonl").read_bytes() == before


def test_a_promoted_variant_that_diverges_where_its_parent_does_not_is_not_confirmed(runs, capsys):
    write_arms(runs, -0.05, seeds=2)
    fake_runs.write_run(runs, resolve("root"), 1002, tasks=())
    fake_runs.write_diverged(runs, resolve("next"), 1002)
    found = confirmation.confirm(plan_confirmation(resolve("next"), 3, runs), runs)
    assert found["reason"] == "it diverged on seed 1002, where root did not"


def test_what_cannot_be_confirmed_is_one_line_and_nothing_is_recorded(runs, capsys):
    for arguments, message in (
        (["gated"], "gated is not a promoted variant; promote one with `jaxformer promote`"),
        (["next", "--seeds=1"], "must lie in [2, 100]"),
        (["nxt"], "unknown experiment 'nxt'; did you mean next?"),
    ):
        assert confirm.main(arguments) == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
    write_arms(runs, -0.05)
    fake_runs.write_variant(
        runs.parent / "experiments", "gated", {"model.activation": "swiglu", "model.qk_norm": True}, bundle="b"
    )
    (runs / "next" / "seed_1002" / "metrics.jsonl").write_text("")
    assert confirm.main(["next"]) == 2 and not (runs / "decisions.jsonl").exists()
    (record,) = (runs / "gated").glob("comparison_*.json")
    record.unlink()
    capsys.readouterr()
    assert confirm.main(["next"]) == 2 and not (runs / "decisions.jsonl").exists()
    assert "the comparison that next was promoted by (evidence " in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_what_was_compared_at_its_best_rate_is_confirmed_at_that_of_each_arm(runs):
    own = resolve("root").experiment.optimizer.learning_rate
    rates, tuned = (2 * own, 3 * own), f", change={{{RATE!r}: {3 * own!r}}}"
    promote(runs, "gated", {"model.activation": "swiglu"}, ("next",), rates=rates, tuned=tuned)
    at_best = with_overrides(resolve("root"), {RATE: repr(2 * own)})
    planned = plan_confirmation(resolve("next"), 3, runs)
    jobs = confirmation_jobs(planned, runs, {"root": 1.0, "next": 2.0})
    assert [job.workdir for job in jobs[:2]] == [runs / "next/seed_1000", runs / at_best.name / "seed_1000"]
    assert str(jobs[1]) == f"root at {2 * own:.3g} seed 1000"
    assert jobs[1].arguments[-1] == f"--{RATE}={2 * own!r}"
    for seed in planned.seeds:
        fake_runs.write_run(runs, resolve("root"), seed, effect=0.05, tasks=())  # At its own rate, which is no arm.
        fake_runs.write_run(runs, at_best, seed, effect=-0.05, tasks=())
        fake_runs.write_run(runs, resolve("next"), seed, effect=-0.05, tasks=())
    found = confirmation.confirm(planned, runs)
    assert found["answer"] == "NOT CONFIRMED" and f"root at {2 * own:.3g}, the learning rate found" in found["reason"]
    assert found["learning_rates"] == {"parent": 2 * own, "variant": 3 * own}
    assert abs(found["difference"]["mean"]) < 0.01


@pytest.mark.parametrize("word", [Word.CHEAPER, Word.EQUIVALENT])
def test_what_was_equal_within_the_margin_of_its_study_is_confirmed_within_that(runs, word, capsys):
    write_arms(runs, 0.01)
    for margin, answer in ((0.05, "CONFIRMED"), (0.001, "NOT CONFIRMED")):
        promote(runs, "gated", {"model.activation": "swiglu"}, ("next",), word=word, margin=margin)
        assert confirm.main(["next"]) == 0 and f"next, gated: {answer}: " in capsys.readouterr().out


def test_what_is_promoted_by_other_evidence_is_asked_again_and_the_line_tells_of_the_answer_before(runs, capsys):
    write_arms(runs, 0.0)
    assert confirm.main(["next"]) == 0
    before = capsys.readouterr().out.splitlines()[-1]
    promote(runs, "gated", {"model.activation": "swiglu"}, ("next",), word=Word.EQUIVALENT, margin=0.05)
    assert confirm.main(["next"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith("next, gated: CONFIRMED: ") and "promoted by other evidence, it was NOT CON" in printed
    assert confirm.main(["alias"]) == 0 and capsys.readouterr().out.startswith(before.replace("next", "alias"))
    fake_runs.write_root(runs.parent / "experiments", optimizer__learning_rate=0.0077)
    for name in ("next", "alias"):
        assert confirm.main([name]) == 2
        assert "has changed since runs/" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_runs_of_other_code_are_refused_and_the_options_that_the_refusal_names_are_there(runs, monkeypatch, capsys):
    def check(plan, folder, *, prepare, **options):
        planned = plan(folder)
        now = describe_now(planned.experiments, jax.devices()[0].device_kind)
        return Checked(dict.fromkeys(now, 9.0), find_earlier(planned.jobs, now, **options))

    monkeypatch.setattr(confirm, "check_runs", check)
    write_arms(runs, -0.05, seeds=2)
    path = runs / "root" / "seed_1001" / "config.json"
    record = json.loads(path.read_text())
    write_json(path, {**record, "starts": [{**start, "code": "other"} for start in record["starts"]]})
    assert confirm.main(["next", "--seeds=3", "--plan"]) == 2
    advised = re.findall(r"--(?:retrain|allow=\w+)", capsys.readouterr().err)
    assert advised == ["--retrain", "--allow=code"]
    for option, noticed in zip(advised, ("1 to be set aside", ""), strict=True):
        assert confirm.main(["next", "--seeds=3", "--plan", option]) == 0
        assert noticed in (error := capsys.readouterr().err) and bool(error) == bool(noticed)
    assert confirm.main(["next", "--seeds=2"]) == 2 and "code: " in capsys.readouterr().err
    assert confirm.main(["next", "--seeds=2", "--allow=code"]) == 0
    (line,) = read_ledger(runs)
    assert line["answer"] == "CONFIRMED" and any(note.startswith("allowed: code: ") for note in line["notes"])


def test_siblings_are_confirmed_on_documents_that_neither_verdicts_nor_each_other_have_read(runs, monkeypatch):
    fake_runs.write_root(runs.parent / "experiments", evaluation__validation_bytes=9000)
    promote(runs, "normed", {"model.qk_norm": True}, ("sibling",))
    for name in ("root", "next", "sibling"):
        for seed in range(1000, 1003):
            fake_runs.write_run(runs, resolve(name), seed, tasks=())
    digests = json.loads((runs / "root/seed_1000/config.json").read_text())["digests"]
    corpora = [
        SimpleNamespace(name=name, validation=fake_shards(0, digests[f"corpus.{i}"]))
        for i, name in enumerate(part_names(resolve("root").experiment.corpus))
    ]
    monkeypatch.setattr(confirmation, "open_corpora", lambda _: (None, SimpleNamespace(digest=digests["tokenizer"])))
    monkeypatch.setattr(confirmation, "prepare_corpora", lambda *_: corpora)
    monkeypatch.setattr(confirmation, "_validated_on", lambda runs, sets: runs)
    for name in ("next", "sibling"):
        found = confirmation.confirm(plan_confirmation(resolve(name), 3, runs), runs)
        assert "documents that no verdict has read" in found["reason"]
    first, second = (line["locked"] for line in read_ledger(runs) if line["kind"] == CONFIRMATION)
    assert first.keys() == second.keys() == {each.name for each in corpora}
    for each in corpora:
        ours, theirs = (locked[each.name] for locked in (first, second))
        order = np.random.default_rng(0).permutation(300).tolist()
        places = [order.index(one[end]) for one in (ours, theirs) for end in ("first", "last")]
        assert 0 < places[0] < places[1] < places[2] < places[3]
        assert first[each.name]["data"] == each.validation.manifest.source_digest


def fake_shards(budget, digest="digest"):
    class Fake(SimpleNamespace):
        def __len__(self):
            return len(self.tokens)

    sizes = np.random.default_rng(0).integers(50, 400, 300)
    manifest = SimpleNamespace(budget=budget, source_digest=digest, corpus_digest=digest)
    return Fake(tokens=sizes // 4, text_bytes=sizes, manifest=manifest, sources=np.arange(300) // 2 * 2)


@pytest.mark.parametrize("budget", [0, 1])
def test_locked_documents_are_used_up_each_once_without_pieces_of_what_was_read(budget):
    shards, experiment = fake_shards(budget), load_experiment("baseline", {"evaluation.validation_bytes": "9000"})
    validating = select_validation(shards, experiment.evaluation, experiment.packing, "a").documents
    read, sizes, before = [{"data": "of other text", "drawn_from": 300, "last": 7}], [], [validating]
    while len(chosen := (found := confirmation._locked_set(shards, experiment, "a", 9000, read)).documents):
        assert not np.isin(shards.sources[chosen], shards.sources[np.concatenate(before)]).any()
        before.append(chosen)
        read.append(json.loads(json.dumps(confirmation._describe_locked(found))))
        sizes.append(shards.text_bytes[chosen].sum())
    assert len(sizes) > 3 and all(9000 <= size < 9400 for size in sizes[:-1]) and sizes[-1] < 9400
    in_another_order = [{**read[1], "drawn_from": 299}]
    assert not len(confirmation._locked_set(shards, experiment, "a", 9000, in_another_order).documents)
