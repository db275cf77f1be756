"""What a person sees of a queue: a table that is drawn anew, or a line for each change."""

import shutil
import sys
from collections.abc import Sequence

from jaxformer.host.console import format_duration, format_table, print_line, printable
from jaxformer.jobs.queue import OVER, State, Status


def status_table(statuses: Sequence[Status], *, parallel: int = 1, price_per_hour: float | None = None) -> str:
    """Returns a table with one job a line, and a line of totals.

    Args:
        price_per_hour: of a device, in whatever currency.
    """
    rows = [("experiment", "seed", "state", "step", "loss", "tokens/s", "left", "device h", "")]
    for status in statuses:
        job, has_begun = status.job, status.step > 0
        rows.append(
            (
                job.name,
                str(job.seed),
                status.state.value,
                f"{status.step:,}/{job.steps:,}" if has_begun else f"-/{job.steps:,}",
                f"{status.loss:.3f}" if status.loss == status.loss else "-",
                f"{status.tokens_per_second:,.0f}" if status.tokens_per_second == status.tokens_per_second else "-",
                "" if status.state in OVER else format_duration(status.seconds_left),
                f"{status.device_hours:.2f}" if status.device_hours else "-",
                printable(status.note),
            )
        )
    total = totals(statuses, parallel=parallel, price_per_hour=price_per_hour)
    return "\n".join([*format_table(rows, left=(0, 2, 8)), total])


def totals(statuses: Sequence[Status], *, parallel: int = 1, price_per_hour: float | None = None) -> str:
    """Returns a line on how many jobs are in which state, the device hours spent and to come, and the time left."""
    states = [status.state for status in statuses]
    counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
    spent = sum(status.device_hours for status in statuses)
    to_come = sum(status.seconds_left * status.job.devices for status in statuses) / 3600
    parts = [f"{len(statuses)} jobs: {counts}", f"{spent:.2f} device hours spent"]
    if to_come:
        parts.append(f"about {to_come:.2f} to come, over in {format_duration(_seconds_until_over(statuses, parallel))}")
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
        if not sys.stdout.isatty():
            for status in statuses:
                change = status.state, status.note
                if self._shown.get(status.job.workdir, (State.WAITING, "")) != change:
                    self._shown[status.job.workdir] = change
                    print_line(
                        f"{status.job}: {status.state.value}" + (f": {printable(status.note)}" if status.note else "")
                    )
            return
        width, height = shutil.get_terminal_size()
        *rows, total = status_table(statuses, parallel=parallel, price_per_hour=price_per_hour).splitlines()
        if len(rows) + 2 > height:  # What has scrolled away cannot be drawn over.
            is_kept = [True, *(status.state not in (State.FINISHED, State.WAITING) for status in statuses)]
            rows = [row for row, kept in zip(rows, is_kept, strict=True) if kept][: max(1, height - 2)]
        lines = [line[: width - 1] for line in (*rows, total)]
        print_line((f"\033[{self._height}A" if self._height else "") + "\r\033[J" + "\n".join(lines))
        self._height = len(lines)


def _seconds_until_over(statuses: Sequence[Status], parallel: int) -> float:
    """Returns the time until all jobs are over, if each begins as soon as a slot is free."""
    slots = [0.0] * parallel
    runs = (State.RUNNING, State.ELSEWHERE)
    for status in sorted(statuses, key=lambda status: status.state not in runs):
        slots[slots.index(min(slots))] += status.seconds_left
    return max(slots)
