"""Lines for a person: one at a time, harmless to a terminal, and no reason to stop."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.host import console
from jaxformer.host.console import (
    Field,
    columns_of,
    flush_streams,
    format_table,
    is_terminal,
    join_fields,
    print_line,
    print_notice,
    print_progress,
    print_text,
    printable,
    progress_bar,
    shorten,
    show_status,
)

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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Starts a terminal of 80 columns for both streams, within a test, since each phase of one has its own streams."""

    def start():
        one = Terminal()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, one)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        return one

    yield start
    console._status = ""


def screen(written):
    """Returns the lines that a terminal shows after what was written to it; it knows what this library writes."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\x1b[A":
            row -= 1
        else:
            lines[row] = f"{lines[row][:column]:{column}}{part}{lines[row][column + len(part) :]}"
            column += len(part)
    return [line.rstrip() for line in lines]


def test_progress_lines_follow_each_other_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    print_progress(Field("1"))
    show_status("not for a log")
    print_line("2")
    assert log.getvalue() == "1\n2\n"


def test_status_stays_below_what_is_printed_until_it_is_taken_away(terminal):
    terminal = terminal()
    print_progress(Field("step 1"), Field("ETA 0:09"))
    print_line("a line\nand another")
    print_notice("a notice")
    shown = ["a line", "and another", "jaxformer: a notice"]
    assert screen(terminal.getvalue()) == [*shown, "step 1  ETA 0:09"]
    print_progress(Field("step 2"))
    assert screen(terminal.getvalue()) == [*shown, "step 2"]
    show_status()
    assert screen(terminal.getvalue()) == [*shown, ""]
    show_status("step 3")
    print_text("a piece")
    assert screen(terminal.getvalue()) == [*shown, "a piece"]


def test_bar_comes_below_the_status_and_leaves_it(terminal):
    terminal = terminal()
    show_status("step 1  ETA 0:09")
    with progress_bar(desc="scoring", total=4) as bar:
        bar.update(2)
        bar.refresh()
        status, below, *_ = screen(terminal.getvalue())
        assert status == "step 1  ETA 0:09" and below.startswith("scoring:  50%")
    print_line("scored")
    assert [line for line in screen(terminal.getvalue()) if line] == ["scored", "step 1  ETA 0:09"]


def test_terminal_that_obeys_no_escapes_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal()) and not is_terminal(None) and not is_terminal(object())


def test_line_leaves_out_the_fields_of_the_highest_rank_and_then_is_shortened():
    fields = [Field("step 5"), Field("loss 3.2", 1), Field(""), Field("speed 7", 2), Field("ETA 0:10")]
    for columns, line in (
        (None, "step 5  loss 3.2  speed 7  ETA 0:10"),
        (35, "step 5  loss 3.2  speed 7  ETA 0:10"),
        (34, "step 5  loss 3.2  ETA 0:10"),
        (16, "step 5  ETA 0:10"),
        (12, "step ...0:10"),
        (3, ""),
    ):
        assert join_fields(fields, columns) == line


@given(st.text(max_size=20), st.integers(0, 30))
def test_shortened_text_fits_and_one_that_fits_stays(text, columns):
    short = shorten(text, columns)
    assert columns_of(short) <= columns and (short == text or columns_of(text) > columns)


def test_wide_characters_take_two_columns():
    assert columns_of("a\u4e2d\u6587e\u0301") == 6
    assert shorten("\u4e2d\u6587\u4e2d\u6587\u4e2d\u6587", 9) == "\u4e2d\u6587...\u6587"


@pytest.mark.parametrize("total", [3_000_000, None])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_bar_on_a_terminal_shortens_its_description_and_keeps_its_numbers(monkeypatch, columns, total):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress_bar(desc=f"tokenising hf://{'x' * 100}", unit=" tokens", total=total) as bar:
        bar.update(2_000_000)
        bar.refresh()
        line = str(bar)
    assert len(line) < columns and line.startswith("tok") and "2.00M" in line and " tokens/s]" in line
    assert total is None or ("67%" in line and "<" in line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_a_stream_cannot_show_is_escaped(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors="strict"))
    print_line("\xb1 \u2013 \U0001f600 \udcff")
    shown = written.getvalue().decode(encoding)
    assert (
        shown
        == {
            "ascii": "\\xb1 \\u2013 \\U0001f600 \\udcff\n",
            "latin-1": "\xb1 \\u2013 \\U0001f600 \\udcff\n",
            "cp1252": "\xb1 \u2013 \\U0001f600 \\udcff\n",
            "utf-8": "\xb1 \u2013 \U0001f600 \\udcff\n",
        }[encoding]
    )


def test_stream_that_is_absent_or_closed_stops_nothing(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        print_line("a")
        print_line("a", is_error=True)
        print_progress(Field("a"))
        show_status("a")
        print_notice("a")
        with progress_bar(total=1) as bar:
            bar.update(1)
        flush_streams()


def test_no_file_takes_the_number_of_a_stream_that_was_closed(tmp_path):
    code = (
        "import os, sys; from jaxformer.host.console import *; prepare_streams(); file = open('file', 'w')\n"
        "os.write(1, b'to the stream'); os.write(2, b'to the stream'); print('a'); sys.stderr.write('b')\n"
        "file.write(f'{file.fileno()}'); file.close(); os._exit(0 if os.get_inheritable(1) else 1)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(console.__file__).parents[2])}
    command = ["sh", "-c", 'exec "$0" "$@" 0<&- 1>&- 2>&-', sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


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


def test_text_is_printed_as_it_is_and_on_a_terminal_without_what_that_would_obey(monkeypatch, capsys):
    text = "é\u3000\U0001f9ea\ta\n\x1b[2J\x07\x9b\r"
    print_text(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("jaxformer.host.console.is_terminal", lambda stream: True)
    print_text(text)
    assert capsys.readouterr().out == "é\u3000\U0001f9ea\ta\n\\x1b[2J\\x07\\x9b\\r"
