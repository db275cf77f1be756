"""How long the parts of runs took on this machine, a line per run in the cache; plans of further runs use it."""

import contextlib
import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxformer.config import UserError
from jaxformer.experiment.experiment import Experiment
from jaxformer.host.cache import cache_folder
from jaxformer.host.workers import usable_processors
from jaxformer.record import to_dict

# In the cache, a line for each run.
_FILE = "durations.jsonl"

# The number of last runs that count, and the bytes that are read at the file's end.
_LAST, _TAIL = 5, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Seconds of the parts of a run, and other measurements of it; NaN for what is unknown."""

    data: float = math.nan
    """To prepare the data."""
    start: float = math.nan
    """From there until the first step is done: the state, its check and compilation."""
    step: float = math.nan
    """Of a further step, on average, with the rest of the loop."""
    first_evaluation: float = math.nan
    """With a save, a sample and the page."""
    evaluation: float = math.nan
    """Of those between the first and the last, on average."""
    last_evaluation: float = math.nan
    """Of the last, with all items of tasks; NaN where it is the first."""
    compiled_evaluation: float = math.nan
    """By which the first takes longer than later ones."""
    peak_memory: float = math.nan
    """Bytes at the peak, the device's where it keeps count, else the process's."""
    corpus_tokens: float = math.nan
    """Tokens that the corpora hold to train on."""


def keep_durations(experiment: Experiment, durations: Durations) -> None:
    """Adds a run to those that plans use, if the cache can be written.

    Args:
        experiment: as it was computed, with its `remat` and `micro_batches`.
    """
    known = {name: value for name, value in vars(durations).items() if math.isfinite(value)}
    line = {"machine": _machine(experiment), **_digests(experiment), "durations": known}
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _FILE).open("ab") as file:  # In one write, since other processes may write too.
            file.write((json.dumps(line) + "\n").encode())
    except (OSError, UserError):  # Does not matter to the run, which is over.
        return


def step_digest(experiment: Experiment) -> str:
    """Returns the digest of all that the time of an experiment's step depends on."""
    return _digests(experiment)["step"]


def recall_durations(experiment: Experiment) -> Durations:
    """Returns what the last runs on this machine took, as medians.

    Each part counts runs with the same data, step or evaluations; compiling an evaluation counts all. For what is made
    once and then found in a cache, the fastest counts.

    Args:
        experiment: as it will be computed.
    """
    machine, ours = _machine(experiment), _digests(experiment)
    lines = [line for line in _read_lines() if line.get("machine") == machine]

    def last(name: str, *same: str, of: Callable[[list[float]], float] = statistics.median) -> float:
        found = [line["durations"] for line in lines if all(line.get(each) == ours[each] for each in same)]
        known = [durations[name] for durations in found if name in durations][-_LAST:]
        return of(known) if known else math.nan

    # The first run prepares its data, and later runs find them in the cache, where this file lies too.
    prepared = [line["durations"]["data"] for line in lines if line.get("data") == ours["data"]]
    return Durations(
        data=min(prepared[1:], default=0.0) if prepared else math.nan,
        start=last("start", "step", of=min),
        step=last("step", "step"),
        first_evaluation=last("first_evaluation", "step", "evaluation", of=min),
        evaluation=last("evaluation", "step", "evaluation"),
        last_evaluation=last("last_evaluation", "step", "evaluation"),
        compiled_evaluation=last("compiled_evaluation"),
        peak_memory=last("peak_memory", "step", "evaluation", of=max),
        corpus_tokens=last("corpus_tokens", "data"),
    )


def _machine(experiment: Experiment) -> list:
    """Returns what decides how fast the same code is; a queue may give its runs only some of the processors."""
    kind, mesh = jax.local_devices()[0].device_kind, vars(experiment.mesh)
    return [kind, mesh, usable_processors(), jax.__version__, os.environ.get("GLIBC_TUNABLES", "")]


def _digests(experiment: Experiment) -> dict[str, str]:
    """Returns digests of what the time of an experiment's data, step and evaluations depends on."""
    config = to_dict(experiment)
    training = [config["training"][name] for name in ("rows_per_step", "phases", "micro_batches", "compute_dtype")]
    parts = {
        "data": [config["corpus"], config["tokenizer"], config["evaluation"]["task_data"], config["packing"]],
        "step": [config["model"], config["packing"], training, config["attention"], config["optimizer"]["name"]],
        "evaluation": [config["corpus"], config["evaluation"]],
    }
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def _read_lines() -> list[dict]:
    """Returns the runs in the cache, without cut lines or those of another version."""
    try:
        with (cache_folder() / _FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            texts = file.read().splitlines()
    except (OSError, UserError):
        return []
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("durations"), dict)]
