"""A variant that was kept, made the parent of the next questions."""

import json
import os
import re
import secrets
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation import ledger
from jaxformer.ablation.outcome import comparison_file
from jaxformer.ablation.study import SEEDS_OF_A_GENERATION, Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, differences, require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.experiment import science
from jaxformer.experiment.files import find_experiment
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import OF
from jaxformer.host.console import printable
from jaxformer.host.files import read_json_or_empty, write_whole
from jaxformer.run.identity import CONFIG

# What may be promoted without a word of its user's.
PROMOTABLE = (Word.KEEP.value, Word.CHEAPER.value)


class Judged(NamedTuple):
    """A comparison as it is kept beside the runs."""

    path: Path
    record: dict[str, Any]
    digest: str

    @property
    def word(self) -> str:
        """What was decided."""
        return self.record["verdict"]["word"]


def find_comparison(runs: Path, variant: str, *, parent: str = "", study: Study | None = None) -> Judged:
    """Returns the comparison of a variant: of a study, else of all studies that of the most seeds.

    Args:
        variant: its name; that of its parent may be left out where a single one was compared.
        parent: that it was compared with, or that of the study; '' for any.

    Raises:
        UserError: there is none, or there are several and they disagree.
    """
    require(bool(variant) and "/" not in variant, f"variant {variant!r}: give its name, as the study has it")
    parent = study.parent if study else parent
    folders = [runs / variant, *sorted(runs.glob(f"{variant}{OF}*"))]
    pattern = comparison_file(study) if study else "comparison_*.json"
    found = [_read(path) for folder in folders for path in sorted(folder.glob(pattern))]
    found = [one for one in found if parent in ("", one.record["parent"], one.record["study"]["parent"])]
    of = f" of {parent}" * bool(parent)
    require(bool(found), f"{runs}: no study{of} has judged {variant}; `jaxformer ablate` does")
    names = sorted({one.record["variant"] for one in found})
    require(len(names) == 1, f"{variant} was judged as {' and '.join(names)}; name one of them")
    most = max(len(one.record["seeds"]) for one in found)
    latest = sorted(
        (one for one in found if len(one.record["seeds"]) == most), key=lambda one: one.path.stat().st_mtime
    )
    words = dict.fromkeys(one.word for one in latest)
    require(
        len(words) == 1,
        f"studies disagree on {names[0]}: {' and '.join(words)}; name one by --study, or by --parent and --variants",
    )
    return latest[-1]


def _read(path: Path) -> Judged:
    advice = "judge the study again: `jaxformer report`"
    try:
        content = path.read_bytes()
        record = json.loads(content)
        fields = (record["study"]["parent"], record["parent"], record["variant"], record["question"])
        fields = (*fields, record["verdict"]["word"], record["verdict"]["reason"])
        is_whole = isinstance(record["seeds"], list) and isinstance(record["lineage"], dict)
        if not (is_whole and all(isinstance(each, str) for each in fields)):
            raise ValueError("a field is not of its kind")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {advice}") from error
    return Judged(path, record, ledger.file_digest(path))


class Promotion(NamedTuple):
    """A variant that became a parent."""

    path: Path
    """File of the experiment."""
    name: str
    first_seed: int
    tuned: Mapping[str, float]
    """What was tuned for it, by path."""


def promote(
    judged: Judged, runs: Path, *, name: str = "", by_hand: str = "", folder: Path = Path("experiments")
) -> Promotion:
    """Writes the experiment of a kept variant, and the ledger's line on it; the same promotion again changes nothing.

    Args:
        name: of the new experiment; by default after the first ancestor and the generation.
        by_hand: why a variant is promoted that was not kept; '' refuses that.
        folder: that the file is written to.

    Raises:
        UserError: it was not kept, it has moved since it was judged, or there is another experiment of that name.
    """
    record = judged.record
    require(
        judged.word in PROMOTABLE or bool(by_hand.strip()),
        f"{record['variant']} is not promoted: {judged.word}: {record['verdict']['reason']}; "
        '--by_hand="why" promotes it anyway, and is recorded',
    )
    one = resolve(record["variant"])
    require(one.promoted is None, f"{one.name} is a parent already: `jaxformer ablate --parent={one.name}`")
    _check_unmoved(judged, one, runs)
    generation, tuned = one.generation + 1, _tuned(record, one)
    name = name or re.sub(r"_gen\d+$", "", record["study"]["parent"].replace(OF, "_")) + f"_gen{generation}"
    first_seed = SEEDS_OF_A_GENERATION * generation
    text = promoted_file(judged, one.common_ancestor.name, tuned, first_seed, by_hand)
    path = folder / f"{name}.py"
    is_new = not (path.is_file() and path.read_text(encoding="utf-8") == text)
    if is_new:
        _check_name(name, path)
        _check_resolves(name, text)
        write_whole(judged.path.with_name(f"evidence_{judged.digest[:8]}.json"), judged.path.read_bytes())
        _write_new(path, text)
    line = {
        "kind": ledger.PROMOTION,
        "parent": record["parent"],
        "variant": record["variant"],
        "name": name,
        "generation": generation,
        "verdict": judged.word,
        "by_hand": by_hand,
        "change": dict(tuned),
        "first_seed": first_seed,
        "evidence": judged.digest,
    }
    before = ledger.last_of(ledger.read_ledger(runs), ledger.PROMOTION, name=name) or {}
    if any(before.get(key) != value for key, value in line.items()):
        ledger.append(runs, line)
    return Promotion(path, name, first_seed, tuned)


