"""TensorBoard's files in a run folder, written without TensorFlow."""

# The classes of protocol buffers are made when they are imported.
# pyright: reportAttributeAccessIssue=false

import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from jaxformer.host.paths import shell_word

_FILES = "events.out.tfevents.*"


class TensorBoard:
    """Writes a run to TensorBoard's files: all values of a step in one record, whole or absent."""

    def __init__(self, folder: Path):
        self.last_step = max((event.step for event in _read(folder)), default=-1)
        self.address = f"tensorboard --logdir {shell_word(folder)}"
        self._writer = EventFileWriter(str(folder))

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes the configuration of a run that begins."""
        if self.last_step < 0:
            self._add(0, hparams_pb(dict(_leaves(values["config"]))))

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes numbers, texts and PNG files."""
        self._add(step, Summary(value=[_value(name, value) for name, value in values.items()]))
        self.last_step = step

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes the run's summary."""
        self._add(self.last_step, Summary(value=[_value("summary", json.dumps(values, indent=2))]))

    def finish(self) -> None:
        """Writes out pending values."""
        self._writer.close()

    def _add(self, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _read(folder: Path) -> Iterator[Event]:
    """Yields the records of a run's steps, as far as they are whole."""
    for path in sorted(folder.glob(_FILES)):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            if event.summary.value and event.summary.value[0].tag != SESSION_START_INFO_TAG:
                yield event


def _value(name: str, value: float | str | Path) -> Summary.Value:
    if isinstance(value, str):
        text = TensorProto(dtype=DT_STRING, string_val=[f"```\n{value}\n```".encode()])
        return Summary.Value(tag=name, metadata=create_summary_metadata(name, ""), tensor=text)
    if isinstance(value, Path):
        data = value.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # Of a PNG file's header.
        image = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        return Summary.Value(tag=name, image=image)
    return Summary.Value(tag=name, simple_value=value)


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, float | str]]:
    """Yields the leaves of nested values by dotted path."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, values if isinstance(values, bool | int | float | str) else json.dumps(values)
