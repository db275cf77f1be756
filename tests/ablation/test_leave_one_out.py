"""What the gain of a promoted experiment is made of: planted parts are found again, and every contrast adds up."""

import hashlib
import json
import shutil

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.judge import judge
from jaxformer.ablation.leave_one_out import DROP, STAYS, leave_one_out
from jaxformer.ablation.ledger import read_ledger
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.records import comparison_file
from jaxformer.ablation.study import Study, ended_jobs, make_jobs
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError
from jaxformer.experiment.resolution import resolve
from jaxformer.report.html import make_page
from jaxformer.report.leave_one_out import draw_composition
from jaxformer.report.markdown import make_markdown
from jaxformer.report.style import drawing
from jaxformer.report.text import decision_table

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

QUIET = fake_runs.Noise(run=0.0005, effect=0.02, residue=0.001)
# What each experiment differs by from nothing. Together, `wsd` and `normed` gain less than apart: by 0.02.
EFFECTS = {"gen2": -0.06, "gen2_without_wsd": -0.04, "gen2_without_normed": -0.0600001, "root": 0.0}
SEEDS = (2000, 2001, 2002)


def promoted(variant, parent, first_seed, evidence="0" * 64):
    fields = f"variant={variant!r}, parent={parent!r}, evidence={evidence!r}, verdict='KEEP', first_seed={first_seed}"
    return f"Promoted({fields})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A promoted experiment that keeps two changes, and the runs of all that its gain is made of."""
    folder = tmp_path_factory.mktemp("leave_one_out")
    experiments, runs = folder / "experiments", folder / "runs"
    fake_runs.write_root(experiments)
    fake_runs.write_variant(experiments, "wsd", {"optimizer.schedule": "wsd"}, expected=(-0.05, -0.01))
    fake_runs.write_variant(experiments, "normed", {"model.qk_norm": True})
    options = {"tasks": (), "noise": QUIET}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_runs.write_study(runs, ["root", "wsd"], effects={"wsd": -0.04}, **options)
        study = Study(parent="root", variants=("wsd",))
        judge_study(study, runs)
        evidence = hashlib.sha256((runs / "wsd" / comparison_file(study)).read_bytes()).hexdigest()
        fake_runs.write_experiment(experiments, "gen1", promoted("wsd", "root", 1000, evidence))
        fake_runs.write_experiment(experiments, "gen2", promoted("normed", "gen1", 2000))
        for name, effect in EFFECTS.items():
            for seed in SEEDS:
                fake_runs.write_run(runs, resolve(name), seed, effect=effect, **options)
    return folder


