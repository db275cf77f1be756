"""Lines for a person: one at a time, harmless to a terminal, and no reason to stop."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.host import console
from jaxformer.host.console import format_table, print_line, print_notice, print_progress, printable, progress_bar

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_note_is_one_printable_line_on_standard_error(capsys):
    print_notice(None)
    print_notice("a line\nand another \x1b[31m")
    assert capsys.readouterr() == ("", "jaxformer: a line and another \\x1b[31m\n")


def test_bar_in_a_log_is_a_line_every_so_often(monkeypatch, capsys):
    for seconds, lines in ((0.0, 4), (60, 0)):
        monkeypatch.setattr(console, "_LOG_SECONDS", seconds)
        with progress_bar(desc="tokenising", unit=" tokens", total=3_000_000) as bar:
            for _ in range(3):
                bar.update(1_000_000)
        found = capsys.readouterr().err.splitlines()
        assert len(found) == lines and not any("\r" in line for line in found)
        if lines:
            assert found[2].startswith("tokenising:  67%") and "2.00M/3.00M" in found[2]


def test_escapes_are_shown_and_letters_of_any_language_stay():
    assert printable("caf\u00e9 \u4e2d \x07\x9b") == "caf\u00e9 \u4e2d \\x07\\x9b"


def test_progress_lines_follow_each_other_in_a_file_and_replace_each_other_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, expected in ((io.StringIO(), "1\n2\n"), (Terminal(), "\r\x1b[K1\r\x1b[K2\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        print_progress("1")
        print_progress("2", keep=True)
        assert stream.getvalue() == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_stream_that_is_full_stops_nothing():
    code = "import os; from jaxformer.host.console import *; print_line('a' * 99_999); print_notice('b'); os._exit(7)"
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full)
    assert ended.returncode == 7


def test_stream_that_is_closed_at_the_other_end_stops_nothing():
    code = "import os, sys; from jaxformer.host.console import *; sys.stdin.read(); "
    code += "print_line('a'); print_line('b'); os._exit(7)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 7


def test_what_is_said_is_there_at_once(capfd):
    print_line("now", end="")
    assert capfd.readouterr().out == "now"


def test_table_aligns_its_columns_and_ends_no_line_with_blanks():
    rows = [("task", "acc", ""), ("arc", "9", "a note"), ("winogrande", "10.5", "")]
    assert format_table(rows, left=(0, 2)) == [
        "task         acc",
        "arc            9  a note",
        "winogrande  10.5",
    ]
