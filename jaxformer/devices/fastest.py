"""The fastest here of several ways to compute the same: timed once, and cached.

A result is found by its subject and by what decides the times: the device, the versions, the sizes. If any of these
changes, or the result is removed from the file, it is timed again.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.devices.multihost import from_first, is_first
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import print_notice
from jaxformer.host.json_lines import append_json_line, read_json_lines

# Times functions by name, as `devices.timing.milliseconds` does: `(times, failures)`.
Timer = Callable[[Mapping[Any, Callable[[], Any]]], tuple[dict[Any, float], dict[Any, str]]]

# In the cache, a line for each choice.
_FILE = "fastest.jsonl"


class Fastest(NamedTuple):
    """The fastest of several timed ways."""

    choice: Any
    """The fastest, as a JSON value."""
    times: dict[str, float]
    """Milliseconds of all that ran, by name, the fastest first."""
    failures: dict[str, str]
    """Why the others did not run, by name."""
    date: str
    """Day of the timing, such as 2026-11-29."""

    def __str__(self) -> str:
        listed = [f"{name} {time:.3g} ms" for name, time in self.times.items()]
        listed += [f"{name} failed ({reason})" for name, reason in self.failures.items()]
        return f"the fastest of {', '.join(listed)}, as timed on {self.date}"


def time_ways(
    what: str,
    ways: Mapping[str, tuple[Any, Callable[[], Any]]],
    timer: Timer,
    *,
    advice: str,
    failed: Mapping[str, str] | None = None,
) -> Fastest:
    """Returns the fastest of several ways.

    Args:
        what: is computed, for errors.
        ways: by name, the JSON value to keep for it, and the function that computes that way.
        timer: such as `milliseconds`.
        advice: what to do if none of them runs.
        failed: why some of them are known to fail, by name: they are not timed.

    Raises:
        UserError: none of them runs.
    """
    known = dict(failed or {})
    times, failures = timer({name: function for name, (_, function) in ways.items() if name not in known})
    failures = known | failures
    require(bool(times), f"{what}: nothing that was timed runs on this device: {failures}; {advice}")
    ordered = sorted(times, key=times.__getitem__)
    choice, _ = ways[ordered[0]]
    return Fastest(choice, {name: times[name] for name in ordered}, failures, datetime.date.today().isoformat())


def take_fastest(what: str, key: Mapping[str, Any], time: Callable[[], Fastest | None]) -> Fastest | None:
    """Returns the fastest way as timed here before, else times it and keeps the result.

    All processes return the first one's result.

    Args:
        what: is computed.
        key: the JSON value of what decides the time, including device and versions.
        time: returns the fastest; or None, which is not kept, if it should not be timed.
    """
    key = json.loads(json.dumps(key))
    kept = from_first(_recall(what, key))
    if kept is not None:
        return Fastest(*kept)
    timed = from_first(time())
    if timed is None:
        return None
    found = Fastest(*timed)
    if is_first():
        _keep(what, key, found)
    return found


def _path() -> Path:
    return cache_folder() / _FILE


def _recall(what: str, key: Mapping[str, Any]) -> Fastest | None:
    """Returns the last result kept; a damaged line is reported and left out."""
    try:
        path = _path()
        lines = read_json_lines(path, ("what", "date"))
    except (OSError, UserError) as error:
        print_notice(f"earlier timings cannot be read: {error}")
        return None
    for line in reversed(lines):
        if (line["what"], line.get("key")) != (what, key):
            continue
        try:
            times, failures = ({**line[name]} for name in ("times", "failures"))
            found = Fastest(line["choice"], times, failures, line["date"])
            str(found)  # A result that cannot be printed is damaged.
        except (KeyError, TypeError, ValueError):
            print_notice(f"{path}: the {what} of {line['date']} is damaged, and left out")
        else:
            return found
    return None


def _keep(what: str, key: Mapping[str, Any], found: Fastest) -> None:
    try:
        append_json_line(_path(), {"what": what, "key": key, **found._asdict()})
    except (OSError, UserError) as error:  # Does not matter to the run.
        print_notice(f"the timing cannot be stored: {error}")
