"""Lines on standard output and standard error; output that these cannot take or show never stops a run."""

import contextlib
import io
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Sequence
from typing import NamedTuple, TextIO

from tqdm import tqdm

# Seconds between the lines of a bar in a log.
_LOG_SECONDS = 30


# The last line on a terminal.
_status = ""


class Field(NamedTuple):
    """A part of a line of a terminal."""

    text: str
    rank: int = 0
    """If the line is too long, the field with the highest rank is left out first, and rank 0 never."""


def prepare_streams() -> None:
    """Prepares the standard streams of a process for anything that is printed, by other libraries too.

    Missing streams are opened on the null device: else the next opened file takes the stream's number, and gets output
    written to that number. Characters that the streams cannot show are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest free number: this one.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> None:
    """Flushes the output; what cannot be written is dropped, so that it does not change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # Missing or closed.
            pass
        except OSError:  # Python would try again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_line(text: str, *, is_error: bool = False, end: str = "\n") -> None:
    """Prints a text at once, with escapes for what the stream cannot show; nothing without a stream.

    It appears above a terminal's status line. Text that cannot be written stays in the stream, which tries again with
    the next.
    """
    stands = _status and is_terminal(sys.stdout)
    if stands:
        _write("\r\033[K", sys.stdout)
    _write(f"{text}{end}", sys.stderr if is_error else sys.stdout)
    if stands:
        _write(f"\033[K{_status}", sys.stdout)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):  # It is full, gone or closed.
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=stream, flush=True)


def show_status(text: str = "") -> None:
    """Shows what the process does in the last line of a terminal, until another text replaces it; '' removes it.

    Printed lines appear above it. A log shows nothing.
    """
    global _status
    if (text or _status) and is_terminal(sys.stdout):
        _status = shorten(text, terminal_size(sys.stdout).columns - 1)
        _write(f"\r\033[K{_status}", sys.stdout)


def print_text(text: str) -> None:
    """Prints a piece of a text at once, as it is; on a terminal with escapes for control characters.

    Raises:
        OSError: it cannot be written; `BrokenPipeError` if nobody reads any more.
    """
    show_status()  # Pieces of a line have no status below them.
    stream = sys.stdout
    if is_terminal(stream):
        text = "".join(printable(each) if _is_control(each) and each not in "\n\t" else each for each in text)
    stream.write(text)
    stream.flush()


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"


def print_wrapped(text: str, indent: int = 12) -> None:
    """Prints a line of a report; on a narrow terminal as several, with later ones indented."""
    print_line("\n".join(wrap(text, output_columns(), indent)))


def output_columns() -> int | None:
    """Returns the columns that a line on standard output may have; None if it is no terminal."""
    return terminal_size(sys.stdout).columns - 1 if is_terminal(sys.stdout) else None


def wrap(text: str, columns: int | None, indent: int = 0) -> list[str]:
    """Returns a text in lines of so many columns, broken between words; None leaves it as it is."""
    if columns is None:
        return [text]
    options = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, max(columns, indent + 20), **options)


def is_terminal(stream: TextIO | None) -> bool:
    """Returns whether a stream is a terminal on which what was printed can be replaced."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # It is no file, or it is closed.
        return False


def terminal_size(stream: TextIO | None) -> os.terminal_size:
    """Returns the present columns and lines of a stream's terminal; if unknown, $COLUMNS or 80, and 24."""
    try:
        size = os.get_terminal_size(stream.fileno()) if stream else os.terminal_size((0, 0))
    except (OSError, ValueError, AttributeError):
        size = os.terminal_size((0, 0))
    return size if all(size) else shutil.get_terminal_size()


