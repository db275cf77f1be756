"""A run in trackio's database on this machine, which needs no account, or at its configured server or Space."""

import contextlib
import io
import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio
from trackio import utils
from trackio.sqlite_storage import SQLiteStorage


class Trackio:
    """Gives a run to trackio."""

    def __init__(self, project: str, name: str, group: str):
        """Continues the run of that name, if there is one.

        Raises:
            ConnectionError: its recorded steps cannot be read.
        """
        waiting = SQLiteStorage.get_pending_logs(project) or {"logs": []}  # It will send these itself.
        with _silenced(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            self._run = trackio.init(
                project, name, group, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        place = self._run.url  # Of a server, or the name of a Space; None on this machine.
        failed = [text for each in warned if (text := str(each.message)).startswith("trackio.init() could not")]
        if place is None and utils.get_storage_mode() == "jsonl":
            failed.append("set TRACKIO_DIR to a local disk, or TRACKIO_STORAGE_MODE=sqlite: it keeps JSON lines")
        if failed:
            self.finish()
            raise ConnectionError(f"its recorded steps are unknown: {failed[0].partition(' Continuing')[0]}")
        shown = place if place and "://" in place else f"https://huggingface.co/spaces/{place}"
        self.address = shown if place else f"trackio show --project {shlex.quote(project)}"
        steps = [each["step"] for each in waiting["logs"] if each["run"] == name]
        self.last_step = max([self._run._next_step - 1, *steps])

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes the run's configuration."""
        self._run.config |= json.loads(json.dumps(dict(values)))

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes numbers, texts and pictures."""
        self._run.log({name: _value(value) for name, value in values.items()}, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes the run's summary, as an alert: trackio has no summary."""
        with _silenced():
            self._run.alert("finished", json.dumps(dict(values), indent=2), trackio.AlertLevel.INFO)

    def finish(self) -> None:
        """Writes out pending values."""
        with _silenced():
            trackio.finish()  # Finishes the run opened last, which its own end would finish again.


def _silenced() -> contextlib.AbstractContextManager:
    """Hides what trackio prints."""
    return contextlib.redirect_stdout(io.StringIO())


def _value(value: float | str | Path) -> Any:
    if isinstance(value, str):
        return trackio.Markdown(f"```\n{value}\n```")
    if isinstance(value, Path):
        return trackio.Html(value) if value.suffix == ".html" else trackio.Image(value)
    return value
