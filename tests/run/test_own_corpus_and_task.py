"""A user's file with a corpus reader and a task, through the commands: trained, resumed, evaluated, refused."""

import gc
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run

from jaxformer.ablation.comparability import shared_tasks
from jaxformer.ablation.finished_runs import load_finished_run
from jaxformer.commands.evaluate import main as evaluate
from jaxformer.commands.generate import main as generate
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]

READER = """
from dataclasses import dataclass

from jaxformer.experiment import Document, Reader


@dataclass(frozen=True)
class Chats(Reader):
    suffixes = (".log",)

    def read(self, file):
        for number, text in enumerate(file.open().read().decode().split("\\n\\n")):
            yield Document(f"{file.name}#{number}", text)
"""
TASK = """
from dataclasses import dataclass

from jaxformer.experiment import Item, Option, Task
from own_chats import Chats


@dataclass(frozen=True)
class Last(Task):
    name: str = "last"
    options: int = 2

    def to_item(self, row):
        return Item(tuple(Option(row["text"], f" {word}") for word in row["words"]), row["right"])

"""
EXPERIMENT = tiny_run.EXPERIMENT.format(
    corpus="CorpusConfig(kind=Chats(), path='logs', validation_share=0.1)", method="best_fit", micro_batches=1
).replace("sample_tokens=5", "sample_tokens=5, tasks=('arc_easy', Last()), task_data='rows'")
ARC = {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}
RUN = Path("runs/talk/seed_3")
WORKDIR = f"--workdir={RUN}"
OPTIONS = ["--experiment=talk.py", WORKDIR, "--seed=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_texts):
    """A folder with a user's files, and the run that was stopped and went on."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("logs", "rows"):
        (folder / name).mkdir()
    texts = [text.replace("\n", " ") for text in make_texts(300)]
    for number in range(2):
        (folder / "logs" / f"{number}.log").write_text("\n\n".join(texts[150 * number : 150 * number + 150]))
    words = [text.split()[1:4] for text in make_texts(20, seed=1)]
    rows = [{"text": first[0], "words": [first[0][:4], "ba"], "right": i % 2} for i, first in enumerate(words)]
    (folder / "rows" / "last.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows" / "arc_easy.jsonl").write_text(json.dumps(ARC) + "\n")
    (folder / "own_chats.py").write_text(READER)
    (folder / "talk.py").write_text(TASK + EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", sys.path[:])
        tiny_run.run_until("step", 7, OPTIONS)
        assert main(OPTIONS) == 0
    return folder


@pytest.fixture
def user(trained, tmp_path, monkeypatch, capfd):
    """Functions in that folder, restored later: `run` returns a command's status and errors, `edit` changes a file."""
    shutil.copytree(trained, tmp_path / "kept")
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(command, *arguments):
        """As in a process of its own, which knows the code that is there now."""
        for name in ("experiment talk", "file talk", "file later", "own_chats"):
            sys.modules.pop(name, None)
        gc.collect()
        capfd.readouterr()
        return command([*map(str, arguments)]), capfd.readouterr().err

    def edit(name, old, new):
        path = Path(name)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    yield SimpleNamespace(run=run, edit=edit)
    shutil.rmtree(trained)
    shutil.copytree(tmp_path / "kept", trained)


def read(path):
    return json.loads(Path(path).read_text())


def test_a_run_reads_and_scores_what_its_file_says_and_keeps_the_code(trained):
    record = read(trained / RUN / "config.json")
    kind, task = record["config"]["corpus"]["kind"], record["config"]["evaluation"]["tasks"][1]
    assert (kind["part"], task["part"], task["name"]) == ("own_chats.Chats", "talk.Last", "last")
    assert {path.name for path in trained.glob(f"{RUN}/code/{kind['code']}/*")} == {"own_chats.py"}
    assert {path.name for path in trained.glob(f"{RUN}/code/{task['code']}/*")} == {"talk.py", "own_chats.py"}
    assert record["identity"]["corpus.kind.code"] == kind["code"] and record["lineage"]["own_code"] == {}
    assert set(record["tasks"]) == {"arc_easy", "last"}
    (corpus,) = record["corpora"].values()
    assert corpus["origin"] == "logs" and set(corpus["contamination"]) == {"arc_easy", "last"}
    scores = read(trained / RUN / "evaluations" / "step_12" / "last.json")
    assert (scores["items"], scores["official_items"], scores["equals"], scores["chance"]) == (20, 20, None, 0.5)
    assert read(trained / RUN / "summary.json")["last/acc"] == scores["acc"]


def test_a_run_is_evaluated_again_on_its_own_corpus_and_task_and_on_a_later_one(user):
    path = RUN / "evaluations/step_12"
    before = {name: read(path / f"{name}.json") for name in ("last", "validation")}
    assert user.run(evaluate, WORKDIR) == (0, "")
    assert {name: read(path / f"{name}.json") for name in before} == before
    Path("later.py").write_text(TASK.replace('"last"', '"later"').replace("Last", "Later"))
    shutil.copy("rows/last.jsonl", "rows/later.jsonl")
    options = (WORKDIR, "--data=rows", "--task=later,last")
    assert "'later' is unknown; did you mean" in user.run(evaluate, *options)[1]
    assert user.run(evaluate, *options, "--code=later.py") == (0, "")
    assert read(path / "later.json")["acc"] == before["last"]["acc"]


def test_other_code_of_a_reader_is_another_run_and_of_a_task_another_task(user):
    (RUN / "summary.json").rename("summary.json")
    user.edit("own_chats.py", "#{number}", "-{number}")
    status, error = user.run(main, *OPTIONS)
    assert status == 2 and "talk has changed since runs/talk/seed_3 was trained (corpus.kind.code: " in error
    user.edit("own_chats.py", "-{number}", "#{number}")
    user.edit("talk.py", 'f" {word}"', 'f" {word}."')
    status, error = user.run(main, *OPTIONS)
    assert (
        status == 2 and "the data of last have changed since it was begun, or your code for them; restore them" in error
    )
    Path("summary.json").rename(RUN / "summary.json")
    for arguments in ((), ("--task=last", "--data=rows")):
        status, error = user.run(evaluate, WORKDIR, *arguments)
        assert (status, error.count("\n")) == (2, 1) and "is code of talk.py, which is unknown here" in error
    assert user.run(generate, WORKDIR, "--prompt=a", "--tokens=2") == (0, "")
    changed = (WORKDIR, "--task=last", "--data=rows", "--code=talk.py")
    assert "last.json: it has the scores of other items" in user.run(evaluate, *changed)[1]
    before = load_finished_run(RUN)
    assert shared_tasks([before, before]) == ["arc_easy", "last"]
    (RUN / "evaluations/step_12/last.json").unlink()
    assert user.run(evaluate, *changed)[0] == 0
    assert shared_tasks([before, load_finished_run(RUN)]) == ["arc_easy"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("own_chats.py", 'Document(f"{file.name}#{number}", text)', "None", "document 1: it must yield texts"),
        ("own_chats.py", "text)", "text.encode())", "document 1: it must yield texts, or Document(key, text), and no "),
        ("own_chats.py", "file.open()", "file.opened()", "AttributeError: 'SourceFile' object has no attribute"),
        ("own_chats.py", "for number, text in", "for number, text in () and", "no document with text to train the tok"),
        ("talk.py", '"last"', '"arc_easy"', "'arc_easy' is also the name of another task; give yours another name"),
        ("talk.py", "options: int = 2", "options: int = 3", "last.jsonl, line 1: last has no item of 2 options"),
    ],
)
def test_what_a_file_gets_wrong_ends_in_one_line_before_anything_is_written(user, file, old, new, message):
    user.edit(file, old, new)
    status, error = user.run(main, *OPTIONS[:1], "--workdir=other")
    assert (status, error.count("\n")) == (2, 1) and message in error
    assert not Path("other").exists()
