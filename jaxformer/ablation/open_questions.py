"""Questions that can be asked about a parent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.past_expectations import AnsweredQuestion
from jaxformer.ablation.records import Record, read_records
from jaxformer.ablation.study import Study, resolve_what_can_be
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.experiment.files import find_experiment, list_experiments, run_experiment_file
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.variant import OF, Merge, Promoted, Variant
from jaxformer.flops import parameter_count


def record_of(runs: Path, one: Resolved) -> Record | None:
    """Returns the newest comparison of a variant with its parent; None if there is none."""
    ours = [record for record in read_records(runs / one.name) if record.parent == one.parents[0].name]
    return ours[-1] if ours else None


class Found(NamedTuple):
    """The variants of all known experiment files, for a parent."""

    questions: dict[str, Resolved]
    """Variants that can be applied to it, by the name of the file."""
    refused: Mapping[str, str]
    """Why others cannot, by that name."""


def find_questions(parent: Resolved, answered: Sequence[AnsweredQuestion] = ()) -> Found:
    """Returns the variants that can be applied to a parent: each is one change of it, and no two are the same.

    Of several that are the same, an answered one comes first. Merges are left out, since their parts come first; so are
    removals of a kept change.

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
            refused[name] = f"it changes {one.parents[0].name}"
        elif same:
            refused[name] = f"applied to {parent.name}, it is the same as {same[0]}"
        else:
            try:
                parameter_count(one.experiment.model)  # Some parts are only found not to fit when they are made.
            except UserError as error:
                refused[name] = str(error)
            else:
                questions[name] = one
    return Found(questions, dict(sorted(refused.items())))
