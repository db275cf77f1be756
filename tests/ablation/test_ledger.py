"""The ledger: whole lines in spite of kills and torn ends, and what all questions amount to."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jaxformer.ablation.ledger import LEDGER, account, append, latest_verdicts, read_ledger, spread_of_gains

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def line(variant, mean=-0.02, error=0.005, verdict="KEEP", expected=(-0.03, -0.01), seeds=3, **more):
    difference = {"mean": mean, "standard_error": error, "low": mean - 3 * error, "high": mean + 3 * error}
    known = {"kind": "verdict", "parent": "root", "variant": variant, "verdict": verdict, "expected": list(expected)}
    return {**known, "difference": difference, "seeds": list(range(seeds)), **more}


def test_a_torn_line_is_named_and_costs_no_other(tmp_path, capsys):
    append(tmp_path, line("first"))
    whole = (tmp_path / LEDGER).read_bytes()
    for size in range(1, len(whole) - 1, 37):
        (tmp_path / LEDGER).write_bytes(whole + whole[:size])
        append(tmp_path, line("second"))
        assert [each["variant"] for each in read_ledger(tmp_path)] == ["first", "second"]
        assert f"{LEDGER}, line 2: damaged, and left out" in capsys.readouterr().err
    for damage in (b"\xff\xfe\n", b"[]\n", b'{"kind": "verdict"}\n', b"null\n", b"\n\n"):
        (tmp_path / LEDGER).write_bytes(damage + whole)
        assert [each["variant"] for each in read_ledger(tmp_path)] == ["first"]


def test_lines_of_processes_that_append_at_once_and_are_killed_stay_whole(tmp_path):
    program = (
        "import sys; from pathlib import Path; from jaxformer.ablation.ledger import append\n"
        "print('ready', flush=True)\n"
        "for i in range(100_000): append(Path(sys.argv[1]), dict(kind='verdict', parent='p', variant='v' * 5000, i=i))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    while not (tmp_path / LEDGER).exists() or (tmp_path / LEDGER).stat().st_size < 200_000:
        append(tmp_path, line("v" * 5000))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    append(tmp_path, line("last"))
    lines = [json.loads(text) for text in (tmp_path / LEDGER).read_text().splitlines() if text]
    assert len(lines) > 10 and lines[-1]["variant"] == "last"
    assert {len(each["variant"]) for each in lines[:-1]} == {5000}


def test_questions_are_counted_once_with_their_last_verdict(tmp_path):
    lines = [
        line("better", mean=-0.05, verdict="UNDECIDED"),
        line("better", mean=-0.05, study="another"),
        line("inside"),
        line("worse", mean=0.02, verdict="REVERT"),
        line("wide", mean=-0.05, error=0.02, verdict="UNDECIDED"),
        line("early", seeds=2, verdict="UNDECIDED"),
        {**line("waits for other rates", verdict="UNDECIDED"), "difference": None},
        {"kind": "promotion", "parent": "root", "variant": "better"},
    ]
    assert [each["verdict"] for each in latest_verdicts(lines).values()] == [
        "KEEP",
        "KEEP",
        "REVERT",
        *3 * ["UNDECIDED"],
    ]
    found = account(lines)
    assert (found.asked, found.kept, found.false_keeps) == (4, 2, pytest.approx(0.1))
    words = "as expected", "better than expected", "perhaps better than expected", "worse than expected"
    assert found.expectations == dict.fromkeys(words, 1)


def test_what_leaves_out_a_kept_change_is_no_question():
    lines = [line(name, mean=mean) for name, mean in (("a", -0.05), ("b", 0.01), ("c", -0.03), ("d", 0.02))]
    removal = line("whole_without_a", mean=-0.04, leaves_out="a")
    assert spread_of_gains([*lines, removal]) == spread_of_gains(lines) > 0
    assert account([*lines, removal]) == account(lines)
