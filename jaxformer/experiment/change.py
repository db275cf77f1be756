"""A variant's change, applied to an experiment and checked to change nothing else; and how experiments differ."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxformer.config import UserError, replace, require, values_by_path
from jaxformer.data.kinds import kind_at
from jaxformer.experiment.customary import suggest
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.experiment.patches import refuse_patches
from jaxformer.experiment.variant import Variant
from jaxformer.record import Part, all_parts, kind_of

_PHASES = "training.phases"


def apply_change(variant: Variant, base: Experiment) -> tuple[Experiment, list[str]]:
    """Returns an experiment with a variant's change, and the paths of the scientific fields that it declares.

    Raises:
        UserError: the change is invalid there, changes nothing, or more than it declares.
    """
    child = replace(base, _declared_values(variant.change, base))
    declared = differences(base, child)
    changed = _with_parts_whole(declared, base, child)
    require(
        len(changed) == 1 or bool(variant.bundle.strip()),
        f"it changes {len(changed)} fields ({', '.join(changed)}); change one thing at a time, or explain in "
        "`bundle` why they are one idea",
    )
    solved = set()
    for consequence in variant.consequences:
        solved |= set(consequence.paths)
        child = replace(child, _call(f"the consequence {consequence!r}", consequence, base, child))
    everything = differences(base, child)
    extra = [path for path in everything if path not in declared and path not in solved]
    moved = [path for path in declared if everything.get(path) != declared[path]]
    require(
        not extra and not moved, f"it differs from {base.name} by more than it declares: {', '.join(extra + moved)}"
    )
    return child, list(declared)


def _with_parts_whole(leaves: Iterable[str], before: Experiment, after: Experiment) -> list[str]:
    """Returns paths that differ; a part that was added, removed or replaced counts as one path.

    So do the phases of the training, which are one schedule.
    """
    ours, theirs = values_by_path(after), values_by_path(before)

    def whole(leaf: str) -> str:
        names = leaf.split(".")
        if is_within(leaf, _PHASES):
            return _PHASES
        for path in (".".join(names[:count]) for count in range(1, len(names))):
            values = ours.get(path), theirs.get(path)
            if kind_of(values[0]) != kind_of(values[1]) and any([*all_parts(value)] for value in values):
                return path
        return leaf

    return [*dict.fromkeys(map(whole, leaves))]


def _declared_values(change: Mapping[str, Any], base: Experiment) -> dict[str, Any]:
    """Returns the values of a change by path, its functions called; refuses one that changes nothing scientific."""
    before, values = values_by_path(_effective(base)), {}
    for path, value in change.items():
        if path not in before:
            replace(base, {path: value}, suggest)  # Raises, with the nearest known path.
        is_function = callable(value) and not isinstance(value, type | Part)
        values[path] = _call(f"the change of {path}", value, before[path], base) if is_function else value
    values = without_old_licence(base, values)
    child = replace(base, values)
    learned, differs = science(base) | science(child), differences(_effective(base), _effective(child))
    for path in change:
        require(
            any(is_within(leaf, path) for leaf in learned),
            f"{path} decides how a run is computed, not what it learns: it cannot be a change",
        )
        require(
            any(is_within(leaf, path) for leaf in differs),
            f"the change of {path} changes nothing: {base.name} has {before[path]!r}, or ignores it",
        )
    return values


def _call(what: str, function: Any, *arguments: Any) -> Any:
    """Returns what a function of an experiment file returns; its failure is the file's."""
    try:
        with refuse_patches(what):
            return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} fails: {type(error).__name__}: {error}") from error


def differences(before: Experiment, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """Returns (before, after) of each scientific leaf that differs; None where a side has none."""
    ours, theirs = science(after), science(before)
    paths = dict.fromkeys([*theirs, *ours])
    return {path: (theirs.get(path), ours.get(path)) for path in paths if theirs.get(path) != ours.get(path)}


def is_within(leaf: str, path: str) -> bool:
    """Returns whether a dotted path is another, or lies below it."""
    return leaf == path or leaf.startswith(path + ".")


def with_kinds(base: Experiment, overrides: Mapping[str, str]) -> dict[str, Any]:
    """Returns overrides that also set the kind of each corpus of which they change only the path, if it differs.

    Raises:
        UserError: the names of the files show no known kind.
    """
    known, result = values_by_path(base.corpus, "corpus."), dict(overrides)
    for path, value in overrides.items():
        section, _, name = path.rpartition(".")
        kind = f"{section}.kind"
        if name == "path" and value and kind in known and kind not in overrides:
            found = kind_at(value, known[kind])
            result |= {kind: found} if found != known[kind] else {}
    return result


def without_old_licence(base: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by path that also reset the origin and the licence of each corpus whose source they change."""
    known, result = values_by_path(base.corpus, "corpus."), dict(values)
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        if name in ("path", "kind") and path in known and value != known[path]:
            result = {f"{section}.origin": "", f"{section}.licence": ""} | result
    return result


def _effective(experiment: Experiment) -> Experiment:
    """Returns an experiment with actual values in place of defaults such as 0, and without unused ones."""
    model, optimizer = experiment.model.effective(), experiment.optimizer.effective()
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)
