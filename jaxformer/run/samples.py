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
        lines = [json.dumps({"step": step, "text": text}) + "\n" for step, text in samples.items()]
        write_whole(folder / _SAMPLES, "".join(lines).encode())


def read_samples(folder: Path, before: float = math.inf) -> dict[int, str]:
    """Returns the samples of a run by step, as far as they can be read; those before a step alone."""
    samples = {}
    with contextlib.suppress(OSError):
        for line in (folder / _SAMPLES).read_text(errors="replace", encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                samples[int(record["step"])] = str(record["text"])
    return {step: text for step, text in samples.items() if step < before}
