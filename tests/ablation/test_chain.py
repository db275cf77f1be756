"""A chain asks each question of what was kept of those before it, and goes on where it was stopped."""

import math
from types import SimpleNamespace

import fake_runs
import pytest

from jaxformer.ablation.chain import Chain, run_chain
from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study, resolve_study
from jaxformer.ablation.study_file import choose_study, load_study, no_chain
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.commands import ablate
from jaxformer.config import UserError

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

# Of each change, bits per byte: one is kept, one is worse, one is lost in the noise of a seed.
EFFECTS = {"gated": -0.05, "normed": 0.05, "windowed": -0.017, "untied": -0.05}


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "experiments"
    fake_runs.write_root(experiments)
    changes = ("model.activation", "swiglu"), ("model.qk_norm", True), ("model.z_loss", 1e-4)
    for name, (path, value) in zip(EFFECTS, [*changes, ("model.tied_embeddings", False)], strict=True):
        fake_runs.write_variant(experiments, name, {path: value})
    (experiments / "studies").mkdir()
    (experiments / "studies" / "stack.py").write_text(
        f"from jaxformer import Chain\nSTUDY = Chain(parent='root', variants={tuple(EFFECTS)}, most_seeds=5)\n"
    )
    return load_study("stack")


def asker(runs, asked):
    """Returns what makes up the runs of a question that are missing, and judges it."""

    def ask(study):
        asked.append((study.parent, study.variants[0], study.seeds))
        for one in resolve_study(study):
            # Of every change that led to it, the own one among them.
            names = [*one.name.split("@")[0].removeprefix("stack_").split("-"), *one.name.split("@")[1:]]
            effect = sum(EFFECTS.get(name.removeprefix("stack_"), 0.0) for name in names)
            for seed in range(one.first_seed, one.first_seed + study.seeds):
                if not (runs / one.name / f"seed_{seed}").is_dir():
                    fake_runs.write_run(runs, one, seed, effect=effect, tasks=(), ends=len(asked) * 1e5 + 60.0 * seed)
        return judge_study(study, runs).comparisons[0]

    return ask


def test_each_question_is_put_to_what_was_kept_before_it(chain, tmp_path):
    runs, asked = tmp_path / "runs", []
    answers = [*run_chain(chain, "stack", runs, asker(runs, asked))]
    assert [(answer.parent, answer.kept) for answer in answers] == [
        ("root", "stack_gated"),
        ("stack_gated", ""),
        ("stack_gated", ""),
        ("stack_gated", "stack_untied"),
    ]
    for (parent, variant), word in ((("root", "gated"), Word.KEEP), (("stack_gated", "normed"), Word.REVERT)):
        (one,) = judge_study(Study(parent=parent, variants=(variant,)), runs).comparisons
        assert one.verdict.word == word
    # What is undecided is followed to the next interim analyses, as far as the chain says.
    assert asked[:2] == [("root", "gated", 3), ("stack_gated", "normed", 3)]
    assert [seeds for _, variant, seeds in asked if variant == "windowed"] == [3, 4, 5]

    again, files = [], {path: path.read_bytes() for path in (tmp_path / "experiments").rglob("*.py")}
    assert [*run_chain(chain, "stack", runs, asker(runs, again))] == answers
    # What is promoted stays so, whatever it would be judged now.
    assert again == [question for question in asked if question[1] in ("normed", "windowed")]
    assert files == {path: path.read_bytes() for path in (tmp_path / "experiments").rglob("*.py")}


def test_a_question_that_cannot_be_judged_ends_the_chain(chain, tmp_path):
    with pytest.raises(UserError, match="gated of root could not be judged"):
        next(run_chain(chain, "stack", tmp_path / "runs", lambda study: None))


def test_a_question_whose_runs_failed_is_not_taken_for_one_that_was_not_kept(chain, tmp_path, monkeypatch, capsys):
    waiting = Comparison("root", "gated@root", Verdict(Word.UNDECIDED, "runs are missing", None), math.nan, {})
    failures = []
    monkeypatch.setattr(ablate, "_ablate", lambda *_: (failures, SimpleNamespace(comparisons=[waiting])))
    assert ablate.main(["--study=stack", "--runs=runs"]) == 0
    assert "gated: not kept: root stays" in capsys.readouterr().out
    failures.append(SimpleNamespace(job=SimpleNamespace(workdir=tmp_path / "crashed")))
    assert ablate.main(["--study=stack", "--runs=runs"]) == 2
    assert "gated of root could not be judged" in capsys.readouterr().err
    # A run that diverges does so again: the question is answered by the others.
    monkeypatch.setattr(ablate, "has_diverged", lambda workdir: workdir.name == "crashed")
    assert ablate.main(["--study=stack", "--runs=runs"]) == 1


def test_a_chain_is_no_study_to_other_commands(chain):
    assert isinstance(chain, Chain)
    with pytest.raises(UserError, match="this is a chain"):
        no_chain(choose_study("stack", None, None))
    with pytest.raises(UserError, match="names a variant twice"):
        Chain(parent="root", variants=("gated", "gated"))


def test_a_chain_has_no_plan(chain, capsys):
    assert ablate.main(["--study=stack", "--plan"]) == 2
    assert "plan one question with --parent and --variants" in capsys.readouterr().err
