"""The samples of a model during its training, drawn with the same seed, in the run's folder."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jaxformer.host.files import write_whole

_SAMPLES = "samples.jsonl"


def write_samples(folder: Path, samples: Mapping[int, str]) -> None:
    """Replaces the samples of a run, by step; without any, there is no file.

    Raises:
        OSError: they cannot be written.
    """
    if samples:
        write_whole(folder / _SAMPLES, b"".join(_line(step, text) for step, text in samples.items()))


def append_sample(folder: Path, step: int, text: str) -> None:
    """Appends a sample of a run.

    Raises:
        OSError: it cannot be written, or only in part.
    """
    with (folder / _SAMPLES).open("ab") as file:
        file.write(_line(step, text))


def _line(step: int, text: str) -> bytes:
    return (json.dumps({"step": step, "text": text}) + "\n").encode()


def read_samples(folder: Path, before: float = math.inf) -> dict[int, str]:
    """Returns the readable samples of a run by step, only those before a step."""
    samples = {}
    with contextlib.suppress(OSError):
        for line in (folder / _SAMPLES).read_text(errors="replace", encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                samples[int(record["step"])] = str(record["text"])
    return {step: text for step, text in samples.items() if step < before}
