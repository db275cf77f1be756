"""Promotion: a kept variant becomes the parent of the next questions."""

import json
import os
import re
import secrets
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation import ledger
from jaxformer.ablation.records import Record, comparison_file, find_evidence, keep_evidence, read_records
from jaxformer.ablation.seeds import SEEDS_OF_A_GENERATION
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.experiment import science
from jaxformer.experiment.files import find_experiment, run_experiment_file
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import promoted_variant
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import OF, Promoted
from jaxformer.host.console import printable
from jaxformer.host.files import read_json_or_empty
from jaxformer.record import differences
from jaxformer.run.identity import CONFIG

# Verdicts that may be promoted without --by_hand.
PROMOTABLE = (Word.KEEP, Word.CHEAPER)


def find_comparison(runs: Path, variant: str, *, parent: str = "", study: Study | None = None) -> Record:
    """Returns the newest comparison of a variant; if a study is given, it must be the study's.

    Args:
        variant: its name; the parent's name may be left out if only one was compared.
        parent: that it was compared with, or the study's; '' for any.

    Raises:
        UserError: there is none, several parents have such a variant, or another study has judged it since.
    """
    require(bool(variant) and "/" not in variant, f"variant {variant!r}: give its name, as in the study")
    parent = study.parent if study else parent
    folders = [runs / variant, *sorted(runs.glob(f"{variant}{OF}*"))]
    found = [one for folder in folders for one in read_records(folder)]
    found = [one for one in found if parent in ("", one.parent, one.study_parent)]
    of = f" of {parent}" * bool(parent)
    require(bool(found), f"{runs}: no study{of} has judged {variant}; judge it with `jaxformer ablate`")
    names = sorted({one.variant for one in found})
    require(len(names) == 1, f"{variant} was judged as {' and '.join(names)}; name one of them")
    last = found[-1]
    require(
        study is None or last.path.name == comparison_file(study),
        f"another study judged {names[0]} last: {last.word.value}: {last.reason}; judge it again by `jaxformer report` "
        "of this study, or name no study to take that verdict",
    )
    return last


class Promotion(NamedTuple):
    """A variant that became a parent."""

    path: Path
    """File of the experiment."""
    name: str
    promoted: Promoted
    """The content of the file."""
    evidence: Record
    """The comparison that it was promoted by."""


def promote(
    found: Record, runs: Path, *, name: str = "", by_hand: str = "", folder: Path = Path("experiments")
) -> Promotion:
    """Writes the experiment of a kept variant, and the ledger's line on it.

    If the file exists, for the same variant and parent, it stays, with the comparison that it names; only a missing
    line is added to the ledger.

    Args:
        name: of the new experiment; by default after the first ancestor and the generation.
        by_hand: why a variant that was not kept is promoted; '' refuses it.
        folder: for the file.

    Raises:
        UserError: it was not kept, it has changed since it was judged, or another experiment has that name.
    """
    one = resolve(found.variant)
    generation = one.generation + 1
    name = name or re.sub(r"_gen\d+$", "", found.study_parent.replace(OF, "_")) + f"_gen{generation}"
    path = folder / f"{name}.py"
    if is_written := promotes(path, found.variant, found.parent):
        found = evidence_of(resolve(str(path)), runs)
    require(
        found.word in PROMOTABLE or bool(by_hand.strip()),
        f"{found.variant} is not promoted: {found.word.value}: {found.reason}; "
        'promote it anyway with --by_hand="why", which is recorded',
    )
    require(one.promoted is None, f"{one.name} is a parent already: `jaxformer ablate --parent={one.name}`")
    _check_unmoved(found, one, runs)
    if not is_written:
        first_seed = SEEDS_OF_A_GENERATION * generation
        check_name(name)
        require(not path.exists(), f"{path}: it exists, and is never overwritten; give another --name")
        _check_is_new(name)
        text = promoted_file(found, one.common_ancestor.name, _tuned(found, one), first_seed, by_hand)
        _check_resolves(name, text, found.variant)
        keep_evidence(found)
        _write_new(path, text)
    promoted = run_experiment_file(path, (Promoted,))
    before = ledger.last_of(ledger.read_ledger(runs), ledger.PROMOTION, name=name, evidence=found.digest)
    if before is None:
        line = {
            "kind": ledger.PROMOTION,
            "parent": found.parent,
            "variant": found.variant,
            "name": name,
            "generation": generation,
            "verdict": found.word.value,
            "by_hand": by_hand,
            "change": dict(promoted.change),
            "first_seed": promoted.first_seed,
            "evidence": found.digest,
        }
        ledger.append(runs, line)
    return Promotion(path, name, promoted, found)


def promotes(path: Path, variant: str, parent: str) -> bool:
    """Returns whether a file exists that promotes a variant compared with a parent."""
    if not path.is_file():
        return False
    try:
        written = resolve(str(path))
        return (promoted_variant(written).name, written.parents[0].name) == (variant, parent)
    except UserError:
        return False


