"""The folder of a run: held by one process, and its files, which are whole or absent."""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import resource
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxformer.attention.dispatch import Implementation
from jaxformer.checkpoint.retention import most_kept
from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer
from jaxformer.data.tokenizer_files import TOKENIZER_FILES
from jaxformer.devices.options import recorded_options
from jaxformer.evaluation.config import task_names
from jaxformer.evaluation.result_files import describe_validation
from jaxformer.experiment.experiment import Experiment, recorded_experiment, trained_tokens
from jaxformer.experiment.lineage import Lineage
from jaxformer.host.console import format_size, print_line, print_notice
from jaxformer.host.files import for_json, read_json, require_json, write_json, write_whole
from jaxformer.host.lock import LOCK, Held, hold
from jaxformer.host.paths import check_literal, shell_word
from jaxformer.optimizer import decay_start
from jaxformer.record import missing_parts, to_dict
from jaxformer.run.forecast import read_forecast
from jaxformer.run.identity import ADVICE, CONFIG, code_digest, git_state, read_config
from jaxformer.run.metrics import recent_loss
from jaxformer.run.own_parts import keep_sources, load_sources

# Sections whose parts a trained model does not need.
_NOT_OF_A_MODEL = ("corpus", "evaluation")

# Keys of `describe_environment` that are kept for each start of a run.
_OF_A_START = ("code", "git", "device", "devices", "cores", "versions", "environment")


def check_disk(workdir: Path, needed_bytes: int, what: str) -> None:
    """Raises `UserError` where the disk of a run folder, which need not exist yet, has less room than is needed."""
    place = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    # Remains of interrupted saves will be removed.
    leftovers = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp/**/*")
    free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in leftovers if path.is_file())
    require(
        needed_bytes <= free,
        f"run folder {workdir}: {what} take up to {format_size(needed_bytes)} more, and {format_size(free)} are free; "
        "free space, choose another --workdir, or lower checkpoint.keep",
    )


@contextlib.contextmanager
def hold_folder(workdir: Path) -> Iterator[None]:
    """Keeps other processes from running in a folder, which is created if missing.

    A run that ends before its first file is written leaves nothing behind.

    Raises:
        UserError: another process runs in it, or the folder cannot be written or is no folder.
    """
    created = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    lock = workdir / LOCK
    is_new = not lock.exists()
    with contextlib.ExitStack() as stack:
        try:
            check_literal(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(lock))
        except Held as error:
            raise UserError(
                f"run folder {workdir}: {error} is running in it; wait for it, or choose another --workdir or --seed"
            ) from error
        except (OSError, UserError) as error:
            if is_new:
                _remove_new(lock, created)
            if isinstance(error, UserError):
                raise
            raise UserError(f"run folder {workdir}: {error.strerror}; choose another --workdir") from error
        try:
            _require_writable(workdir)
            yield
        except BaseException as error:
            if is_new and (isinstance(error, UserError) or not (workdir / CONFIG).exists()):
                _remove_new(lock, created)
            raise


def check_still_there(workdir: Path) -> None:
    """Raises `TrainingFailure` where a run folder was moved or removed since the run began.

    Orbax would create it again, and the run would end in a folder without its configuration and metrics.
    """
    if not (workdir / CONFIG).exists():
        raise TrainingFailure(
            f"run folder {workdir}: moved or removed during the run; put it back, and the same command resumes "
            "from what is saved in it"
        )


def _remove_new(lock: Path, folders: Iterable[Path]) -> None:
    """Removes a lock, and folders, the innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _require_writable(folder: Path) -> None:
    """Raises `UserError` where a file of some size cannot be written to a run folder."""
    probe = folder / "probe.unfinished"
    try:
        with probe.open("wb") as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"run folder {folder}: {error.strerror}; choose another --workdir") from error
    finally:
        probe.unlink(missing_ok=True)


def recorded_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a start of a run records."""
    packages = (
        "jaxformer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
        "sentencepiece",
    )  # fmt: skip
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}


