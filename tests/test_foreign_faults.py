"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import json
import re

import pytest
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

# Streams, terminals and locales.

# Signals and processes.

# What the environment sets for JAX.

# Corpora.


def prepared(user, *words: str) -> Ended:
    """Prepares the corpus of the experiment; returns how that ended, and of standard output the counts of tokens.

    Equal texts, split in the same way, give the same.
    """
    ended = user.run("prepare", "--experiment=tiny.py", *words)
    return ended._replace(out=" ".join(re.findall(r"[\d,]+ tokens to \w+", ended.out)))


def as_lines(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@report(
    "https://github.com/huggingface/datasets/issues/6764",
    did="gave a folder, and then a glob, of files of which some are linked, hidden, or end in capital letters",
    must="read the same files by both, follow links once, leave hidden files out, and name what was passed over",
)
def test_a_folder_and_a_glob_read_the_same_files_and_name_what_they_pass_over(user, make_texts):
    texts = make_texts(120)
    expected = prepared(user).out
    user.write("texts/a.jsonl", as_lines(texts[:50]))
    user.write("texts/B.JSONL", as_lines(texts[50:80]))
    user.write("elsewhere/c.jsonl", as_lines(texts[80:]))
    (user.folder / "texts" / "linked").symlink_to("../elsewhere")
    (user.folder / "texts" / "circle").symlink_to(".")
    (user.folder / "texts" / "gone.jsonl").symlink_to("nowhere.jsonl")
    user.write("texts/.ipynb_checkpoints/a-checkpoint.jsonl", as_lines(["an older text"] * 3))
    user.write("texts/README.md", "What these texts are.")
    status, counts, said = prepared(user, "--corpus.path=texts")
    assert (status, counts) == (0, expected)
    assert "passed over 1 hidden (.ipynb_checkpoints/), 1 of another kind (README.md)" in said
    assert "1 linked to nothing (gone.jsonl)" in said
    assert prepared(user, "--corpus.path=texts/**/*.jsonl") == (0, expected, ""), "it is the same corpus"


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
