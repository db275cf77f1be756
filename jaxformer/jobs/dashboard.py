"""The display of a queue: a table that is redrawn, or a line for each change."""

import itertools
import sys
import textwrap
from collections.abc import Iterable, Sequence

from jaxformer.host.console import (
    format_duration,
    format_table,
    is_terminal,
    print_line,
    printable,
    shorten,
    show_status,
    terminal_size,
)
from jaxformer.jobs.queue import OVER, State, Status

# Columns that a narrow terminal omits, in this order, once names are as short as this.
_OPTIONAL, _NAME_COLUMNS = ("device h", "tokens/s", "loss"), 20


def status_table(
    statuses: Sequence[Status],
    *,
    parallel: int = 1,
    price_per_hour: float | None = None,
    columns: int | None = None,
    lines: int | None = None,
) -> str:
    """Returns a table with a line per job, a line below it for a note that does not fit, and the totals.

    Args:
        price_per_hour: of a device, in whatever currency.
        columns: of the terminal; None leaves nothing out.
        lines: of the terminal; if it has fewer, finished and waiting jobs are left out first.
    """
    heading, *jobs = _job_lines(statuses, columns)
    total = totals(statuses, parallel=parallel, price_per_hour=price_per_hour)
    ends = textwrap.wrap(total, columns, break_on_hyphens=False) if columns else [total]
    if lines is not None and sum(map(len, jobs)) + 1 + len(ends) > lines:
        ends = ends[: max(1, lines - 2)]
        room = max(1, lines - 1 - len(ends))
        is_kept = [status.state not in (State.FINISHED, State.WAITING) for status in statuses]
        jobs = [[line for job, kept in zip(jobs, is_kept, strict=True) if kept for line in job][:room]]
    return "\n".join([*heading, *itertools.chain(*jobs), *ends])


def _job_lines(statuses: Sequence[Status], columns: int | None) -> list[list[str]]:
    """Returns the lines of the heading and of each job."""
    rows = [["experiment", "seed", "state", "step", "loss", "tokens/s", "left", "device h"]]
    for status in statuses:
        job, has_begun = status.job, status.step > 0
        rows.append(
            [
                printable(job.name),
                str(job.seed),
                status.state.value,
                f"{status.step:,}/{job.steps:,}" if has_begun else f"-/{job.steps:,}",
                f"{status.loss:.3f}" if status.loss == status.loss else "-",
                f"{status.tokens_per_second:,.0f}" if status.tokens_per_second == status.tokens_per_second else "-",
                "" if status.state in OVER else format_duration(status.seconds_left),
                f"{status.device_hours:.2f}" if status.device_hours else "-",
            ]
        )
    if columns:
        rows = _narrowed(rows, columns)
    table = format_table(rows, left=(0, 2))
    width = max(map(len, table))
    lines = [[table[0]]]
    for line, status in zip(table[1:], statuses, strict=True):
        note = printable(status.note)
        if not columns or width + 2 + len(note) <= columns:
            lines.append([f"{line:{width}}  {note}".rstrip()])
        else:
            lines.append([shorten(line, columns), *([f"  {shorten(note, columns - 2)}"] if note else [])])
    return lines


def _narrowed(rows: list[list[str]], columns: int) -> list[list[str]]:
    """Returns a table that fits: with shorter names, then without optional columns."""
    while True:
        names, *others = zip(*rows, strict=True)
        room = columns - sum(2 + max(map(len, column)) for column in others)
        left_out = next((name for name in _OPTIONAL if name in rows[0]), None)
        if room >= min(_NAME_COLUMNS, max(map(len, names))) or left_out is None:
            return [[shorten(name, max(room, 0)), *row] for name, *row in rows]
        number = rows[0].index(left_out)
        rows = [[*row[:number], *row[number + 1 :]] for row in rows]


def totals(statuses: Sequence[Status], *, parallel: int = 1, price_per_hour: float | None = None) -> str:
    """Returns a line with the number of jobs in each state, the device hours spent and to come, and the time left."""
    states = [status.state for status in statuses]
    counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
    spent = sum(status.device_hours for status in statuses)
    to_come = sum(status.seconds_left * status.job.devices for status in statuses) / 3600
    parts = [f"{len(statuses)} jobs: {counts}", f"{spent:.2f} device hours spent"]
    if to_come:
        runs = (State.RUNNING, State.ELSEWHERE)  # First, since they have begun.
        left = [each.seconds_left for each in sorted(statuses, key=lambda status: status.state not in runs)]
        over = format_duration(seconds_until_over(left, parallel))
        parts.append(f"about {to_come:.2f} to come, over in {over}")
    if price_per_hour is not None:
        parts.append(f"price {spent * price_per_hour:,.2f} + {to_come * price_per_hour:,.2f}")
    return "; ".join(parts)


class Dashboard:
    """Shows statuses: on a terminal a table in place of the last one, elsewhere a line for each change of state."""

    def __init__(self):
        self._height = 0
        self._shown = {}

    def draw(self, statuses: Sequence[Status], *, parallel: int = 1, price_per_hour: float | None = None) -> None:
        """Shows the statuses; the arguments are those of `status_table`."""
        if not is_terminal(sys.stdout):
            for status in statuses:
                change = status.state, status.note
                if self._shown.get(status.job.workdir, (State.WAITING, "")) != change:
                    self._shown[status.job.workdir] = change
                    print_line(
                        f"{status.job}: {status.state.value}" + (f": {printable(status.note)}" if status.note else "")
                    )
            return
        show_status()
        columns, lines = terminal_size(sys.stdout)
        # The last column and line stay free: lines that have scrolled away cannot be redrawn.
        room = {"columns": columns - 1, "lines": lines - 1}
        table = status_table(statuses, parallel=parallel, price_per_hour=price_per_hour, **room)
        print_line((f"\033[{self._height}A" if self._height else "") + f"\r\033[J{table}")
        self._height = table.count("\n") + 1


def seconds_until_over(seconds: Iterable[float], parallel: int) -> float:
    """Returns the time until all jobs are over, given their seconds, if each begins as soon as a slot is free."""
    slots = [0.0] * parallel
    for each in seconds:
        slots[slots.index(min(slots))] += each
    return max(slots)
