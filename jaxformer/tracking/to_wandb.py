"""A run at Weights & Biases, or stored for it in the run folder without an account or network."""

# The classes of protocol buffers are made when they are imported.
# pyright: reportAttributeAccessIssue=false

import html
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError
from wandb.proto.wandb_internal_pb2 import Record

from jaxformer.host.paths import shell_word

# Format of its run files, which are LevelDB logs: bytes of a block and of the file's header, the header of a part of a
# record, and the kinds of parts that begin and end a record.
_BLOCK, _FILE_HEADER, _PART_HEADER = 32768, 7, struct.Struct("<IHB")
_BEGINS, _ENDS = (1, 2), (1, 4)

# Seconds after the end of a run to send what is left; then a command must do it.
_MOST_SECONDS_TO_SEND = 120


class WeightsAndBiases:
    """Gives a run to Weights & Biases."""

    def __init__(self, folder: Path, project: str, name: str, group: str, run_id: str):
        """Continues the run of that id, if there is one. Args: as of `tracker.open_trackers`."""
        mode: Any = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False):
            mode = "offline"
        same: Any = {
            "project": project,
            "name": name,
            "group": group,
            "id": run_id,
            "resume": "allow",
            "dir": str(folder),
            "reinit": "create_new",  # Else it would return a run that this process opened elsewhere.
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=30,
                finish_timeout=_MOST_SECONDS_TO_SEND,
                finish_timeout_raises=True,
            ),
        }
        try:
            self._run = wandb.init(**same, mode=mode)
        except CommError:
            self._run = wandb.init(**same, mode="offline")
        # Each process writes a part of the run, and an online one sends the server what it lacks.
        parts = folder / "wandb" if self._run.offline else Path(self._run.settings.sync_dir)
        self._sync = f"wandb sync --include-online {shell_word(parts)}"
        self._exit_code = 1
        if self._run.disabled:
            self.address, self.last_step = "nowhere, since WANDB_MODE=disabled", -1
        elif self._run.offline:
            self.address, self.last_step = self._sync, _last_step(folder, run_id)
        else:
            self.address, self.last_step = str(self._run.url), self._run.step - 1

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes the run's configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes numbers, texts, pictures and pages."""
        self._run.log({name: _value(value) for name, value in values.items()}, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes the run's summary."""
        self._run.summary.update(dict(values))
        self._exit_code = 0

    def finish(self) -> None:
        """Sends pending values; a run without a summary is shown as failed.

        Raises:
            TimeoutError: it took too long.
        """
        try:
            self._run.finish(exit_code=self._exit_code)
        except TimeoutError as error:
            raise TimeoutError(f"not all was sent in {_MOST_SECONDS_TO_SEND} s; `{self._sync}` sends it") from error


def _last_step(folder: Path, run_id: str) -> int:
    """Returns the last step of a run in its parts in a run folder, or -1."""
    parts = folder.glob(f"wandb/*run-*-{run_id}/*.wandb")
    records = (Record.FromString(record) for path in parts for record in read_records(path))
    return max((record.history.step.num for record in records if record.HasField("history")), default=-1)


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a file `run-ID.wandb`, as far as it is whole."""
    data, at, record = path.read_bytes(), _FILE_HEADER, b""
    while True:
        if _BLOCK - at % _BLOCK < _PART_HEADER.size:  # What is left of a block has no room for a header.
            at += _BLOCK - at % _BLOCK
        if at + _PART_HEADER.size > len(data):
            return
        _, size, kind = _PART_HEADER.unpack_from(data, at)
        at += _PART_HEADER.size + size
        part = data[at - size : at]
        record = part if kind in _BEGINS else record + part
        if at <= len(data) and kind in _ENDS:
            yield record


def _value(value: float | str | Path) -> Any:
    if isinstance(value, str):
        return wandb.Html(f"<pre>{html.escape(value)}</pre>", inject=False)
    if not isinstance(value, Path):
        return value
    is_page = value.suffix == ".html"
    return wandb.Html(value.read_text(encoding="utf-8"), inject=False) if is_page else wandb.Image(str(value))
