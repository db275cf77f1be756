"""What was the fastest is timed once, kept, and taken again where nothing that decides it has changed."""

import datetime
import json

import pytest

from jaxformer.config import UserError
from jaxformer.devices import fastest
from jaxformer.devices.fastest import Fastest, take_fastest, time_ways
from jaxformer.host.cache import cache_folder

pytestmark = pytest.mark.device_free

FOUND = Fastest({"name": "b", "tile": [1, 2]}, {"b": 1.5, "a": 512.25}, {"c": "ValueError: no"}, "2026-11-29")
KEY = {"device": "a GPU", "versions": {"jax": "0.10.2"}, "rows": 4}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))


def never():
    pytest.fail("it was timed again")


def test_the_fastest_is_taken_and_what_fails_is_named():
    def timer(functions):
        assert [function() for function in functions.values()] == ["A", "B", "C"]
        return {"a": 512.25, "b": 1.5}, {"c": "ValueError: no"}

    ways = {name: ({"name": name}, name.upper) for name in "abcd"}
    found = time_ways("loss", ways, timer, advice="report it", failed={"d": "RuntimeError: known"})
    assert found.choice == {"name": "b"} and found.date == datetime.date.today().isoformat()
    assert str(found._replace(date="2026-11-29")) == (
        "the fastest of b 1.5 ms, a 512 ms, d failed (RuntimeError: known), c failed (ValueError: no), as timed on "
        "2026-11-29"
    )


def test_where_nothing_runs_that_is_an_error_in_a_line():
    with pytest.raises(UserError, match=r"^loss: nothing that was timed runs on this device: .*no.*; report it$"):
        time_ways("loss", {"a": (1, str)}, lambda functions: ({}, {"a": "no"}), advice="report it")


def test_what_was_timed_is_kept_and_taken_again():
    assert take_fastest("loss", KEY, lambda: FOUND) == FOUND
    assert take_fastest("loss", KEY, never) == FOUND
    (line,) = (cache_folder() / "fastest.jsonl").read_text().splitlines()
    assert json.loads(line) == {"what": "loss", "key": KEY, **FOUND._asdict()}


@pytest.mark.parametrize(
    "change", [{"device": "another"}, {"versions": {"jax": "0.11.0"}}, {"rows": 8}, {"further": None}]
)
def test_another_device_version_or_shape_is_timed_anew_and_each_is_kept(change):
    take_fastest("loss", KEY, lambda: FOUND)
    other = FOUND._replace(choice={"name": "a"})
    assert take_fastest("loss", KEY | change, lambda: other) == other
    assert take_fastest("loss", KEY | change, never) == other
    assert take_fastest("loss", KEY, never) == FOUND
    assert take_fastest("step", KEY, lambda: None) is None, "what is of something else"


def test_what_is_not_timed_is_not_kept():
    assert take_fastest("loss", KEY, lambda: None) is None
    assert not (cache_folder() / "fastest.jsonl").exists()


def test_damaged_lines_are_named_and_left_out(capsys):
    take_fastest("loss", KEY, lambda: FOUND)
    path = cache_folder() / "fastest.jsonl"
    whole = path.read_text()
    damaged = {"what": "loss", "date": "2026-11-30", "key": KEY, "choice": 1, "times": {"a": "soon"}, "failures": {}}
    path.write_text(f"{whole}{whole[:40]}\n7\n{json.dumps(damaged)}\n")
    assert take_fastest("loss", KEY, never) == FOUND
    assert capsys.readouterr().err.splitlines() == [
        f"jaxformer: {path}, line 2: damaged, and left out",
        f"jaxformer: {path}, line 3: damaged, and left out",
        f"jaxformer: {path}: the loss of 2026-11-30 is damaged, and left out",
    ]


def test_cache_that_cannot_be_written_is_named_and_what_was_timed_is_taken(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "file"))
    assert take_fastest("loss", KEY, lambda: FOUND) == FOUND
    error = capsys.readouterr().err
    assert error.startswith("jaxformer: the timing cannot be stored: ") and "File exists" in error


def test_two_processes_agree_on_what_the_first_one_keeps_or_times(monkeypatch):
    # The first one's values come to the second, which has a cache of its own and another opinion.
    of_first = iter([None, [*FOUND], [*FOUND]])
    monkeypatch.setattr(fastest, "from_first", lambda own: next(of_first))
    monkeypatch.setattr(fastest, "is_first", lambda: False)
    assert take_fastest("loss", KEY, lambda: FOUND._replace(choice={"name": "a"})) == FOUND
    assert not (cache_folder() / "fastest.jsonl").exists(), "the first one keeps it"
    assert take_fastest("loss", KEY, never) == FOUND
