"""Finished runs, read back from their folders for a comparison; an unreadable one does not affect the others."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.seeds import is_screening_seed
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import Experiment, recorded_experiment
from jaxformer.host.files import require_json
from jaxformer.host.paths import shell_word
from jaxformer.jobs.queue import OVER, State, state_on_disk
from jaxformer.run.folder import evaluations_folder
from jaxformer.run.identity import CONFIG
from jaxformer.run.metrics import BATCH, read_metrics

BITS = "validation/bits_per_byte"

# Keys that `config.json` must have for a comparison.
_RECORDED = (
    "experiment",
    "question",
    "lineage",
    "seed",
    "config",
    "identity",
    "digests",
    "starts",
    "device",
    "versions",
)

# Advice for a damaged record.
_TRAIN_ON = "remove it and start the run again, which resumes from its checkpoints"

# The name of a run folder.
_SEED = re.compile(r"seed_\d+")

# Keys of an evaluation's file for what a result depends on, beside the model and the data.
_EVALUATED_WITH = ("code", "row_length", "compute_dtype", "device", "versions")


class Items(NamedTuple):
    """The scores of a task's items, as of `scores.ItemScores`, in the order of the items."""

    primary: str
    """'acc' or 'acc_norm', the accuracy to report."""
    acc: np.ndarray
    acc_norm: np.ndarray
    gold_bits_per_byte: np.ndarray
    margin: np.ndarray
    groups: np.ndarray
    """A label for each item, equal for dependent items."""
    identity: dict
    """What the scores depend on, beside the model."""

    @property
    def accuracy(self) -> np.ndarray:
        """The accuracy to report, 0 or 1 for each item."""
        return getattr(self, self.primary)


class Documents(NamedTuple):
    """The losses of a corpus's validation documents."""

    documents: np.ndarray
    """Their indices."""
    bits: np.ndarray
    """Bits of each, float64."""
    text_bytes: np.ndarray
    """UTF-8 bytes of each."""
    digest: str
    """Digest of the corpus's sources."""
    identity: dict
    """What the losses depend on beside the model and the text."""
    sources: np.ndarray
    """A label for each, equal for dependent documents, such as pieces of one file."""


class FinishedRun(NamedTuple):
    """A finished run."""

    workdir: Path
    experiment: Experiment
    """What was run."""
    record: dict
    """Its `config.json`."""
    summary: dict
    """Its `summary.json`."""
    validation: dict[str, Documents]
    """Validation by corpus, after the last step."""
    tasks: dict[str, Items]
    """Tasks by name, after the last step."""
    losses: np.ndarray
    """Training loss by step from 0, nats per target."""
    batches: np.ndarray
    """The digest of each step's batch."""
    curve: np.ndarray
    """(step, validation bits per byte) of each evaluation."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.record["seed"]

    @property
    def device_hours(self) -> float:
        """Hours that the run took, times its devices."""
        return float(self.summary["device_hours"])

    @property
    def bits_per_byte(self) -> float:
        """On all validation documents together."""
        parts = self.validation.values()
        return sum(one.bits.sum() for one in parts) / sum(one.text_bytes.sum() for one in parts)


class Runs(NamedTuple):
    """The runs of an experiment."""

    folders: list[Path]
    """Folders that can be read, finished or not, by seed."""
    finished: list[FinishedRun]
    """By seed."""
    unreadable: tuple[str, ...]
    """A line on each folder that cannot be read, and why; it begins with the path."""


def read_runs(runs: Path, experiment: str) -> Runs:
    """Returns the runs of an experiment as of `seed_folders`, and which folders could not be read."""
    folders, readable, finished, unreadable = [], [], [], []
    try:
        folders = seed_folders(runs / experiment)
    except UserError as error:
        unreadable.append(str(error))
    for workdir in folders:
        try:
            if _is_finished(workdir):
                finished.append(load_finished_run(workdir))
            readable.append(workdir)
        except UserError as error:
            unreadable.append(str(error))
    return Runs(readable, finished, tuple(unreadable))


def seed_folders(folder: Path) -> list[Path]:
    """Returns the run folders of an experiment by seed, given the folder of its runs; none if that is missing.

    Runs of screenings are left out (`is_screening_seed`), so that neither a comparison nor a noise floor reads them.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = sorted((path for path in folder.iterdir() if _SEED.fullmatch(path.name)), key=seed_of)
        return [path for path in found if not is_screening_seed(seed_of(path))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error


def seed_of(workdir: Path) -> int:
    """Returns the seed that a run folder is named after."""
    return int(workdir.name.removeprefix("seed_"))


def has_diverged(workdir: Path) -> bool:
    """Returns whether an unfinished run ended because its loss or gradient was not finite."""
    return any((workdir / "faults").glob("*.npz")) and state_on_disk(workdir)[0] is State.WAITING


def ended_seeds(folder: Path) -> list[int]:
    """Returns the seeds of an experiment, given by the folder of its runs, that have a result or are known to fail."""
    ended = (path for path in seed_folders(folder) if state_on_disk(path)[0] in OVER or has_diverged(path))
    return [seed_of(path) for path in ended]


def final_bits_per_byte(workdir: Path) -> float | None:
    """Returns the final bits per byte of a run, from its small files; infinite if it diverged, None if not over.

    Raises:
        UserError: they are damaged, or of another run.
    """
    if not _is_finished(workdir):
        return math.inf if has_diverged(workdir) else None
    _, summary = _read_record(workdir)
    try:
        path = evaluations_folder(workdir, int(summary["steps"])) / "validation.json"
        bits = float(_require_evaluation(path)[BITS])
        require(math.isfinite(bits), f"{path}: its bits per byte are not finite; {_evaluate_anew(path)}")
        return bits
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"run folder {workdir}: damaged ({type(error).__name__}: {error}); train it again") from error


