"""A run at Weights & Biases, or kept for it in the run folder where there is no account or no network."""

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

# Of the files in which it keeps a run, which are LevelDB's logs: bytes of a block and of the file's header, and the
# header of a part of a record; and the kinds of the parts that begin a record and that end it.
_BLOCK, _FILE_HEADER, _PART_HEADER = 32768, 7, struct.Struct("<IHB")
_BEGINS, _ENDS = (1, 2), (1, 4)


class WeightsAndBiases:
    """Gives a run to Weights & Biases."""

    def __init__(self, folder: Path, project: str, name: str, group: str, run_id: str):
        """Goes on with the run of that id, if there is one. Args: as of `tracker.open_trackers`."""
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
        }
        settings = wandb.Settings(console="off", silent=True, init_timeout=30)
        try:
            self._run = wandb.init(**same, mode=mode, settings=settings)
        except CommError:
            self._run = wandb.init(**same, mode="offline", settings=settings)
        offline = f"wandb sync {shell_word(Path(self._run.settings.sync_dir))}"
        self.look = offline if self._run.offline else str(self._run.url)
        # What a killed process gave last may be in its files alone, and the files on another machine.
        records = (
            Record.FromString(record)
            for path in folder.glob(f"wandb/*run-*-{run_id}/*.wandb")
            for record in read_records(path)
        )
        kept = (record.history.step.num for record in records if record.HasField("history"))
        self.last_step = max(self._run.step - 1, max(kept, default=-1))
        self._exit_code = 1

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes what the run is."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes numbers, texts, pictures and pages."""
        self._run.log({name: _value(value) for name, value in values.items()}, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes what the run came to."""
        self._run.summary.update(dict(values))
        self._exit_code = 0

    def finish(self) -> None:
        """Sends what waits; a run without a summary is shown as one that failed."""
        self._run.finish(exit_code=self._exit_code)


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a file `run-ID.wandb`, as far as it is whole."""
    data, at, record = path.read_bytes(), _FILE_HEADER, b""
    while True:
        if _BLOCK - at % _BLOCK < _PART_HEADER.size:  # What is left of a block has no room for a header.
            at += _BLOCK - at % _BLOCK
        if at + _PART_HEADER.size > len(data):
            return
        _, size, kind = _PART_HEADER.unpack_from(data, at)
        part = data[at + _PART_HEADER.size :][:size]
        at += _PART_HEADER.size + size
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
