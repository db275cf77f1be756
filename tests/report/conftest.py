"""A study of every kind of variant, and its report."""

import pytest
from fake_runs import HOSTILE, write_clock, write_diverged, write_merge, write_root, write_study, write_variant

from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study
from jaxformer.data.corpus import CorpusConfig
from jaxformer.experiment.resolution import resolve
from jaxformer.report import figures
from jaxformer.report.write import write_report


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory):
    """A folder with the experiments and runs of a study."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def folder(outcome, study_folder, monkeypatch):
    """The working folder, in which the experiments of the study are found by name."""
    monkeypatch.chdir(study_folder)
    return study_folder


@pytest.fixture(scope="session")
def outcome(study_folder):
    """Of a study with each kind of variant: kept, reverted, moved data, merged, hostile, failed and not run at all."""
    experiments, runs = study_folder / "experiments", study_folder / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study_folder)
        parts = tuple(CorpusConfig(kind="jsonl", path=f"{name}.jsonl", weight=1.0) for name in ("books", "talks"))
        write_root(experiments, corpus=CorpusConfig(kind="mixture", parts=parts))
        write_variant(experiments, "muon", {"optimizer.name": "muon"}, expected=(-0.02, -0.01))
        write_variant(experiments, "swiglu", {"model.activation": "swiglu"}, question=HOSTILE, source=HOSTILE)
        write_variant(experiments, "slow", {"optimizer.learning_rate": 1e-3})
        write_variant(experiments, "long", {"packing.row_length": 512})
        write_variant(experiments, "deep", {"model.depth": 9})
        write_variant(experiments, "later", {"tokenizer.path": HOSTILE})
        write_variant(experiments, "muon_deep", {"model.depth": 6}, parent="muon")
        write_merge(experiments, "joined", ("muon", "swiglu"))
        names = ("root", "muon", "swiglu", "slow", "long", "muon_deep", "joined")
        effects = {"muon": -0.05, "swiglu": -0.03, "slow": 0.04, "long": -0.01, "muon_deep": -0.05, "joined": -0.09}
        write_study(runs, names, effects=effects, seeds=3, items=20)
        write_diverged(runs, resolve("deep"), 0)
        for name, ratio in {"swiglu": 1.07, "slow": 1.01}.items():
            write_clock(runs, "root", name, ratio)
        return judge_study(Study(parent="root", variants=(*names[1:], "deep", "later")), runs)


@pytest.fixture(scope="session")
def report(outcome, study_folder):
    """The folder of its report."""
    return write_report(outcome, study_folder / "report").parent


@pytest.fixture
def without_png(monkeypatch):
    """Pictures in the page only, which is faster."""
    monkeypatch.setattr(figures, "save_png", lambda figure, path: None)
