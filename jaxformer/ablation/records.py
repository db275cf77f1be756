"""The record of a comparison beside its variant's runs, `runs/VARIANT/comparison_DIGEST.json`: written and read here.

DIGEST is the digest of the study's questions and rule. The file is rewritten whenever the study is judged; so the
evidence for a promotion is copied to `evidence_DIGEST.json`, named by its own digest.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.host.console import print_notice
from jaxformer.host.files import write_whole
from jaxformer.statistics.paired_difference import Difference


class Record(NamedTuple):
    """A comparison as stored beside the runs."""

    path: Path
    digest: str
    """Hexadecimal SHA-256 of the file."""
    study_parent: str
    """The parent of the study that it was made for."""
    parent: str
    """The experiment that the variant was compared with."""
    variant: str
    question: str
    lineage: dict[str, Any]
    """Lineage of the variant, as its runs recorded it."""
    word: Word
    reason: str
    more_seeds: int | None
    """`word`, `reason` and `more_seeds`: the verdict."""
    seeds: tuple[int, ...]
    """Seeds that both had."""
    margin: float
    """Bits per byte within which they counted as equal; NaN if unknown."""
    recommended_rates: tuple[float, float] | None
    """Recommended learning rates of the parent and of the variant; None if each was compared at its own."""
    difference: Difference | None
    """Of bits per byte; None if they were not compared."""


def study_digest(study: Study) -> str:
    """Returns eight digits that identify the questions and the rule of a study."""
    return hashlib.sha256(repr((study.parent, study.variants, study.rule)).encode()).hexdigest()[:8]


def comparison_file(study: Study) -> str:
    """Returns the name of the file that keeps a comparison of a study."""
    return f"comparison_{study_digest(study)}.json"


def write_record(runs: Path, study: Study, comparison: Comparison) -> str:
    """Writes a comparison beside its variant's runs; returns the digest of the file, '' if it could not be written."""
    of = {"parent": study.parent, "variants": study.variants}
    values = to_json({"study": of, **comparison._asdict()})
    return write_or_notice(runs / comparison.variant / comparison_file(study), values)


def write_or_notice(path: Path, values: dict) -> str:
    """Writes a JSON file beside the runs; returns its digest, or '' with a notice if it cannot be written."""
    content = (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
    try:
        write_whole(path, content)
    except OSError as error:
        print_notice(f"{path}: {error.strerror}; the report is made without this file")
        return ""
    return hashlib.sha256(content).hexdigest()


def read_records(folder: Path) -> list[Record]:
    """Returns the comparisons in the folder of a variant's runs, the newest last; damaged ones are left out.

    Of several with the same parent the newest counts, as does the last verdict in the ledger: it was made from the runs
    that exist now, while an older one with more seeds may be from runs that are gone.
    """
    advice, found = "`jaxformer report` of the study writes it again", []
    for path in folder.glob("comparison_*.json"):
        if record := _read(path, advice):
            found.append((path.stat().st_mtime_ns, path.name, record))
    return [record for *_, record in sorted(found, key=lambda each: each[:2])]


def _read(path: Path, advice: str, digest: str = "") -> Record | None:
    """Returns the record in a file, with a digest if one is given; None, with a notice, if it is damaged."""
    try:
        record = _parse(path, path.read_bytes())
        if digest not in ("", record.digest):
            raise ValueError("its digest differs")
        return record
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        print_notice(f"{path}: damaged ({type(error).__name__}: {error}), and left out; {advice}")
        return None


def _parse(path: Path, content: bytes) -> Record:
    """Returns the record in a file; raises an error if it is no comparison."""
    values = json.loads(content)
    verdict, margin, rates, difference = (values[name] for name in ("verdict", "margin", "best_rates", "difference"))
    record = Record(
        path=path,
        digest=hashlib.sha256(content).hexdigest(),
        study_parent=values["study"]["parent"],
        parent=values["parent"],
        variant=values["variant"],
        question=values["question"],
        lineage=dict(values["lineage"]),
        word=Word(verdict["word"]),
        reason=verdict["reason"],
        more_seeds=verdict["more_seeds"],
        seeds=tuple(values["seeds"]),
        margin=math.nan if margin is None else float(margin),
        recommended_rates=(float(rates[0]["recommended"]), float(rates[1]["recommended"])) if rates else None,
        difference=_difference(difference) if difference else None,
    )
    texts = record.study_parent, record.parent, record.variant, record.question, record.reason
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is not text")
    return record


def _difference(values: Mapping[str, Any]) -> Difference:
    """Returns a difference; non-finite values were written as None."""
    numbers = {name: _number(values[name]) for name in Difference._fields if name not in ("seeds_counted", "own")}
    own = (_number(values["own"][0]), _number(values["own"][1])) if values["own"] else None
    return Difference(**numbers, seeds_counted=bool(values["seeds_counted"]), own=own)


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)


def keep_evidence(record: Record) -> None:
    """Copies a record to where no study overwrites it."""
    write_whole(_evidence(record.path.parent, record.digest), record.path.read_bytes())


def find_evidence(folder: Path, digest: str) -> Record | None:
    """Returns the record with a digest in the folder of a variant's runs; None if it is gone."""
    path = _evidence(folder, digest)
    advice = "restore it from a copy: nothing can make it again"
    kept = _read(path, advice, digest) if path.exists() else None
    return kept or next((record for record in read_records(folder) if record.digest == digest), None)


def _evidence(folder: Path, digest: str) -> Path:
    return folder / f"evidence_{digest[:8]}.json"


def to_json(value):
    """Returns a comparison as plain values that JSON can hold; NaN and infinity as None."""
    if isinstance(value, Difference):
        low, high = value.interval()
        own = {"standard_error": value.standard_error, "p_value": value.p_value, "low_95": low, "high_95": high}
        return to_json({**value._asdict(), **own})
    if isinstance(value, Word):
        return value.value
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): to_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
