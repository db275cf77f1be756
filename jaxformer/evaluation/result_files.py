"""The results of evaluations: a table to read, and files with a record of each item or document."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.evaluation.scores import flatten_estimates
from jaxformer.evaluation.task_scores import TaskScores
from jaxformer.evaluation.tasks import TaskData, fixed_choice
from jaxformer.evaluation.validation import DocumentLosses, validation_scalars
from jaxformer.host.console import format_rows
from jaxformer.host.files import for_json, read_json, write_json, write_whole


def describe_scores(scores: TaskScores) -> str:
    """Returns the scores of a task in words: the reported accuracy, and the bits per byte of the right answers."""
    estimates, primary = scores.estimates(), scores.task.data.task.primary
    bits = _number(*estimates["gold_bits_per_byte"])
    return f"{scores.name}: {primary} {_percent(*estimates[primary])} %, {bits} gold bits per byte"


def score_table(scores: Sequence[TaskScores], columns: int | None = None) -> str:
    """Returns a table with one task per line; the accuracy to report is marked.

    Args:
        scores: of each task.
        columns: of a line, None for any number.
    """
    rows: list[tuple[str, ...]] = [
        ("task", "items", "acc %", "acc_norm %", "chance", "gold bits/byte", "margin, nats/character")
    ]
    for each in scores:
        estimates, primary = each.estimates(), each.task.data.task.primary
        accuracies = [
            _percent(*estimates[name]) + ("*" if name == primary else " ") if name in estimates else "- "
            for name in ("acc", "acc_norm")
        ]
        count, official = len(each.chosen), each.task.data.official_items
        chance = each.chance()
        rows.append(
            (
                each.name,
                f"{count:,}" if count == official else f"{count:,} of {official:,}",
                *accuracies,
                "-" if chance is None else f"{chance:.1%}",
                _number(*estimates["gold_bits_per_byte"]),
                _number(*estimates["margin"]) if "margin" in estimates else "-",
            )
        )
    return "\n".join([*format_rows(rows, columns), "± one standard error; * the accuracy to report"])


def check_results(folder: Path, tasks: Sequence[TaskData], items: int | None = None) -> None:
    """Raises `UserError` if the scores of tasks could not be written to a folder, before they are computed.

    Args:
        folder: created, with its parents, unless it exists.
        tasks: to score, with so many items of each, or all.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("wb", dir=folder):
            pass
    except OSError as error:
        raise UserError(f"results {folder}: {error.strerror}") from error
    for data in tasks:
        check_scores(folder, data, fixed_choice(len(data.items), items))


def check_scores(folder: Path, data: TaskData, chosen: np.ndarray) -> Path:
    """Returns the file for the scores of items; raises `UserError` if it has scores of other items."""
    path, digest = folder / f"{data.result_name(chosen)}.json", data.items_digest(chosen)
    before = str((read_json(path, "move it elsewhere") or {}).get("items_digest", digest))
    require(
        before == digest,
        f"{path}: it has the scores of other items ({before:.12}, not {digest:.12}); move it elsewhere",
    )
    return path


def write_scores(folder: Path, scores: TaskScores, about: dict) -> Path:
    """Writes `TASK.json`, the scores and all that they depend on, and `TASK.items.jsonl`; returns the first.

    Args:
        about: further values: step, tokenizer, precision, code, ...

    Raises:
        UserError: the file exists with the scores of other items.
    """
    data, encoded = scores.task
    requests, digest = scores.task.requests(scores.chosen), data.items_digest(scores.chosen)
    path = check_scores(folder, data, scores.chosen)
    record = {
        "task": data.task.name,
        "version": data.task.version,
        "equals": f"lm-evaluation-harness {data.task.equals}, 0-shot" if data.task.equals else None,
        **about,
        "items": len(scores.chosen),
        "official_items": data.official_items,
        "items_digest": digest,
        "data": {"source": data.source, "digest": data.digest, "items": len(data.items)},
        "items_with_equal_options": sum(data.items[i].has_equal_options for i in scores.chosen.tolist()),
        "truncated_requests": int(encoded.is_truncated[requests].sum()),
        "shifted_requests": int(encoded.is_shifted[requests].sum()),
        "primary": data.task.primary,
        "chance": scores.chance(),
        **flatten_estimates(scores.estimates()),
    }
    columns = zip(scores.chosen.tolist(), scores.log_likelihoods, *scores.items, strict=True)
    items = (
        {
            "item": item,
            "log_likelihoods": nats.tolist(),
            "gold": data.items[item].gold,
            "acc": int(acc),
            "acc_norm": int(acc_norm),
            "gold_bits_per_byte": float(bits),
            "margin": None if math.isnan(margin) else float(margin),
            "group": data.items[item].group,
        }
        for item, nats, acc, acc_norm, bits, margin in columns
    )
    return _write(path, record, "items", items)


def write_validation(folder: Path, losses: Sequence[DocumentLosses], about: dict) -> Path:
    """Writes `validation.json` and `validation.documents.jsonl`; returns the first."""
    scalars = {f"validation/{name}": value for name, value in validation_scalars(losses).items()}
    corpora = {
        one.name: {"digest": one.digest, "documents": len(one.nats), "text_bytes": int(one.text_bytes.sum())}
        for one in losses
    }
    documents = (
        {
            "corpus": one.name,
            "document": int(i),
            "source": int(source),
            "nats": float(nats),
            "targets": int(targets),
            "text_bytes": int(size),
        }
        for one in losses
        for i, source, nats, targets, size in zip(
            one.documents, one.sources, one.nats, one.targets, one.text_bytes, strict=True
        )
    )
    return _write(folder / "validation.json", {**about, "corpora": corpora, **scalars}, "documents", documents)


def _write(path: Path, record: dict, kind: str, lines: Iterable[dict]) -> Path:
    """Writes a record, and the lines of its parts beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(for_json(line)) + "\n" for line in lines).encode()
    write_whole(path.with_suffix(f".{kind}.jsonl"), content)
    digest = hashlib.sha256(content).hexdigest()
    write_json(path, for_json({**record, f"{kind}_file_digest": digest}))
    return path


def _percent(mean: float, error: float) -> str:
    return f"{100 * mean:.2f}{_spread(100 * error, 2)}"


def _number(mean: float, error: float) -> str:
    digits = 4 if not np.isfinite(error) or error < 0.01 else 3
    return f"{mean:.{digits}f}{_spread(error, digits)}"


def _spread(error: float, digits: int) -> str:
    """Returns ' ± error', or '' if there is none, as for a single item or document."""
    return f" ± {error:.{digits}f}" if math.isfinite(error) else ""


def describe_validation(validation: dict[str, float]) -> str:
    """Returns the result of `validate` in words."""
    spread = _spread(validation.get("bits_per_byte_standard_error", math.nan), 4)
    return f"{validation['loss']:.4f} nats per token, {validation['bits_per_byte']:.4f}{spread} bits per byte"
