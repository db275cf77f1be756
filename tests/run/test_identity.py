"""What identifies a run is compared, a folder of another is refused, and the digest tells one program from another."""

import json
import subprocess

import pytest

from jaxformer.config import UserError
from jaxformer.experiment.resolution import load_experiment
from jaxformer.host.files import write_json
from jaxformer.record import check_same
from jaxformer.run import identity
from jaxformer.run.identity import check_folder, identify

pytestmark = pytest.mark.device_free


def test_a_new_folder_belongs_to_anyone_and_a_used_one_to_its_run(tmp_path):
    ours = {"model.width": 8, "seed": 0}
    check_folder(tmp_path / "new", ours, "identity")
    write_json(tmp_path / "config.json", {"identity": ours})
    check_folder(tmp_path, ours, "identity")
    with pytest.raises(UserError, match=r"another configuration \(seed: 0 -> 1\)"):
        check_folder(tmp_path, ours | {"seed": 1}, "identity")


def test_many_differences_are_reported_in_one_short_line():
    ours, theirs = ({f"key{i}": value for i in range(8)} for value in (1, 2))
    with pytest.raises(UserError, match=r"key4: 2 -> 1 and 3 more\)"):
        check_same("this belongs", ours, theirs)


def test_the_identity_names_the_seed_and_the_precision_of_the_device():
    baseline = identify(load_experiment("baseline"), seed=7)
    assert baseline["seed"] == 7 and baseline["training.compute_dtype"] == "float32"
    assert json.loads(json.dumps(baseline)) == baseline


def test_a_field_that_was_added_is_of_no_identity_until_it_is_set():
    """Runs from before are the same runs."""
    of = {name: identify(load_experiment(name), seed=0) for name in ("double_size", "complete_p")}
    assert not [path for path in of["double_size"] if path.startswith("model.scaling")]
    assert of["complete_p"]["model.scaling.part"] == "jaxformer.parts.complete_p.CompletePScaling"


def test_what_a_run_starts_from_is_identified_by_its_parameters_and_not_by_its_path():
    here, there = (load_experiment("baseline", {"init_from": path}) for path in ("runs/a", "/elsewhere/a"))
    assert identify(here, 0, "digest") == identify(there, 0, "digest") != identify(here, 0, "other")
    for experiment, digest in ((here, ""), (load_experiment("baseline"), "digest")):
        with pytest.raises(ValueError, match="and of no others"):
            identify(experiment, 0, digest)


def digests_with(monkeypatch, name, before, after):
    """Returns the digests of what trains and of what evaluates if one of the sources had another text."""

    def changed(module):
        text = source(module)
        if module == name:
            assert before.encode() in text
            text = text.replace(before.encode(), after.encode())
        return text

    source = identity._source
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_source", changed)
        return identity.code_digest.__wrapped__(), identity.evaluation_code_digest.__wrapped__()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("jaxformer.layers", "INITIAL_SCALE = 0.02", "INITIAL_SCALE = 0.03"),
        ("jaxformer.attention.flash_kernels", "jnp.", "np."),
        ("jaxformer.attention.cudnn", "jnp.", "np."),
        ("jaxformer.data.packing", "DIGESTS = 1 << 48", "DIGESTS = 1 << 40"),
        ("jaxformer.loop", "step + 1", "step + 2"),
        ("jaxformer.data.packing", "    document_mask: bool = True", "    document_mask: bool = False"),
        ("jaxformer.optimizer", "MUON_RMS = 0.2", "MUON_RMS = 0.3"),
    ],
)
def test_the_code_digest_reports_what_computes(monkeypatch, name, before, after):
    assert digests_with(monkeypatch, name, before, after)[0] != identity.code_digest()


@pytest.mark.parametrize(
    ("name", "before", "after", "decides"),
    [
        ("jaxformer.evaluation.scores", "math.log(2)", "math.log(3)", (False, True)),
        ("jaxformer.evaluation.tasks", "jsonl", "json", (False, True)),
        ("jaxformer.layers", "INITIAL_SCALE = 0.02", "INITIAL_SCALE = 0.03", (True, True)),
        ("jaxformer.optimizer", "MUON_RMS = 0.2", "MUON_RMS = 0.3", (True, False)),
    ],
)
def test_what_only_evaluates_decides_no_training(monkeypatch, name, before, after, decides):
    found = digests_with(monkeypatch, name, before, after)
    assert decides == (found[0] != identity.code_digest(), found[1] != identity.evaluation_code_digest())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("jaxformer.layers", "# Standard deviation of matrices", "# The deviation of matrices"),
        ("jaxformer.model", "The shape of the model and its options.", "What a model is."),
        ("jaxformer.model", '    """L, blocks."""\n', ""),
        ("jaxformer.data.packing", "Batches that are read ahead.", "How far the reader is ahead."),
        ("jaxformer.report.html", "def ", "def other_"),
        ("jaxformer.ablation.verdict", "0.8", "0.9"),
        ("jaxformer.run.progress", "tokens/s", "tokens per second"),
    ],
)
def test_the_code_digest_looks_past_words_and_what_only_tells(monkeypatch, name, before, after):
    found = digests_with(monkeypatch, name, before, after)
    assert found == (identity.code_digest(), identity.evaluation_code_digest())


def test_the_git_state_names_the_commit_and_every_change_of_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(identity, "_ROOT", tmp_path)
    state = identity.git_state.__wrapped__
    package = tmp_path / "jaxformer"
    package.mkdir()
    (package / "__init__.py").write_text("A = 1\n")
    assert state() is None, "no repository"
    git("init", "-q")
    assert state() is None, "a repository of something else, in which the package is ignored or new"
    git("add", "jaxformer")
    git("commit", "-qm", "first")
    assert state() == {"commit": git("rev-parse", "HEAD"), "changes": None}
    (tmp_path / "notes.txt").write_text("beside the package")
    assert state()["changes"] is None
    seen = []
    for name, text in (("__init__.py", "A = 2\n"), ("new.py", "B = 1\n"), ("new.py", "B = 2\n")):
        (package / name).write_text(text)
        seen.append(state()["changes"])
    assert len(set(seen)) == 3 and {len(digest) for digest in seen} == {64}
