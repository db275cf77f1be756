"""The command that tells whether an effect at small sizes holds at a larger one, on runs that nothing trained."""

import json
import re
import shutil
from pathlib import Path

import fake_runs
import pytest

from jaxformer.ablation import sizes, transfer
from jaxformer.ablation.transfer_result import Proposal, TransferResult
from jaxformer.commands import transfer as command
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.report.transfer import describe_transfer

pytestmark = pytest.mark.device_free

SIZES = {"tiny": (2, 20), "little": (4, 40), "middle": (8, 80), "target": (16, 160)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of two changes at three sizes: one is worth the same at all, the other is trained at two."""
    folder = tmp_path_factory.mktemp("transfer")
    for name, (depth, steps) in SIZES.items():
        fake_runs.write_root(folder / "experiments", name, steps=steps, model__depth=depth)
    fake_runs.write_variant(folder / "experiments", "good", {"model.qk_norm": True}, parent="little")
    fake_runs.write_variant(folder / "experiments", "deeper", {"model.depth": 16}, parent="little")
    fake_runs.write_variant(folder / "experiments", "unasked", {"model.tied_embeddings": False}, parent="little")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        noise = fake_runs.Noise(run=0.001, effect=0.05, residue=0.001)
        for size in ("tiny", "little", "middle"):
            parent = resolve(size)
            variant = resolve_variant_of(parent, "good")
            for seed in range(3):
                options = {"noise": noise, "tasks": (), "documents": 12}
                fake_runs.write_run(folder / "runs", parent, seed, **options)
                fake_runs.write_run(folder / "runs", variant, seed, effect=-0.05, **options)
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sizes, "list_experiments", lambda: [*SIZES, "good", "deeper"])  # The others take seconds.


def test_an_effect_that_is_the_same_at_three_sizes_transfers(capsys):
    assert command.main(["--variants=good", "--target=target", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["good"]
    assert found["word"] == "TRANSFERS" and found["interval"][0] < -0.05 < found["interval"][1] < 0
    # A variant differs in its depth alone and is a question, not a size.
    assert [one["parent"] for one in found["sizes"]] == ["tiny", "little", "middle"]
    assert [one["variant"] for one in found["sizes"]] == ["good@tiny", "good", "good@middle"]
    assert found["compute"] == training_flops(resolve("target").experiment)
    assert not found["sizes"][0]["tuned"] and found["designs"] == {}


def ask(variant, **options):
    aim = resolve("target")
    return transfer.ask_transfer(variant, aim, sizes.find_sizes(aim), Path("runs"), **options)


def proposal_of(found: TransferResult) -> Proposal:
    assert found.proposal
    return found.proposal


@pytest.fixture
def elsewhere(place, tmp_path, monkeypatch):
    """The same, in a folder of its own."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys, *arguments):
    assert command.main([*arguments, "--target=target", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    return found


def test_an_effect_of_another_sign_at_each_size_is_unknown_and_each_size_counts(elsewhere, capsys):
    noise = fake_runs.Noise(run=0.001, effect=0.05)
    for size, effect in (("tiny", -0.05), ("little", 0.03), ("middle", -0.03)):
        for seed in range(3):
            one = resolve_variant_of(resolve(size), "good")
            fake_runs.write_run(elsewhere / "runs", one, seed, effect=effect, noise=noise, tasks=(), documents=12)
    found = answer(capsys, "--variants=good", "--effect=0.03")
    assert found["word"] == "UNKNOWN" and found["interval"][0] < 0 < found["interval"][1]
    assert [one["why_not"] for one in found["sizes"]] == ["", "", ""] and found["assumed"] == []
    assert found["designs"]["target"]["commands"][0].startswith("jaxformer ablate --parent=target --variants=good")
    assert found["designs"]["target"]["device_hours"] > 0 and found["designs"]["target"]["suffices"]
    found = answer(capsys, "--variants=good", "--effect=0.03", "--budget=1e-9")
    assert not any(design["suffices"] for design in found["designs"].values())


def test_of_two_sizes_of_one_compute_a_line_says_which_does_not_count(elsewhere, capsys, monkeypatch):
    fake_runs.write_root(elsewhere / "experiments", "twin", steps=40, model__depth=4, optimizer__learning_rate=2e-3)
    monkeypatch.setattr(sizes, "list_experiments", lambda: [*SIZES, "twin", "good"])
    for one in (resolve("twin"), resolve_variant_of(resolve("twin"), "good")):
        for seed in range(2):
            fake_runs.write_run(elsewhere / "runs", one, seed, tasks=(), documents=12)
    found = answer(capsys, "--variants=good")
    assert {one["parent"]: one["why_not"] for one in found["sizes"] if one["why_not"]} == {
        "twin": "little is as large, and counts for both"
    }
    assert command.main(["--variants=good", "--target=target"]) == 0
    assert "twin does not count: little is as large, and counts for both" in capsys.readouterr().out


def test_before_any_run_a_design_is_printed_with_what_it_assumes(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(command, "output_columns", lambda: 79)
    assert command.main(["--variants=unasked", "--target=target", "--effect=0.03"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "UNKNOWN  unasked, at target"
    text = " ".join(" ".join(lines).split())
    assert "no size has finished runs of unasked and of its parent, in the folder runs" in text
    assert "assumed, since no run has shown it yet: a seed's difference scatters by 0.0" in text
    assert any(line.strip().startswith("jaxformer ablate --parent=tiny --variants=unasked --seeds=") for line in lines)
    assert not list((elsewhere / "runs").glob("reports/**/unasked*"))
    with_hours = answer(capsys, "--variants=unasked", "--budget=1000")
    assert with_hours["designed_for"] == 0.005 and "0.005 bits per byte matter (--effect)" in with_hours["assumed"]
    assert with_hours["designs"]["sizes"]["device_hours"] > 0
    shutil.rmtree(elsewhere / "runs")
    found = answer(capsys, "--variants=unasked")["designs"]["sizes"]
    assert found["operations"] > 1e6 and "device_hours" not in found
    assert command.main(["--variants=unasked", "--target=target", "--budget=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--budget: no finished run of target or of a smaller size shows how long runs take")


def test_what_documents_do_at_two_sizes_is_correlated_as_they_show(monkeypatch):
    """These runs' effects differ between documents alike at all sizes."""
    found = []
    real = transfer.error_covariance
    monkeypatch.setattr(transfer, "error_covariance", lambda *a, **k: found.append(k["correlation"]) or real(*a, **k))
    ask("good")
    monkeypatch.setattr(transfer, "have_same_documents", lambda *_: False)
    ask("good")
    measured, assumed = found
    assert measured > 0.9 and assumed == 0.5


def test_the_noise_of_a_size_is_its_own_where_others_moderate_it(monkeypatch):
    monkeypatch.setattr(transfer, "decide", lambda _: (transfer.TransferVerdict.UNKNOWN, ""))
    own, real = ask("good"), transfer.compare_study

    def moderated(*arguments):
        found, (one,), questions = real(*arguments)
        assert one.difference
        _, *noise = one.difference[:3]
        difference = one.difference._replace(seed_variance=noise[0] / 9, seed_degrees_of_freedom=99.0, own=tuple(noise))
        return found, [one._replace(difference=difference)], questions

    monkeypatch.setattr(transfer, "compare_study", moderated)
    found = ask("good")
    assert [one.difference for one in found.sizes] != [one.difference for one in own.sizes]
    assert found.prediction == own.prediction and proposal_of(found).options == proposal_of(own).options


def test_runs_of_the_parent_that_are_there_are_not_charged_again(monkeypatch):
    options = dict(proposal_of(ask("unasked", effect=0.03)).options)
    assert {name: (one.seeds, one.parent_seeds) for name, one in options.items()} == {
        **dict.fromkeys(("tiny", "little", "middle"), (0, 3)),
        "target": (0, 0),
    }
    assert all(one.parent_hours == pytest.approx(one.hours / 2) for one in options.values())
    monkeypatch.setattr(transfer, "decide", lambda _: (transfer.TransferVerdict.UNKNOWN, ""))
    found = ask("good")
    for name, one in proposal_of(found).options[:3]:
        (size,) = (each for each in found.sizes if each.size == name)
        assert (one.seeds, one.parent_seeds, one.parent_hours) == (3, 3, pytest.approx(size.parent_hours))
        assert 0 < size.parent_hours < size.hours


def test_no_verdict_is_recorded(elsewhere, capsys):
    assert answer(capsys, "--variants=good")["word"] == "TRANSFERS"
    assert not [*elsewhere.rglob("decisions.jsonl"), *elsewhere.rglob("comparison_*.json")]


def test_what_exceeds_the_budget_is_not_proposed(capsys):
    assert command.main(["--variants=unasked", "--target=target", "--effect=0.03", "--budget=0.0001"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("nothing suffices within 0.0001 device hours") == 2 and "jaxformer ablate" not in text
    assert re.search(r"3 seeds of \w+ alone decide nothing: their sign matches", text)


def test_at_24_seeds_of_each_nothing_is_proposed_and_a_line_says_why():
    found = ask("unasked", effect=0.03)
    options = [(name, one._replace(seeds=24)) for name, one in proposal_of(found).options]
    designs = transfer.cheapest_design([one for _, one in options], 0.03)
    proposal = proposal_of(found)._replace(options=options, designs=designs)
    text = " ".join(" ".join(describe_transfer(found._replace(proposal=proposal))).split())
    assert "close enough to it, or they have 24 seeds" in text and "at the target itself: it has 24 seeds" in text


def test_each_size_is_resolved_once_for_all_variants(capsys, monkeypatch):
    resolved = []
    monkeypatch.setattr(sizes, "resolve", lambda name: resolved.append(name) or resolve(name))
    assert command.main(["--variants=good,unasked", "--target=target", "--json"]) == 0
    assert resolved == ["tiny", "little", "middle"]


def test_with_two_sizes_nothing_is_known_and_the_cheapest_design_is_printed_at_80_columns(place, capsys, monkeypatch):
    shutil.move(place / "runs/good@middle", place / "kept")
    monkeypatch.setattr(command, "output_columns", lambda: 79)
    try:
        assert command.main(["--variants=good", "--target=target", "--effect=0.03"]) == 0
    finally:
        shutil.move(place / "kept", place / "runs/good@middle")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["UNKNOWN  good, at target", "  2 of at least 3 sizes: fewer show no trend."]
    commands = [line.strip() for line in lines if line.startswith("      ")]
    assert any(line.startswith("jaxformer ablate --parent=middle --variants=good --seeds=") for line in commands)
    assert max(len(line) for line in lines if line.strip() not in commands) < 80
    assert any("the learning rate of tiny, little is untuned" in line for line in lines)
    assert (place / lines[-1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants=deeper"], r"deeper.*model.depth"),
        (["--variants=good+unasked@tiny"], r"good\+unasked@tiny joins several changes: name one alone"),
        (["--variants=good", "--effect=0"], r"--effect \(0.0\) must be above 0"),
        (["--variants=good", "--effect=inf"], r"--effect \(inf\) must be above 0 and at most 8"),
        (["--variants=good", "--effect=nan"], r"--effect \(nan\) must be above 0 and at most 8"),
        (["--variants=good", "--budget=-1"], r"--budget \(-1.0\) must be above 0"),
        (["--variants=,"], "--variants names no variant"),
        (["--variants=good@tiny"], "good@tiny is a change at one size: name it without the size, good"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, capsys):
    assert command.main([*arguments, "--target=target"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
