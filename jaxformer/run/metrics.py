"""Numbers by step in a file of JSON lines, and from there to trackers."""

import array
import collections
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.host.files import Closing, for_json, write_whole
from jaxformer.run.samples import read_samples
from jaxformer.tracking.tracker import Trackers

# The metric that identifies the batch of a step: no curve.
BATCH = "train/batch"

# In a run folder, a line for each step, and one for each evaluation.
METRICS = "metrics.jsonl"


class Writer(Closing):
    """Writes scalars by step to `metrics.jsonl`, and gives them to trackers.

    Lines that a full disk refuses are kept, and written before the next ones.
    """

    def __init__(self, folder: Path, first_step: int, trackers: Trackers | None = None):
        """Goes on with the file of a run.

        Args:
            folder: of the run.
            first_step: the step that the run begins or resumes at; lines of later steps, and the validation at this
                one, are removed, since they come again.
            trackers: which get the lines and samples that they lack.
        """
        self._path = folder / METRICS
        self._trackers = trackers or Trackers()
        kept = cut_metrics(folder, folder, first_step)
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self._is_behind = False
        samples = read_samples(folder, first_step)
        for line in kept:
            if self._trackers.lack(step := line["step"]):
                sample = {"sample": samples[step]} if step in samples else {}
                self._trackers.log(step, curves(line) | sample)

    def write(self, step: int, numbers: Mapping[str, Any]) -> str | None:
        """Writes one line: the step and its numbers, or lists of numbers by layer.

        Returns None, or a line for the screen when writing begins to fail.
        """
        values: dict[str, Any] = {name: np.asarray(value, float).tolist() for name, value in numbers.items()}
        self._waiting += (json.dumps({"step": step, **for_json(values)}) + "\n").encode()
        failure, was_behind = self._write_waiting(), self._is_behind
        self._is_behind = failure is not None
        if self._trackers.lack(step):
            self._trackers.log(step, curves(values))
        if failure and not was_behind:
            return f"{self._path}: {failure.strerror}; lines that cannot be written are kept for later"
        return None

    def close(self) -> None:
        """Flushes and closes.

        Raises:
            TrainingFailure: lines could not be written.
        """
        if self._file.closed:
            return
        failure = self._write_waiting()
        self._file.close()
        if failure:
            lines = self._waiting.count(b"\n")
            raise TrainingFailure(f"{self._path}: {failure.strerror}; its last {lines} lines are not written")

    def _write_waiting(self) -> OSError | None:
        try:
            while self._waiting:
                # A disk that is nearly full may take only a part.
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            return error
        return None


_floats = functools.partial(np.asarray, dtype=float)


def curves(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns what is drawn of a line: a number for each name; of a list its mean, and its range as `/min`, `/max`."""
    numbers = {}
    for name, value in line.items():
        if isinstance(value, list) and (values := _floats(value)).size:
            spread = {"": values.mean(), "/min": values.min(), "/max": values.max()}
            numbers |= {name + which: float(x) for which, x in spread.items()}
        elif not isinstance(value, list) and name not in ("step", BATCH):
            numbers[name] = float(value)
    return numbers


def read_metrics(folder: Path) -> list[dict]:
    """Returns the whole lines of a run's `metrics.jsonl`; none if there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / METRICS
    try:
        written = path.read_text(errors="replace", encoding="utf-8").splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; move it away") from error
    return [values for line in written if (values := _parse(line))]


class Series(NamedTuple):
    """A number of a run's metrics by ascending step."""

    steps: np.ndarray
    """int64, (N,)."""
    values: np.ndarray
    """float64, (N,); some may not be finite."""


class MetricsReader:
    """Reads the growing `metrics.jsonl` of a run; keeps the numbers, and reads no line twice."""

    def __init__(self, folder: Path):
        self._path = folder / METRICS
        self._read = 0
        self._columns = collections.defaultdict(lambda: (array.array("q"), array.array("d")))

    def read(self) -> dict[str, Series]:
        """Returns the `curves` so far.

        Raises:
            OSError: the file cannot be read.
        """
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # The rest follows later.
                    break
                self._read += len(line)
                numbers = _parse(line) or {"step": 0}
                for name, value in curves(numbers).items():
                    steps, values = self._columns[name]
                    steps.append(numbers["step"])
                    values.append(value)
        return {name: Series(np.array(steps), np.array(values)) for name, (steps, values) in self._columns.items()}


def mean_rate(rates: np.ndarray) -> float:
    """Returns the rate over equal numbers of steps whose own rates are given: the harmonic mean; NaN without any."""
    finite = rates[np.isfinite(rates) & (rates > 0)]
    return len(finite) / float((1 / finite).sum()) if len(finite) else math.nan


def training_losses(folder: Path) -> np.ndarray:
    """Returns the training losses of a run, float64 nats per target, by step from 0 up to the first that is missing."""
    losses = _losses_by_step(read_metrics(folder))
    return np.array([losses[step] for step in itertools.takewhile(losses.__contains__, itertools.count(1))])


def recent_loss(folder: Path, steps: int = 100) -> float:
    """Returns the mean of the finite training losses of a run's last steps, nats per target; NaN where none is."""
    losses = np.array([loss for _, loss in sorted(_losses_by_step(read_metrics(folder)).items())][-steps:])
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if len(finite) else math.nan


def check_recorded(folder: Path, lines: Sequence[dict], first_step: int) -> str | None:
    """Returns a line on the steps before the resumed one that `metrics.jsonl` lacks; None if all are there.

    Args:
        folder: of the run.
        lines: its `metrics.jsonl`, as of `read_metrics`.
        first_step: the one that it resumes at.

    Raises:
        UserError: it has none of them, as when it was compressed or emptied since.
    """
    path, recorded = folder / METRICS, _losses_by_step(lines)
    missing = first_step - sum(1 <= step <= first_step for step in recorded)
    require(
        missing < first_step or first_step == 0,
        f"{path}: none of the {first_step} steps so far is there; restore the file, or choose another --workdir",
    )
    if not missing:
        return None
    return f"{path}: {missing} of the {first_step} steps so far are missing; the run cannot be compared with others"


def _losses_by_step(lines: Sequence[dict]) -> dict[int, float]:
    return {line["step"]: float(line["train/loss"]) for line in lines if "train/loss" in line}


def validation_losses(lines: Sequence[dict]) -> dict[int, float]:
    """Returns the validation loss, nats per target, by step, of the lines of a run's `metrics.jsonl`."""
    return {line["step"]: float(line["validation/loss"]) for line in lines if "validation/loss" in line}


def _parse(line: str | bytes) -> dict | None:
    """Returns a step and its numbers, or None where a line is damaged or not of `Writer.write`."""
    try:
        values = json.loads(line)
        for name, value in values.items():
            # Lists, by layer, have names such as train/feed_forward/load.
            check: Any = _floats if isinstance(value, list) and name.count("/") > 1 else float
            check(value)
        return values if isinstance(values["step"], int) else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def cut_metrics(source: Path, target: Path, first_step: int) -> list[dict]:
    """Copies to a run folder the metrics of another up to a step at which the run resumes; returns their lines."""
    kept = [line for line in read_metrics(source) if _is_kept(first_step, line["step"], line)]
    write_whole(target / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept


def _is_kept(first_step: int, step: int, names: Iterable[str]) -> bool:
    """Returns whether scalars of a step stay when a run resumes at `first_step`, whose validation is repeated."""
    is_of_training = all(name == "step" or name.startswith("train/") for name in names)
    return step < first_step or (step == first_step and is_of_training)