def columns_of(text: str) -> int:
    """Returns the columns that a terminal needs for a text: two for a wide character, as of Chinese."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else not unicodedata.combining(each) for each in text)


def shorten(text: str, columns: int) -> str:
    """Returns a text of at most so many columns: a longer one as its two ends, with dots between them."""
    if columns_of(text) <= columns:
        return text
    for kept in range(min(len(text), columns), 3, -1):
        short = f"{text[: (kept - 2) // 2]}...{text[len(text) - (kept - 3) // 2 :]}"
        if columns_of(short) <= columns:
            return short
    return ""


def join_fields(fields: Sequence[Field], columns: int | None = None) -> str:
    """Returns the non-empty fields as one line of at most so many columns; None leaves out none."""
    kept = [field for field in fields if field.text]
    while True:
        line = "  ".join(field.text for field in kept)
        if columns is None or columns_of(line) <= columns:
            return line
        last = max(kept, key=lambda field: field.rank)
        if not last.rank:
            return shorten(line, columns)
        kept.remove(last)


def print_progress(*fields: Field) -> None:
    """Prints a progress line, whole in a log; on a terminal it is the status, with the fields that fit."""
    if is_terminal(sys.stdout):
        show_status(join_fields(fields, terminal_size(sys.stdout).columns - 1))
    else:
        print_line(join_fields(fields))


def progress_bar(**options) -> tqdm:
    """Returns a bar on standard error; without a terminal, a line every half minute. Options are tqdm's."""
    is_large = options.get("total") not in range(1, 1000)  # A few are printed as 3, not as 3.00.
    if not is_terminal(sys.stderr):
        return _Lines(leave=False, unit_scale=is_large, **options)
    below = bool(_status) + len(getattr(tqdm, "_instances", ()))  # The status stays above it, and so do other bars.
    return _Bar(leave=False, unit_scale=is_large, position=below, **options)


class _Bar(tqdm):
    """A bar on a terminal: if that is narrow, the description is shortened and the numbers stay."""

    @property
    def format_dict(self) -> dict:
        values, columns = dict(super().format_dict), terminal_size(sys.stderr).columns - 1
        numbers = self.format_meter(**values | {"ncols": None, "prefix": "", "bar_format": "{l_bar} {r_bar}"})
        prefix = shorten(values["prefix"], columns - len(numbers) - len(": "))
        return values | {"ncols": columns, "prefix": prefix}


class _Lines(tqdm):
    """A bar in a log."""

    def __init__(self, **options):
        super().__init__(file=io.StringIO(), mininterval=_LOG_SECONDS, delay=_LOG_SECONDS, miniters=1, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # Else it is '', which on a terminal clears the bar.
            print_line(str(self), is_error=True)


def print_notice(text: str | None) -> None:
    """Prints a line that stays on standard error, beside the progress lines; nothing for None."""
    if text:
        with tqdm.external_write_mode(file=sys.stderr):  # Bars are taken off the screen, and shown again below it.
            print_line(f"jaxformer: {printable(' '.join(text.split()))}", is_error=True)


def printable(text: str) -> str:
    """Returns a text with escapes in place of control characters and what a terminal cannot show."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def plain(text: object, limit: int = 0) -> str:
    """Returns a text on one line, shortened to so many characters if that is not 0."""
    line = printable(" ".join(str(text).split()))
    return line if not limit or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def format_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Returns a line for each row of cells, in aligned columns: to the left for the numbers in `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells))
    return [line.rstrip() for line in lines]


def format_rows(
    rows: Sequence[Sequence[str]], columns: int | None = None, *, left: Collection[int] = (0,)
) -> list[str]:
    """Returns a table with a heading as lines; if it is too wide, each row as a paragraph that names its columns."""
    table = format_table(rows, left=left)
    if columns is None or max(map(len, table)) <= columns:
        return table
    return [line for row in rows[1:] for line in wrap(name_cells(rows[0], row), columns, indent=4)]


def name_cells(headings: Sequence[str], row: Sequence[str]) -> str:
    """Returns a row of a table in one line, with the heading before each cell except the first and empty ones."""
    cells = [(heading, cell.strip()) for heading, cell in zip(headings, row, strict=True)]
    return f"{row[0]}: " + ", ".join(f"{heading} {cell}" for heading, cell in cells[1:] if cell)


def format_size(size: float) -> str:
    """Returns bytes as MB or GB (10^9 bytes), to three digits or to a tenth."""
    if size < 1e8:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.1f} GB"


def format_duration(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
