"""Questions about a parent that can be asked, of which kind each is, and how expectations of earlier ones came out."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.ledger import beside_expectation, latest_verdicts, read_ledger
from jaxformer.ablation.records import Record, read_records
from jaxformer.ablation.study import Study, resolve_what_can_be
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.experiment.files import find_experiment, list_experiments, run_experiment_file
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.variant import OF, Merge, Promoted, Variant

# Of a field of the model, by what its name holds; the first that fits.
_PARTS = {
    "attention": "attention|head|key_value|qk_|rope|position|window",
    "feed-forward": "feed_forward|activation",
    "norm and residual": "norm|residual|scaling",
    "output": "embedding|logit|loss",
    "size": "width|depth|vocabulary",
}
_SECTIONS = {"training": "optimizer", **dict.fromkeys(("corpus", "tokenizer", "packing"), "data")}


def kind_of(paths: Collection[str]) -> str:
    """Returns the kind of a question by the fields that it changes: of the first by name, its part of the model.

    Elsewhere 'optimizer' for the optimizer and the training, 'data' for corpus, tokenizer and packing, or the section.
    """
    section, _, field = min(paths, default="unknown").partition(".")
    if section != "model":
        return _SECTIONS.get(section, section)
    name = field.partition(".")[0]
    return next((kind for kind, pattern in _PARTS.items() if re.search(pattern, name)), "model")


class Answered(NamedTuple):
    """A question that was answered, as the ledger has it: how its expectation came out."""

    parent: str
    variant: str
    kind: str
    verdict: str
    expected: tuple[float, float]
    effect: float
    """What was measured, bits per byte."""
    error: float
    """Its standard error."""
    outcome: str
    """As of `beside_expectation`."""


def read_answered(runs: Path) -> list[Answered]:
    """Returns the answered questions of a folder of runs, in order: those that were measured, and leave nothing out."""
    found = []
    for (parent, variant), line in latest_verdicts(read_ledger(runs)).items():
        difference, expected = line.get("difference") or {}, line.get("expected")
        mean, error = difference.get("mean"), difference.get("standard_error")
        if mean is not None and error and expected and not line.get("leaves_out"):
            outcome = beside_expectation(difference, expected)
            kind = _kind_of_answered(runs, variant)
            found.append(Answered(parent, variant, kind, line["verdict"], tuple(expected), mean, error, outcome))
    return found


def _kind_of_answered(runs: Path, variant: str) -> str:
    """Returns the kind of a variant by what its comparison recorded, else by its file; 'unknown' if neither tells."""
    for record in read_records(runs / variant):
        if change := record.lineage.get("change"):
            return kind_of(change)
    try:
        return kind_of(resolve(variant).lineage.change)
    except UserError:
        return "unknown"


def record_of(runs: Path, one: Resolved) -> Record | None:
    """Returns the newest comparison of a variant with its parent; None where there is none."""
    ours = [record for record in read_records(runs / one.name) if record.parent == one.parents[0].name]
    return ours[-1] if ours else None


class Found(NamedTuple):
    """The variants of all experiment files that are found by name, beside a parent."""

    questions: dict[str, Resolved]
    """Those that can be asked of it, by the name of the file."""
    refused: Mapping[str, str]
    """Why others cannot, by that name."""


def find_questions(parent: Resolved, answered: Sequence[Answered] = ()) -> Found:
    """Returns the variants that can be asked of a parent: each is one change of it, and another than those before.

    Of several that are the same, one that was answered comes first. Merges are left out, since what they join is asked
    first; so is what leaves a kept change out.

    Raises:
        UserError: there is none.
    """
    variants, refused = [], {}
    for name in (each for each in list_experiments() if each != parent.name):
        try:
            path = find_experiment(name)
            if isinstance(run_experiment_file(path, (Experiment, Variant, Merge, Promoted)), Variant):
                variants.append(name)
        except UserError as error:
            refused[name] = str(error)
    require(bool(variants), "no experiment file assigns a Variant: write a question in experiments/")
    known = {each.variant.partition(OF)[0] for each in answered if each.parent == parent.name}
    variants.sort(key=lambda name: name not in known)
    questions = {}
    resolved, why_not = resolve_what_can_be(Study(parent=parent.name, variants=tuple(variants)))
    refused |= {name: str(error) for name, error in why_not.items()}
    names = [name for name in variants if name not in why_not]
    for name, one in zip(names, resolved[1:], strict=True):
        same = [each for each, other in questions.items() if science(other.experiment) == science(one.experiment)]
        if not one.parents[0].is_same(parent):
            refused[name] = f"it is asked of {one.parents[0].name}"
        elif same:
            refused[name] = f"of {parent.name} it is the same as {same[0]}"
        else:
            questions[name] = one
    return Found(questions, dict(sorted(refused.items())))