def _check_unmoved(judged: Judged, one: Resolved, runs: Path) -> None:
    """Raises `UserError` where an experiment is no longer what was judged."""
    record, skipped = judged.record, ("init_from", "training.compute_dtype", "seed")
    require(bool(record["lineage"]), f"{one.name}: no run of it could be compared, and none tells what was judged")
    changes = differences(_as_json(one.lineage.change), record["lineage"].get("change", {}))
    for seed in record["seeds"][:1]:
        theirs = read_json_or_empty(runs / one.name / f"seed_{seed}" / CONFIG).get("identity")
        if theirs:
            ours = {path: value for path, value in _as_json(science(one.experiment)).items() if path not in skipped}
            changes += differences(ours, {path: value for path, value in theirs.items() if path not in skipped})
    require(
        not changes,
        f"{one.name} has moved since it was judged ({'; '.join(changes[:5])}); put it back, or judge it anew",
    )


def _as_json(values: Mapping) -> dict:
    return json.loads(json.dumps(dict(values)))


def _tuned(record: Mapping[str, Any], one: Resolved) -> dict[str, float]:
    """Returns the rate to take for a variant, by path, where it was compared at its best and that is not its own.

    Raises:
        UserError: the record does not hold what it should.
    """
    rates = record.get("best_rates")  # Of the parent and of the variant; none where both were compared at their own.
    if not rates:
        return {}
    try:
        rate = float(rates[1]["to_take"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the comparison of {one.name}: damaged (best_rates); judge the study again") from error
    return {} if rate == one.experiment.optimizer.learning_rate else {RATE: rate}


def _check_name(name: str, path: Path) -> None:
    """Raises `UserError` unless an experiment of a name can be written."""
    is_name = re.fullmatch(r"[^\W_][\w.-]*", name) is not None and not name.endswith(".py")
    require(is_name, f"--name={name}: it must be a name of letters, digits, '_', '-' and '.'")
    require(not path.exists(), f"{path}: it exists, and is never overwritten; give another --name")
    try:
        other = find_experiment(name)
    except UserError:
        return
    raise UserError(f"--name={name}: {other} has that name; give another")


def _check_resolves(name: str, text: str) -> None:
    """Raises `UserError` where what is to be written is no experiment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.py")
        path.write_text(text, encoding="utf-8")
        resolve(str(path))


def _write_new(path: Path, text: str) -> None:
    """Writes a file that is whole or absent, and replaces none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    except FileExistsError as error:
        raise UserError(f"{path}: it exists, and is never overwritten; give another --name") from error
    finally:
        unfinished.unlink(missing_ok=True)


def promoted_file(judged: Judged, parent: str, tuned: Mapping[str, float], first_seed: int, by_hand: str) -> str:
    """Returns the file of the experiment that a variant of a parent becomes."""
    record = judged.record
    low, high = record["lineage"].get("expected") or (None, None)
    variant = record["variant"].partition(OF)[0]
    verdict = f"{judged.word}: {record['verdict']['reason']}"
    verdict = (
        f"by hand ({by_hand.strip()}); {verdict}" if by_hand.strip() and judged.word not in PROMOTABLE else verdict
    )
    seeds = len(record["seeds"])
    sentences = [f"{verdict[:1].upper()}{verdict[1:]} (bits per byte, {seeds} seed{'s' * (seeds != 1)})."]
    if low is not None:
        sentences.append(f"Expected was [{low:g}, {high:g}]: {record['lineage'].get('source')}.")
    sentences += [f"Tuned for it: {path} = {value!r}." for path, value in tuned.items()]
    paragraphs = [f"{variant} of {parent}, promoted: the parent of the next questions.", record["question"]]
    paragraphs.append(" ".join(sentences))
    about = "\n\n".join(_for_docstring(paragraph) for paragraph in paragraphs)
    fields = {"variant": variant, "parent": parent, **({"change": dict(tuned)} if tuned else {})}
    fields |= {"evidence": judged.digest, "verdict": verdict, "first_seed": first_seed}
    lines = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    return f'"""{about}\n"""\n\nfrom jaxformer.experiment import Promoted\n\nEXPERIMENT = Promoted(\n{lines})\n'


def _for_docstring(text: str) -> str:
    """Returns a text as lines of a docstring, which it cannot end."""
    plain = printable(" ".join(text.split())).replace("\\", "\\\\").replace('"""', "'''")
    return textwrap.fill(plain, 115, break_long_words=False, break_on_hyphens=False)