@pytest.fixture
def outcome(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return judge_study(leave_one_out("gen2", 3, 3), folder / "runs")


def test_parts_total_and_overlap_are_those_that_were_planted(outcome, folder):
    made_of = outcome.composition
    wsd, normed = made_of.parts
    assert (wsd.name, wsd.decision, normed.name, normed.decision) == ("wsd", STAYS, "normed", DROP)
    assert wsd.now.mean == pytest.approx(-0.02, abs=0.003) and normed.now.mean == pytest.approx(0, abs=0.003)
    assert wsd.when_kept.mean == pytest.approx(-0.04, abs=0.003) and normed.when_kept is None
    assert (made_of.root, made_of.why_not) == ("root", "")
    recorded = {line["variant"]: line["leaves_out"] for line in read_ledger(folder / "runs")}
    assert recorded == {"wsd": "", "gen2_without_wsd": "wsd", "gen2_without_normed": "normed"}
    assert made_of.total.mean == pytest.approx(-0.06, abs=0.003)
    assert made_of.overlap.mean == pytest.approx(made_of.total.mean - wsd.now.mean - normed.now.mean, abs=1e-12)

    # Its error counts that all arms share seeds: it is that of one contrast for each seed.
    bits = {
        name: np.array([run.bits_per_byte for run in outcome.runs.get(name, [])][-3:])
        for name in EFFECTS
        if name != "root"
    }
    summaries = [json.loads((folder / f"runs/root/seed_{seed}/summary.json").read_text()) for seed in SEEDS]
    root_S = np.array([one["validation/bits_per_byte"] for one in summaries])
    contrast_S = bits["gen2_without_wsd"] + bits["gen2_without_normed"] - bits["gen2"] - root_S
    assert made_of.overlap.mean == pytest.approx(contrast_S.mean(), abs=1e-6)
    alone = contrast_S.var(ddof=1) / 3
    assert 0.999 * alone < made_of.overlap.seed_variance < 2 * alone < 0.01 * root_S.var(ddof=1) / 3


def test_a_run_of_the_root_that_cannot_be_read_is_named_and_its_runs_are_the_studys(folder, outcome):
    path = folder / "runs/root/seed_2000/metrics.jsonl"
    before = path.read_bytes()
    assert [run.seed for run in outcome.runs["root"]] == list(SEEDS) and outcome.unread == ()
    path.write_bytes(b"")
    found = judge_study(outcome.study, folder / "runs")
    path.write_bytes(before)
    assert found.unread == (f"{path}: steps are missing; train the run again",) and found.composition.total
    assert judge("gen2", "gen2_without_wsd", folder / "runs").comparison.verdict.word is Word.REVERT


def test_the_study_has_a_run_of_the_root_for_each_seed_of_the_removals(folder, monkeypatch):
    monkeypatch.chdir(folder)
    study = leave_one_out("gen2", 2, 3)
    assert (study.parent, study.variants) == ("gen2", ("gen2_without_wsd", "gen2_without_normed"))
    jobs = make_jobs(study, folder / "runs", dict.fromkeys(EFFECTS, 1.0)).now
    found = [job for job in jobs if job.name == "root"]
    assert [job.seed for job in found] == [2000, 2001] and found[0].estimated_seconds == 1
    assert found[0].arguments[:2] == ("--experiment=root", "--seed=2000")
    assert [job.seed for job in jobs if job.name == "gen2"] == [2000, 2001, 2002]
    ended = {(job.name, job.seed) for job in ended_jobs(study, folder / "runs")}
    assert ended == {(name, seed) for name in EFFECTS for seed in SEEDS}, "which are checked, those of the root too"


def test_removals_count_among_their_like_though_what_was_tuned_for_a_merge_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "experiments"
    fake_runs.write_root(experiments)
    fake_runs.write_variant(experiments, "wsd", {"optimizer.schedule": "wsd"})
    fake_runs.write_variant(experiments, "normed", {"model.qk_norm": True})
    fake_runs.write_merge(experiments, "both", ("wsd", "normed"))
    tuned = ", change={'optimizer.learning_rate': 0.0123})"
    fake_runs.write_experiment(experiments, "gen1", promoted("both", "root", 1000).removesuffix(")") + tuned)
    names = "gen1_without_wsd", "gen1_without_normed"
    for name in ("gen1", *names):
        fake_runs.write_run(tmp_path / "runs", resolve(name), 1000, tasks=())
    assert judge("gen1", names[0], tmp_path / "runs").questions == names
    assert judge("gen1", names[1], tmp_path / "runs").questions == names[::-1]


def test_what_is_made_of_what_is_shown_everywhere(outcome):
    text, markdown = decision_table(outcome), make_markdown(outcome, ())
    for shown in (text, markdown, make_page(outcome, ())):
        assert "What the gain is made of" in shown and "STAYS" in shown and "DROP" in shown
    (row,) = (line for line in text.splitlines() if line.startswith("wsd "))
    assert f"{outcome.composition.parts[0].now.mean:+.4f}" in row
    with drawing():
        assert draw_composition(outcome) is not None
    assert "overlap" in text and "The total is unknown" not in text


def test_what_cannot_be_known_is_not_shown_and_a_removal_that_fails_means_that_the_change_stays(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    runs = shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.rmtree(runs / "gen2_without_normed")
    fake_runs.write_diverged(runs, resolve("gen2_without_normed"), 2000)
    path = runs / "root" / "seed_2001" / "config.json"
    record = json.loads(path.read_text())
    start = record["starts"][0] | {"environment": {"JAX_X": "1"}}
    path.write_text(json.dumps(record | {"starts": [start]}))
    outcome = judge_study(leave_one_out("gen2", 3, 3), runs)
    made_of = outcome.composition
    assert (made_of.parts[1].now, made_of.parts[1].decision) == (None, STAYS)
    assert (
        made_of.total is made_of.overlap is None and "gen2 and root are not compared: environment: " in made_of.why_not
    )
    assert "The total is unknown: gen2 and root are not compared" in " ".join(decision_table(outcome).split())


def test_one_kept_change_is_no_question_and_what_is_needed_is_named_and_left_in(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="gen1 keeps only one change, wsd: compare it with root"):
        leave_one_out("gen1", 3, 3)
    fake_runs.write_variant(folder / "experiments", "share", {"optimizer.decay_share": 0.4}, parent="wsd")
    fake_runs.write_experiment(folder / "experiments", "shared", promoted("share", "gen1", 2000))
    assert leave_one_out("shared", 3, 3).variants == ("shared_without_share",)
    assert "not left out: wsd cannot be left out of shared, since share needs it" in capsys.readouterr().err
