"""Lines for a person, on standard output and standard error; a terminal or log that is gone or full stops no run."""

import contextlib
import io
import sys
from collections.abc import Collection, Sequence

from tqdm import tqdm

# Seconds between the lines of a bar in a log.
_LOG_SECONDS = 30


def print_line(text: str, *, is_error: bool = False, end: str = "\n") -> None:
    """Prints a text at once. What cannot be written is kept by the stream, which tries again with the next."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr if is_error else sys.stdout, flush=True)


def print_progress(text: str, *, keep: bool = False) -> None:
    """Prints a progress line; on a terminal the next one replaces it unless it is kept."""
    if sys.stdout.isatty():
        print_line(f"\r\033[K{text}", end="\n" if keep else "")
    else:
        print_line(text)


def end_progress() -> None:
    """Leaves the progress line that stands on a terminal, so that what follows does not overwrite it."""
    if sys.stdout.isatty():
        print_line("")


def progress_bar(**options) -> tqdm:
    """Returns a bar on standard error; where that is no terminal, a line every half minute. Options are tqdm's."""
    return (tqdm if sys.stderr.isatty() else _Lines)(leave=False, unit_scale=True, **options)


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
            if not getattr(tqdm, "_instances", None):
                end_progress()
            print_line(f"jaxformer: {printable(' '.join(text.split()))}", is_error=True)


def printable(text: str) -> str:
    """Returns a text with escapes in place of what a terminal would obey or cannot show."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def format_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Returns a line for each row of cells, in aligned columns: those that are numbered in `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells))
    return [line.rstrip() for line in lines]


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
