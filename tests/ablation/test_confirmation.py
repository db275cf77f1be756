"""A promoted variant is confirmed once, on seeds and documents that no verdict has read."""

from types import SimpleNamespace

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.checks import EarlierRuns
from jaxformer.ablation.confirmation import _window, ask, make_jobs
from jaxformer.ablation.ledger import CONFIRMATION, read_ledger
from jaxformer.ablation.run_study import Checked
from jaxformer.commands import confirm
from jaxformer.evaluation.validation import select_validation
from jaxformer.experiment.resolution import load_experiment, resolve

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder in which `gated` was promoted."""
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "experiments"
    fake_runs.write_root(experiments, evaluation__validation_bytes=0)
    fake_runs.write_variant(experiments, "gated", {"model.activation": "swiglu"})
    text = f"Promoted(variant='gated', parent='root', evidence={'0' * 64!r}, verdict='KEEP: -0.1', first_seed=1000)"
    fake_runs.write_experiment(experiments, "next", text)
    fake_runs.write_experiment(experiments, "alias", text)
    seconds = dict.fromkeys(("root", "next", "alias"), 9.0)
    monkeypatch.setattr(confirm, "check_study", lambda study, runs, **_: Checked(seconds, EarlierRuns([], [])))
    return tmp_path / "runs"


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
    from jaxformer.ablation.confirmation import confirm as answer

    assert answer(ask(resolve("next"), 3), runs)["reason"] == "it diverged on seed 1002, where root did not"


def test_what_cannot_be_confirmed_is_one_line_and_nothing_is_recorded(runs, capsys):
    for arguments, message in (
        (["gated"], "gated is no promoted variant; `jaxformer promote` makes one"),
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


def test_both_arms_are_trained_on_the_seeds_of_the_new_parent(runs):
    jobs = make_jobs(ask(resolve("next"), 2), runs, {"root": 1.0, "next": 2.0})
    assert [(job.name, job.seed) for job in jobs] == [("next", 1000), ("root", 1000), ("next", 1001), ("root", 1001)]
    assert jobs[1].arguments == ("--experiment=root", "--seed=1000", f"--workdir={runs / 'root' / 'seed_1000'}")


@pytest.mark.parametrize("budget", [0, 1])
def test_documents_of_a_confirmation_are_none_that_validate_runs_nor_those_of_another_generation(budget):
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 400, 300)

    class Fake(SimpleNamespace):
        def __len__(self):
            return len(self.tokens)

    manifest, sources = SimpleNamespace(budget=budget), np.arange(300)
    shards = Fake(tokens=sizes // 4, text_bytes=sizes, manifest=manifest, sources=sources)
    experiment = load_experiment("baseline", {"evaluation.validation_bytes": "9000"})
    read = select_validation(shards, experiment.evaluation, experiment.packing, "a").documents
    windows = [_window(shards, experiment, "a", number, 9000).documents for number in range(1, 10)]
    assert all(9000 - 400 <= sizes[one].sum() <= 9000 + 400 for one in windows[:5]) and not len(windows[-1])
    everything = np.concatenate([read, *windows])
    assert len(set(everything.tolist())) == len(everything) == 300
