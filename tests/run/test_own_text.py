"""A user's single text, by its path alone, in a run that the user names; resumed, and refused where it is too short."""

import json

import pytest
from user import User

pytestmark = pytest.mark.device_free

OWN = ("train", "--experiment=tiny.py", "--corpus.path=book.txt", "--name=book", "--question=What is in the book?")


@pytest.fixture
def user(tmp_path, make_texts, compiled, default_signals):
    return User(tmp_path, make_texts(5), compiled)


def test_a_single_text_is_trained_on_under_a_name_of_its_own(user, make_texts):
    user.write("book.txt", "\n".join(make_texts(120)))
    ended = user.run(*OWN)
    assert (ended.status, ended.err) == (0, "")
    assert "corpus      book.txt (kind: text, " in ended.out and " 1 documents, " in ended.out
    folder = user.folder / "runs" / "book" / "seed_0"
    config, summary = (json.loads((folder / name).read_bytes()) for name in ("config.json", "summary.json"))
    assert config["experiment"] == summary["experiment"] == "book"
    assert config["question"] == config["config"]["question"] == "What is in the book?"
    assert config["lineage"]["experiment"] == "tiny" and config["config"]["corpus"]["kind"] == "text"
    again = user.run(*OWN)
    assert again.status == 0 and "runs/book/seed_0: finished, 4 steps" in again.out
    other = user.run(*OWN, "--model.width=32")
    assert other.status == 2 and other.err.startswith("jaxformer: book has changed since runs/book/seed_0 was trained")


@pytest.mark.parametrize(("text", "words"), [("a few words\n", "give it more text"), ("", "no document with text")])
def test_a_text_that_is_too_short_is_refused_in_one_line(user, text, words):
    user.write("book.txt", text)
    ended = user.run(*OWN)
    assert ended.status == 2 and words in ended.err and ended.err.count("\n") == 1
    assert not (user.folder / "runs").exists()
