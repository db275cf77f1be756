"""Lines for a person, on standard output and standard error: what these cannot take or show stops no run."""

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


# The line that stands last on a terminal.
_status = ""


class Field(NamedTuple):
    """A part of a line of a terminal."""

    text: str
    rank: int = 0
    """Where the line is too long, the field of the highest rank is left out first, and one of rank 0 never."""


def prepare_streams() -> None:
    """Readies the standard streams of a process for whatever is printed, by other libraries too.

    Those that the process was started without are opened on the null device: else the next file that is opened takes
    the number of the stream, and what is written to the stream by its number. What they cannot show is escaped.
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
    """Writes out what was printed; what cannot be written is dropped, so that it does not change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # There is none, or it is closed.
            pass
        except OSError:  # Python would try again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_line(text: str, *, is_error: bool = False, end: str = "\n") -> None:
    """Prints a text at once, with escapes for what the stream cannot show; nothing where there is no stream.

    It comes above the status that stands on a terminal. What cannot be written is kept by the stream, which tries again
    with the next.
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
    """Shows what the process does in the last line of a terminal, until another text takes its place; '' takes it away.

    What is printed comes above it. In a log nothing is shown.
    """
    global _status
    if (text or _status) and is_terminal(sys.stdout):
        _status = shorten(text, terminal_size(sys.stdout).columns - 1)
        _write(f"\r\033[K{_status}", sys.stdout)


def print_text(text: str) -> None:
    """Prints a piece of a text at once, as it is; on a terminal with escapes for what it would obey.

    Raises:
        OSError: it cannot be written; `BrokenPipeError` where nobody reads any more.
    """
    show_status()  # Pieces of a line have none below them.
    stream = sys.stdout
    if is_terminal(stream):
        text = "".join(printable(each) if _is_control(each) and each not in "\n\t" else each for each in text)
    stream.write(text)
    stream.flush()


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"


def print_wrapped(text: str, indent: int = 12) -> None:
    """Prints a line of a report; on a terminal that is too narrow as several, of which the later ones are indented."""
    print_line("\n".join(wrap(text, output_columns(), indent)))


def output_columns() -> int | None:
    """Returns the columns that a line on standard output may have; None where it is no terminal."""
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
    """Returns the columns and lines of a stream's terminal now; where it does not tell, $COLUMNS or 80, and 24."""
    try:
        size = os.get_terminal_size(stream.fileno()) if stream else os.terminal_size((0, 0))
    except (OSError, ValueError, AttributeError):
        size = os.terminal_size((0, 0))
    return size if all(size) else shutil.get_terminal_size()


def columns_of(text: str) -> int:
    """Returns the columns that a terminal needs for a text: two for a wide character, as of Chinese."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else not unicodedata.combining(each) for each in text)


def shorten(text: str, columns: int) -> str:
    """Returns a text of so many columns at most: of one that is longer both ends, with dots between them."""
    if columns_of(text) <= columns:
        return text
    for kept in range(min(len(text), columns), 3, -1):
        short = f"{text[: (kept - 2) // 2]}...{text[len(text) - (kept - 3) // 2 :]}"
        if columns_of(short) <= columns:
            return short
    return ""


def join_fields(fields: Sequence[Field], columns: int | None = None) -> str:
    """Returns the fields that are not empty as one line, of so many columns at most; None leaves out none."""
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
    """Prints a progress line, whole in a log; on a terminal it is the status, of what fits its width."""
    if is_terminal(sys.stdout):
        show_status(join_fields(fields, terminal_size(sys.stdout).columns - 1))
    else:
        print_line(join_fields(fields))


def progress_bar(**options) -> tqdm:
    """Returns a bar on standard error; where that is no terminal, a line every half minute. Options are tqdm's."""
    is_large = options.get("total") not in range(1, 1000)  # A few are printed as 3, not as 3.00.
    if not is_terminal(sys.stderr):
        return _Lines(leave=False, unit_scale=is_large, **options)
    below = bool(_status) + len(getattr(tqdm, "_instances", ()))  # The status stays above it, and so do other bars.
    return _Bar(leave=False, unit_scale=is_large, position=below, **options)


class _Bar(tqdm):
    """A bar on a terminal: where that is narrow, the description is shortened and the numbers stay."""

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
    """Returns a text with escapes in place of what a terminal would obey or cannot show."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def plain(text: object, limit: int = 0) -> str:
    """Returns a text on one line, shortened to so many characters if that is not 0."""
    line = printable(" ".join(str(text).split()))
    return line if not limit or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def format_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Returns a line for each row of cells, in aligned columns: those that are numbered in `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells))
    return [line.rstrip() for line in lines]


def format_rows(
    rows: Sequence[Sequence[str]], columns: int | None = None, *, left: Collection[int] = (0,)
) -> list[str]:
    """Returns a table with a heading as lines; where it is too wide, each row as a paragraph that names its columns."""
    table = format_table(rows, left=left)
    if columns is None or max(map(len, table)) <= columns:
        return table
    return [line for row in rows[1:] for line in wrap(name_cells(rows[0], row), columns, indent=4)]


def name_cells(headings: Sequence[str], row: Sequence[str]) -> str:
    """Returns a row of a table in one line, each of its cells but the first and the empty ones behind its heading."""
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