def _is_finished(workdir: Path) -> bool:
    """Returns whether a folder has the summary of a run; raises `UserError` where that cannot be seen."""
    is_dead_link = workdir.is_symlink() and not workdir.exists()
    require(not is_dead_link, f"run folder {workdir}: a broken link")
    try:
        (workdir / "summary.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"run folder {workdir}: {error.strerror}") from error
    return True


def load_finished_run(workdir: Path, *, is_named: bool = True) -> FinishedRun:
    """Returns a finished run.

    Args:
        workdir: its folder.
        is_named: whether the folder must be named after the experiment and the seed, as in a study.

    Raises:
        UserError: it is not finished, or its files are damaged.
    """
    record, summary = _read_record(workdir, is_named=is_named)
    try:
        experiment = recorded_experiment(record["config"])
    except (TypeError, AttributeError, UserError) as error:
        raise UserError(f"run folder {workdir}: another version made it ({error}); train it again") from error
    try:
        _check_shape(record, summary)
        folder = evaluations_folder(workdir, int(summary["steps"]))
        lines = read_metrics(workdir)
        training = {line["step"]: line for line in lines if "train/loss" in line}
        steps = sorted(training)
        require(
            steps == list(range(1, len(steps) + 1)) and len(steps) == summary["steps"],
            f"{workdir / 'metrics.jsonl'}: steps are missing; train the run again",
        )
        curve = {line["step"]: float(line[BITS]) for line in lines if BITS in line}
        return FinishedRun(
            workdir,
            experiment,
            record,
            summary,
            _read_validation(folder),
            {path.stem: _read_items(path) for path in sorted(folder.glob("*.json")) if path.stem != "validation"},
            np.array([float(training[step]["train/loss"]) for step in steps]),
            np.array([int(training[step].get(BATCH, -1)) for step in steps]),
            np.array(sorted(curve.items()), np.float64).reshape(-1, 2),
        )
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"run folder {workdir}: damaged ({type(error).__name__}: {error}); train it anew") from error


def _read_record(workdir: Path, *, is_named: bool = True) -> tuple[dict, dict]:
    """Returns `config.json` and `summary.json` of a finished run; raises `UserError` unless they are its own."""
    unfinished = f"run folder {workdir}: not finished; train it to its end"
    record, summary = (require_json(workdir / name, unfinished, _TRAIN_ON) for name in (CONFIG, "summary.json"))
    lacking = [name for name in _RECORDED if name not in record]
    require(not lacking, f"run folder {workdir}: an older version made it, without {', '.join(lacking)}; train again")
    is_ours = (workdir.parent.name, workdir.name) == (record["experiment"], f"seed_{record['seed']}")
    what = f"it holds {record['experiment']}, seed {record['seed']}; move it back"
    require(is_ours or not is_named, f"run folder {workdir}: {what}")
    return record, summary


