"""The texts that a model wrote as it was trained, with the same draws, in the run's folder."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jaxformer.host.files import write_whole

_SAMPLES = "samples.jsonl"


def write_samples(folder: Path, samples: Mapping[int, str]) -> None:
    """Writes the samples of a run by step, in place of what is there; none are no file.

    Raises:
        OSError: they cannot be written.
    """
    if samples:
        write_whole(folder / _SAMPLES, b"".join(_line(step, text) for step, text in samples.items()))


def append_sample(folder: Path, step: int, text: str) -> None:
    """Writes a sample of a run behind those before.

    Raises:
        OSError: it cannot be written, or a part of it alone.
    """
    with (folder / _SAMPLES).open("ab") as file:
        file.write(_line(step, text))


def _line(step: int, text: str) -> bytes:
    return (json.dumps({"step": step, "text": text}) + "\n").encode()


def read_samples(folder: Path, before: float = math.inf) -> dict[int, str]:
    """Returns the samples of a run by step, as far as they can be read; those before a step alone."""
    samples = {}
    with contextlib.suppress(OSError):
        for line in (folder / _SAMPLES).read_text(errors="replace", encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                samples[int(record["step"])] = str(record["text"])
    return {step: text for step, text in samples.items() if step < before}
