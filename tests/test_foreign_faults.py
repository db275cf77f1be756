"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import json
import shutil
import signal
import subprocess
import time

import pytest
import user as user_module
from user import Ended, User

pytestmark = pytest.mark.device_free


def report(source: str, *, did: str, must: str):
    """Returns the mark of a row: the public report, what its user did, and what must happen here."""
    return pytest.mark.foreign_fault(source=source, did=did, must=must)


@pytest.fixture
def user(tmp_path, make_texts, compiled):
    """A user with a folder of their own."""
    return User(tmp_path, make_texts(120), compiled)


# Paths.

# A folder that holds what a user owns; each character means something to a shell, a pattern, a format or a URL.
ODD = "x[1]*?\\'\"$%#~ é\n"

# Loaded by Python at its start: a library that, without an error, finds none of the files that it is to merge.
FINDS_NOTHING = """
import etils.epath

type(etils.epath.Path()).glob = lambda self, pattern: iter(())
"""


def interrupt(process: subprocess.Popen, until) -> Ended:
    """Sends SIGTERM as soon as something has happened, and returns how the process ended."""
    with process:
        try:
            while process.poll() is None and not until():
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
    return Ended(process.returncode, out.decode(), err.decode())


@report(
    "https://github.com/tensorflow/tensorflow/issues/34290",
    did="kept the checkout, the corpus, the cache and the run folder below a folder whose name is a pattern",
    must="train, stop, resume and evaluate there as anywhere, and write nowhere else",
)
@pytest.mark.parametrize(
    "name", [ODD, *(pytest.param(f"x{each}y", marks=pytest.mark.slow) for each in "[]*?\\'\"$%#~ é\n")]
)
def test_names_that_are_patterns_elsewhere_are_names(user, name):
    steps = ("--training.steps=40", "--evaluation.every_steps=40")
    assert user.train(*steps).status == 0
    folder = user.folder / name
    package = user_module.REPOSITORY / "jaxformer"
    shutil.copytree(package, folder / "checkout" / "jaxformer", ignore=shutil.ignore_patterns("__pycache__"))
    user.write(f"{name}/corpus/texts.jsonl", (user.folder / "texts.jsonl").read_bytes())
    user.environment |= {"PYTHONPATH": str(folder / "checkout"), "JAXFORMER_CACHE": str(folder / "cache")}
    words = (f"--corpus.path={folder}/corpus", *steps)
    before = {path.name for path in user.folder.iterdir()}

    arguments = ("train", "--experiment=tiny.py", f"--workdir={name}/run", *words)
    stopped = interrupt(user.start(*arguments), (folder / "run" / "checkpoints" / "2").exists)
    # The signal may find a run that is over.
    assert stopped.status in (0, 128 + signal.SIGTERM), stopped.err
    resumed = user.run(*arguments)
    assert resumed.status == 0, resumed.err
    assert "resumed from step" in resumed.out or stopped.status == 0
    assert user.summary(f"{name}/run")["validation/loss"] == user.summary()["validation/loss"]
    evaluated = user.run("evaluate", f"--workdir={name}/run")
    assert evaluated.status == 0 and "step 40: " in evaluated.out, evaluated.err
    assert {path.name for path in user.folder.iterdir()} == before


@report(
    "https://github.com/tensorflow/tensorflow/issues/34290",
    did="named the run folder by way of the folder above a link",
    must="save where the system finds the folder, and read it from there",
)
def test_run_folder_beside_the_target_of_a_link_is_read_again(user):
    (user.folder / "elsewhere" / "deep").mkdir(parents=True)
    (user.folder / "link").symlink_to(user.folder / "elsewhere" / "deep")
    before = {path.name for path in user.folder.iterdir()}
    assert user.train(workdir="link/../run").status == 0
    evaluated = user.run("evaluate", "--workdir=elsewhere/run")
    assert evaluated.status == 0, evaluated.err
    assert {path.name for path in user.folder.iterdir()} - before == {"cache"}