def evidence_of(promoted: Resolved, runs: Path) -> Record:
    """Returns the comparison by which a variant was promoted.

    Raises:
        UserError: it is not promoted, or its comparison is not in the folder of all run folders.
    """
    variant, digest = promoted_variant(promoted).name, promoted.lineage.evidence
    found = find_evidence(runs / variant, digest)
    if found is None:
        raise UserError(
            f"{runs / variant}: the comparison that {promoted.name} was promoted by (evidence {digest[:8]}) is "
            "missing; give the --runs in which it was promoted, or promote it again under another --name"
        )
    return found


def _check_unmoved(found: Record, one: Resolved, runs: Path) -> None:
    """Raises `UserError` if an experiment has changed since it was judged."""
    skipped = "init_from", "training.compute_dtype", "seed"
    require(bool(found.lineage), f"{one.name}: no run of it could be compared, so it is unknown what was judged")
    changes = differences(_as_json(one.lineage.change), found.lineage.get("change", {}))
    for seed in found.seeds[:1]:
        theirs = read_json_or_empty(runs / one.name / f"seed_{seed}" / CONFIG).get("identity")
        if theirs:
            ours = {path: value for path, value in _as_json(science(one.experiment)).items() if path not in skipped}
            changes += differences(ours, {path: value for path, value in theirs.items() if path not in skipped})
    require(
        not changes,
        f"{one.name} has changed since it was judged ({'; '.join(changes[:5])}); undo the change, or judge it again",
    )


def _as_json(values: Mapping) -> dict:
    return json.loads(json.dumps(dict(values)))


def _tuned(found: Record, one: Resolved) -> dict[str, float]:
    """Returns a variant's recommended rate, by path, if it was compared at its best rate and that is not its own."""
    rates = found.recommended_rates
    return {RATE: rates[1]} if rates and rates[1] != one.experiment.optimizer.learning_rate else {}


def check_name(name: str) -> None:
    """Raises `UserError` unless a name suits an experiment."""
    is_name = re.fullmatch(r"[^\W_][\w.-]*", name) is not None and not name.endswith(".py")
    require(is_name, f"{name} cannot be the name of an experiment: use letters, digits, '_', '-' and '.' only")


def _check_is_new(name: str) -> None:
    """Raises `UserError` if another experiment has the name."""
    try:
        other = find_experiment(name)
    except UserError:
        return
    raise UserError(f"--name={name}: {other} has that name; give another")


def _check_resolves(name: str, text: str, variant: str) -> None:
    """Raises `UserError` if a text to write is no experiment, or promotes another variant than the judged one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.py")
        path.write_text(text, encoding="utf-8")
        judged = promoted_variant(resolve(str(path))).name
    require(judged == variant, f"{name} would be {judged}, but {variant} was judged; judge it again under that name")


def _write_new(path: Path, text: str) -> None:
    """Writes a new file, whole or not at all; replaces none."""
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


def promoted_file(found: Record, parent: str, tuned: Mapping[str, float], first_seed: int, by_hand: str) -> str:
    """Returns the file of the experiment that a variant of a parent becomes."""
    variant, lineage, seeds = found.variant.partition(OF)[0], found.lineage, len(found.seeds)
    verdict = f"{found.word.value}: {found.reason}"
    if by_hand.strip() and found.word not in PROMOTABLE:
        verdict = f"by hand ({by_hand.strip()}); {verdict}"
    sentences = [f"{verdict[:1].upper()}{verdict[1:]} (bits per byte, {seeds} seed{'s' * (seeds != 1)})."]
    if lineage.get("expected"):
        low, high = lineage["expected"]
        sentences.append(f"Expected was [{low:g}, {high:g}]: {lineage.get('source')}.")
    sentences += [f"Tuned for it: {path} = {value!r}." for path, value in tuned.items()]
    paragraphs = [f"{variant} of {parent}, promoted: the parent of the next questions.", found.question]
    paragraphs.append(" ".join(sentences))
    about = "\n\n".join(_for_docstring(paragraph) for paragraph in paragraphs)
    fields = {"variant": variant, "parent": parent, **({"change": dict(tuned)} if tuned else {})}
    fields |= {"evidence": found.digest, "verdict": verdict, "first_seed": first_seed}
    lines = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    return f'"""{about}\n"""\n\nfrom jaxformer.experiment import Promoted\n\nEXPERIMENT = Promoted(\n{lines})\n'


def _for_docstring(text: str) -> str:
    """Returns a text as lines of a docstring, escaped so that it cannot end it."""
    plain = printable(" ".join(text.split())).replace("\\", "\\\\").replace('"""', "'''")
    return textwrap.fill(plain, 115, break_long_words=False, break_on_hyphens=False)