def _check_shape(record: dict, summary: dict) -> None:
    """Raises `KeyError`, `TypeError` or `ValueError` unless a record and a summary hold what a comparison reads."""
    lineage, starts = record["lineage"], record["starts"]
    objects = [record["versions"], record["identity"], *(start["versions"] for start in starts)]
    objects += [lineage[name] for name in ("change", "consequences", "overrides")]
    texts = [record["digests"]["tokenizer"], *(start[name] for start in starts for name in ("code", "device"))]
    numbers = [float(summary[name]) for name in ("steps", "tokens", "device_hours")]
    is_whole = all(isinstance(each, dict) for each in objects) and all(isinstance(each, str) for each in texts)
    if not (is_whole and all(map(math.isfinite, numbers))):
        raise ValueError("a field of its record or summary has the wrong type")


def paired_seeds(
    parents: Iterable[FinishedRun], variants: Iterable[FinishedRun]
) -> list[tuple[FinishedRun, FinishedRun]]:
    """Returns (parent, variant) of each seed that both have, by seed."""
    by_seed = {run.seed: run for run in parents}
    return [(by_seed[run.seed], run) for run in sorted(variants, key=lambda run: run.seed) if run.seed in by_seed]


def stack(runs: Sequence[FinishedRun], corpora: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (bits_SI, text_bytes_I, corpora_I) of the documents of some corpora, one after another."""
    bits_SI = np.stack([np.concatenate([run.validation[name].bits for name in corpora]) for run in runs])
    documents = [runs[0].validation[name] for name in corpora]
    strata = np.concatenate([np.full(len(one.bits), i) for i, one in enumerate(documents)])
    return bits_SI, np.concatenate([one.text_bytes for one in documents]).astype(np.float64), strata


def stack_sources(run: FinishedRun, corpora: Sequence[str]) -> np.ndarray:
    """Returns a label for each document (I,), in the order of `stack`: equal for dependent ones."""
    labels = [run.validation[name].sources for name in corpora]
    firsts = np.cumsum([0, *(each.max(initial=0) + 1 for each in labels[:-1])])
    return np.concatenate([each + first for each, first in zip(labels, firsts, strict=True)])


def _evaluate_anew(path: Path) -> str:
    return f"make it again by `jaxformer evaluate --workdir={shell_word(path.parents[2])}`"


def _require_evaluation(path: Path) -> dict:
    return require_json(path, f"{path}: missing; {_evaluate_anew(path)}", _evaluate_anew(path))


def _read_validation(folder: Path) -> dict[str, Documents]:
    path = folder / "validation.json"
    record = _require_evaluation(path)
    rows = _read_lines(path.with_suffix(".documents.jsonl"))
    validation = {}
    for name, corpus in record["corpora"].items():
        ours = sorted((row for row in rows if row["corpus"] == name), key=lambda row: row["document"])
        require(len(ours) == corpus["documents"], f"{path}: documents of {name} are missing; {_evaluate_anew(path)}")
        are_losses = all(0 <= float(row["nats"]) < math.inf and row["text_bytes"] > 0 for row in ours)
        require(are_losses, f"{path}: losses of {name} are not finite; {_evaluate_anew(path)}")
        validation[name] = Documents(
            np.array([row["document"] for row in ours], np.int64),
            np.array([row["nats"] for row in ours], np.float64) / np.log(2),
            np.array([row["text_bytes"] for row in ours], np.int64),
            corpus["digest"],
            _evaluated_with(record),
            np.array([row.get("source", row["document"]) for row in ours], np.int64),  # Older versions had no labels.
        )
    return validation


def _read_items(path: Path) -> Items:
    record = require_json(path, advice=_evaluate_anew(path))
    rows = _read_lines(path.with_suffix(".items.jsonl"))
    require(len(rows) == record["items"], f"{path}: items are missing; {_evaluate_anew(path)}")
    are_scores = all(row["acc"] in (0, 1) and row["acc_norm"] in (0, 1) for row in rows)
    require(are_scores, f"{path}: the scores of its items are not 0 or 1; {_evaluate_anew(path)}")
    columns = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
        for name in ("acc", "acc_norm", "gold_bits_per_byte", "margin")
    }
    labels = [f"group {row['group']}" if row["group"] else f"item {row['item']}" for row in rows]
    groups = np.unique(labels, return_inverse=True)[1]
    identity = {name: record[name] for name in ("task", "version", "items_digest")} | _evaluated_with(record)
    return Items(record["primary"], **columns, groups=groups, identity=identity)


def _evaluated_with(record: dict) -> dict:
    """Returns what a result depends on beside the model and the data; JAX's defaults where older versions have none."""
    return {name: record[name] for name in _EVALUATED_WITH} | {"environment": record.get("environment", {})}


def _read_lines(path: Path) -> list[dict]:
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {_evaluate_anew(path)}") from error