def describe_environment(attention: Implementation, device_kind: str, devices: int) -> dict:
    """Returns code, versions, devices and attention of a start of a run, for its `config.json`."""
    return {
        "code": code_digest(),
        "git": git_state(),
        "versions": recorded_versions(),
        "environment": recorded_options(),
        "attention": dataclasses.asdict(attention),
        "device": device_kind,
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def write_config(
    workdir: Path,
    experiment: Experiment,
    lineage: Lineage,
    belongs_to: Mapping[str, Mapping],
    environment: Mapping[str, Any],
    tokenizer: Tokenizer,
    step: int,
) -> None:
    """Writes the tokenizer, the source of your parts, and `config.json`: configuration, environment and starts.

    Args:
        belongs_to: what identifies the run: `identity`, `digests` and `tasks`; and a description of its `corpora`.
        environment: of `describe_environment`.
        step: at which the run starts or goes on.

    Raises:
        UserError: it cannot be written.
    """
    path = workdir / CONFIG
    if tokenizer.kind == "tokenizer.json":
        versions = {**environment["versions"], "tokenizers": importlib.metadata.version("tokenizers")}
        environment = {**environment, "versions": versions}
    before = read_config(workdir) or {}
    starts = [start for start in before.get("starts", []) if start["step"] < step]
    start = {"step": step, **{name: environment[name] for name in _OF_A_START}, "own_code": dict(lineage.own_code)}
    forecast = read_forecast(workdir)
    record = {
        "experiment": experiment.name,
        "seed": belongs_to["identity"]["seed"],
        "question": experiment.question,
        # From the first start, whatever step it was stopped at.
        "forecast": before.get("forecast", forecast.digest if forecast else ""),
        "tracked_as": before.get("tracked_as") or uuid.uuid4().hex[:12],
        "lineage": dataclasses.asdict(lineage),
        "config": to_dict(experiment),
        **belongs_to,
        # Tasks that this start leaves out have scores here too.
        "tasks": before.get("tasks", {}) | belongs_to["tasks"],
        **environment,
        "starts": [*starts, start],
    }
    try:
        for name, content in tokenizer.files().items():
            write_whole(workdir / name, content)
        keep_sources(workdir, experiment)
        write_json(path, record)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; free space, or choose another --workdir") from error


def evaluations_folder(workdir: Path, step: int) -> Path:
    """Returns the folder for the evaluations of a step."""
    return workdir / "evaluations" / f"step_{step}"


def peak_memory() -> int:
    """Returns the peak memory of this process, bytes: the device's if it is counted there, else the host's."""
    on_device = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return on_device.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_run(workdir: Path) -> tuple[Experiment, dict]:
    """Returns the experiment of a run folder, and its `config.json`.

    Raises:
        UserError: there is none, it is damaged, or made with a part whose code is unknown here; an unknown reader or
            task is refused only where it is used.
    """
    advice = "give the folder of a run"
    if workdir.name.isdecimal() and workdir.parent.name == "checkpoints":
        advice = f"give {workdir.parent.parent} and step {workdir.name} (--step={workdir.name})"
    record = require_json(workdir / CONFIG, f"run folder {workdir}: no config.json; {advice}")
    is_huggingface = "model_type" in record and "config" not in record
    require(not is_huggingface, f"{workdir}: a Hugging Face folder, not a run; give the folder of a run")
    try:
        for name in ("seed", "digests", "attention", "device"):
            record[name]
        experiment = recorded_experiment(record["config"])
        if missing := missing_parts(experiment):
            load_sources(missing)
            experiment = recorded_experiment(record["config"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{workdir / 'config.json'}: not the configuration of a run ({error})") from error
    sections = (each.name for each in dataclasses.fields(experiment) if each.name not in _NOT_OF_A_MODEL)
    for advice in missing_parts(tuple(getattr(experiment, name) for name in sections)).values():
        raise UserError(f"run folder {workdir}: {advice}")
    return experiment, record


def run_tokenizer(workdir: Path, record: dict) -> Tokenizer:
    """Returns the tokenizer that a run folder keeps.

    Args:
        record: the run's `config.json`.

    Raises:
        UserError: it is missing, or not the one that the run began with.
    """
    names = [name for name in TOKENIZER_FILES if (workdir / name).is_file()]
    require(bool(names), f"run folder {workdir}: no {' or '.join(TOKENIZER_FILES)}; put back a copy of the tokenizer")
    path = workdir / names[0]
    tokenizer = load_tokenizer(path)
    is_same = tokenizer.digest == record["digests"]["tokenizer"]
    require(is_same, f"{path}: not the tokenizer of this run; put back a copy of that")
    return tokenizer


def summarise(
    experiment: Experiment,
    seed: int,
    workdir: Path,
    seconds: float,
    device_seconds: float,
    evaluation: dict[str, float],
    best_checkpoint: int | None,
) -> dict:
    """Returns the content of `summary.json` for a finished run."""
    steps = experiment.training.steps
    summary = {
        "status": "finished",
        "experiment": experiment.name,
        "seed": seed,
        "steps": steps,
        "tokens": trained_tokens(experiment),
        "seconds": seconds,
        "device_hours": device_seconds / 3600,
        "peak_memory_bytes": peak_memory(),
        "train/loss": recent_loss(workdir),
        **evaluation,
        "best_checkpoint": best_checkpoint,
    }
    return for_json(summary)


def finished_summary(workdir: Path, experiment: Experiment) -> dict | None:
    """Returns the summary of a run if it is finished; prints that, and which tasks have no scores."""
    path = workdir / "summary.json"
    summary = read_json(path, ADVICE)
    if summary is None:
        return None
    try:
        validation = {name: float(summary[f"validation/{name}"]) for name in ("loss", "bits_per_byte")}
        error = "bits_per_byte_standard_error"
        validation[error] = float(summary.get(f"validation/{error}", math.nan))
        print_line(f"{workdir}: finished, {summary['steps']} steps, validation {describe_validation(validation)}")
        wanted = task_names(experiment.evaluation.tasks) if experiment.evaluation.task_data else []
        if missing := ",".join(name for name in wanted if f"{name}/acc" not in summary):
            print_notice(
                f"it has no scores of {missing}; get them by `jaxformer evaluate --workdir={shell_word(workdir)} "
                f"--task={missing} --data={shell_word(Path(experiment.evaluation.task_data))}`"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the summary of a run; remove it to validate the last checkpoint again") from error
    return summary


def checkpoints_to_come(experiment: Experiment, workdir: Path) -> int:
    """Returns the most checkpoints that the run will need room for, beside those that exist."""
    steps, config = experiment.training.steps, experiment.checkpoint
    branch = decay_start(experiment.optimizer, steps)
    saves = steps // config.every_steps + steps // experiment.evaluation.every_steps + 1 + (branch > 0)
    present = sum(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    return max(1, min(saves, most_kept(config, steps, branch)) - present)