@report(
    "https://github.com/tensorflow/tensorflow/issues/34290",
    did="trained where checkpoints are written without an error and hold nothing",
    must="end at the first of them with status 1 and one line, whether it is due or a signal asks for it",
)
def test_first_checkpoint_that_holds_nothing_ends_the_run(user):
    user.write("patched/sitecustomize.py", FINDS_NOTHING)
    user.environment["PYTHONPATH"] = f"{user.folder / 'patched'}:{user.environment['PYTHONPATH']}"
    ended = user.train()
    assert ended.status == 1
    assert "step 2 was saved and cannot be read back (" in ended.err and "finished" not in ended.out
    assert ended.err.count("\n") == 1 and "run/checkpoints" in ended.err

    words = ("--training.steps=5000", "--evaluation.every_steps=5000", "--checkpoint.every_steps=5000")
    process = user.start("train", "--experiment=tiny.py", "--workdir=other", *words)
    metrics = user.folder / "other" / "metrics.jsonl"
    stopped = interrupt(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
    assert stopped.status == 1
    assert "cannot be read back" in stopped.err and "is saved" not in stopped.err


@report(
    "https://github.com/huggingface/datasets/issues/7468",
    did="gave a glob below a folder with brackets in its name, and the files of such a folder as its own parts",
    must="take the folder's name literally, and call the documents the same wherever the folder lies",
)
def test_folder_with_brackets_is_no_pattern_of_a_corpus(user):
    text = (user.folder / "texts.jsonl").read_bytes()
    for folder in ("plain", "corpus [v1]"):
        user.write(f"{folder}/a.jsonl", text)
    digests = set()
    for workdir, path in (("run", "plain/*.jsonl"), ("other", "corpus [v1]/*.jsonl"), ("third", "corpus [v1]/a.jsonl")):
        ended = user.train(f"--corpus.path={path}", workdir=workdir)
        assert ended.status == 0, ended.err
        digests.add(json.loads((user.folder / workdir / "config.json").read_bytes())["digests"]["corpus.0"])
    assert len(digests) == 1


@report(
    "https://github.com/huggingface/transformers/issues/10628",
    did="gave a run folder as --workdir=~/run, which no shell expands there",
    must="run in the home folder, and make no folder named ~",
)
def test_tilde_is_the_home_folder(user):
    home = user.folder / "home"
    home.mkdir()
    ended = user.train(workdir="~/run", environment={"HOME": str(home)})
    assert ended.status == 0, ended.err
    assert (home / "run" / "summary.json").exists() and not (user.folder / "~").exists()


@report(
    "https://github.com/whylabs/whylogs/issues/107",
    did="gave a bucket for the run folder or the cache",
    must="say in one line that it is no folder, and make none that is named like the bucket",
)
def test_bucket_is_not_made_a_folder_of_its_name(user):
    before = sorted(user.folder.iterdir())
    for ended in (
        user.train(workdir="gs://bucket/run"),
        user.run("evaluate", "--workdir=hf://datasets/run"),
        user.train(environment={"JAXFORMER_CACHE": "s3://bucket/cache"}),
    ):
        assert ended.status == 2 and "is a URL" in ended.err and ended.err.count("\n") == 1
    assert sorted(user.folder.iterdir()) == before


# Streams, terminals and locales.

# Signals and processes.

# What the environment sets for JAX.

# Corpora.

# The Hub.

# Runs and checkpoints.

# Studies.

# Evaluation.

# The table itself.


def test_every_row_names_its_report_and_what_must_happen():
    rows = [each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "pytestmark")]
    marks = [mark for row in rows for mark in row.pytestmark if mark.name == "foreign_fault"]
    assert all(mark.kwargs[field] for mark in marks for field in ("source", "did", "must"))
    assert len(marks) == len([name for name in globals() if name.startswith("test_")]) - 1
