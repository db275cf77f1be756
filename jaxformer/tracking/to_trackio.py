"""A run in trackio's database on this machine, which needs no account; `trackio show` opens its page."""

import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage


class Trackio:
    """Gives a run to trackio."""

    def __init__(self, project: str, name: str, group: str):
        """Goes on with the run of that name, if there is one."""
        with _silenced():
            self._run = trackio.init(
                project, name, group, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        self.look = f"trackio show --project {shlex.quote(project)}"
        last = SQLiteStorage.get_max_step_for_run(project, run_id=self._run.id)
        self.last_step = -1 if last is None else last

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes what the run is."""
        self._run.config |= json.loads(json.dumps(dict(values)))

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes numbers, texts and pictures."""
        self._run.log({name: _value(value) for name, value in values.items()}, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes what the run came to, as an alert: trackio has no summary."""
        with _silenced():
            self._run.alert("finished", json.dumps(dict(values), indent=2), trackio.AlertLevel.INFO)

    def finish(self) -> None:
        """Writes out what waits."""
        with _silenced():
            trackio.finish()  # Of the run that was opened last, which its own end would finish again.


def _silenced() -> contextlib.AbstractContextManager:
    """Keeps from the screen what trackio prints."""
    return contextlib.redirect_stdout(io.StringIO())


def _value(value: float | str | Path) -> Any:
    if isinstance(value, str):
        return trackio.Markdown(f"```\n{value}\n```")
    if isinstance(value, Path):
        return trackio.Html(value) if value.suffix == ".html" else trackio.Image(value)
    return value
