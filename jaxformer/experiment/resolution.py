"""From a name to an experiment: its file is found and run, after its parents', and its change applied."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jaxformer.config import UserError, override, require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.change import apply_change, differences, is_within, with_kinds, without_old_licence
from jaxformer.experiment.customary import suggest
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import check_name, find_experiment, is_path, list_experiments, run_experiment_file
from jaxformer.experiment.lineage import Lineage, Resolved, make_lineage, nearest_shared
from jaxformer.experiment.promoted import apply_again, changes_since, leave_out, make_promoted
from jaxformer.experiment.variant import AD_HOC, JOIN, OF, WITHOUT, Merge, Promoted, Variant
from jaxformer.host.own_code import collect_own_code
from jaxformer.host.paths import expanded
from jaxformer.record import Part

# (name, name of the parent that it is applied to) of each experiment whose file is being resolved, outermost first.
_Resolving = tuple[tuple[str, str], ...]


def load_experiment(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """Returns the experiment that `resolve` finds."""
    return resolve(name_or_path, overrides).experiment


def resolve(name_or_path: str, overrides: Mapping[str, str] | None = None, *, parent: str | None = None) -> Resolved:
    """Returns the experiment of a file in `experiments/`, or at a path, with overrides applied, and its lineage.

    Overrides of scientific fields make another experiment, marked in its name, `baseline~1a2b3c`, unless they set
    `name`. If they change the corpus, they become its question, unless they set `question`. A variant applied to
    another parent than its own is named after both: `swiglu@baseline_100m`. Names with a `+` between them are joined
    variants: `swiglu+layernorm`, or `swiglu+layernorm@baseline_100m`.

    Args:
        overrides: texts by dotted path, such as `{"model.width": "256"}`.
        parent: applies a variant, or those that a merge joins, to this experiment instead of its own parent; if the
            first is a path, its folder is searched first.

    Raises:
        UserError: no such experiment, an invalid configuration, or a variant that differs from its parent by another
            change than it declares.
    """
    folder = expanded(name_or_path).parent if is_path(name_or_path) else None
    other = _resolve(parent, folder) if parent else None
    return with_overrides(_resolve(name_or_path, parent=other), overrides or {})


def resolve_variant_of(parent: Resolved, name: str) -> Resolved:
    """Returns an experiment as in its files if it descends from a parent, or names one; else applied to the parent.

    So a study can have a variant of one of its variants.
    """
    one = _resolve(name)
    is_of_it = OF in name or any(each.is_same(parent) for each in one.ancestors)
    return one if is_of_it else _resolve(name, parent=parent)


def with_overrides(resolved: Resolved, overrides: Mapping[str, str]) -> Resolved:
    """Returns a resolved experiment with overrides applied, as `resolve` does.

    Raises:
        UserError: the configuration is invalid.
    """
    base, name = resolved.experiment, overrides.get("name")
    changed = override(base, without_old_licence(base, with_kinds(base, overrides)), suggest)
    ad_hoc = differences(base, changed)
    if name is not None:
        check_name(name, f"name {name!r}")
        is_own = name == base.name and not ad_hoc
        require(
            is_own or name not in (base.name, *list_experiments()),
            f"name {name!r} belongs to another experiment; choose another",
        )
    if "question" not in overrides and any(is_within(path, "corpus") for path in ad_hoc):  # It may be about the corpus.
        values = ", ".join(f"{path}={after}" for path, (_, after) in ad_hoc.items())
        changed = dataclasses.replace(changed, question=f"{base.name} with {values}")
    lineage = dataclasses.replace(resolved.lineage, overrides=ad_hoc, experiment=base.name if name else "")
    experiment = dataclasses.replace(changed, name=name or ad_hoc_name(base.name, ad_hoc))
    return resolved._replace(experiment=experiment, lineage=lineage)


def ad_hoc_name(name: str, changes: Mapping[str, Sequence]) -> str:
    """Returns the name of an experiment with overrides of its science, from (before, after) of each.

    It has '~' and six digits that identify the change.
    """
    texts = sorted((path, repr(after)) for path, (_, after) in changes.items())
    mark = AD_HOC + hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:6] if texts else ""
    return name.partition(AD_HOC)[0] + mark


def _resolve(
    name_or_path: str, folder: Path | None = None, resolving: _Resolving = (), parent: Resolved | None = None
) -> Resolved:
    """Returns an experiment.

    Args:
        folder: of the file that names it, which is searched first.
        parent: of a variant, in place of its own.
    """
    with collect_own_code() as own_code:
        resolved = _resolve_name(name_or_path, folder, resolving, parent)
    own_code |= parent.lineage.own_code if parent else {}
    return resolved._replace(lineage=dataclasses.replace(resolved.lineage, own_code=own_code))


def _resolve_name(name: str, folder: Path | None, resolving: _Resolving, parent: Resolved | None) -> Resolved:
    if OF in name and not is_path(name):
        own, _, of = name.partition(OF)
        require(bool(of), f"the name of a parent must follow '{OF}' in {name}")
        _refuse(parent, f"{name} has a parent in its name")
        return _resolve(own, folder, resolving, _resolve(of, folder, resolving))
    if JOIN in name and not is_path(name):
        parts = [_resolve(each, folder, resolving, parent) for each in name.split(JOIN)]
        return _merge(_joining(parts), parts, name + (OF + parent.name if parent else ""))
    if WITHOUT in name and not is_path(name) and not _has_file(name, folder):
        _refuse(parent, f"{name} only has its own parent")
        whole, _, left_out = name.rpartition(WITHOUT)
        return leave_out(_resolve(whole, folder, resolving), left_out, name)
    return _resolve_file(find_experiment(name, folder=folder), resolving, parent)


def _has_file(name: str, folder: Path | None) -> bool:
    return name in list_experiments() or (folder is not None and (folder / f"{name}.py").is_file())


def _refuse(parent: Resolved | None, reason: str) -> None:
    if parent:
        raise UserError(f"{reason}: it cannot be applied to {parent.name}")


def _resolve_file(path: Path, resolving: _Resolving, parent: Resolved | None) -> Resolved:
    value, name = run_experiment_file(path, (Experiment, Variant, Merge, Promoted)), path.stem
    names = " of ".join([*(each for each, _ in resolving), name])
    step = (name, parent.name if parent else "")
    require(step not in resolving, f"experiment {path}: it descends from itself ({names})")
    resolving = (*resolving, step)
    if isinstance(value, Promoted):
        _refuse(parent, f"{name} was promoted with its own parent")
    if isinstance(value, Experiment):
        _refuse(parent, f"{name} stands alone")
        return Resolved(dataclasses.replace(value, name=name), Lineage())
    try:
        if isinstance(value, Promoted):
            before = _resolve(value.parent, path.parent, resolving)
            judged = _resolve(value.variant, path.parent, resolving)
            if not (judged.parents and judged.common_ancestor.is_same(before)):
                judged = _resolve(value.variant, path.parent, resolving, before)
            return make_promoted(value, judged, name)
        if isinstance(value, Variant):
            if parent is None or parent.name == value.parent:
                own = _resolve(value.parent, path.parent, resolving)
                if parent is None or own.is_same(parent):
                    return _apply_to(own, value, name)
            return _apply_to(parent, value, name + OF + parent.name)
        parents = [_resolve(each, path.parent, resolving, parent) for each in value.parents]
        return _merge(value, parents, name + (OF + parent.name if parent else ""))
    except UserError as error:
        is_prefixed = str(error).startswith("experiment ") and not isinstance(value, Promoted)
        raise UserError(str(error) if is_prefixed else f"experiment {path}: {error}") from error


def _apply_to(parent: Resolved, variant: Variant, name: str) -> Resolved:
    """Returns a parent with the change of a variant."""
    child, declared = apply_change(variant, parent.experiment)
    child = dataclasses.replace(child, name=name, question=variant.question)
    about = {"bundle": variant.bundle, "expected": variant.expected, "source": variant.source}
    return _checked(Resolved(child, make_lineage((parent,), child, declared, **about), (parent,), variant))


def _joining(parts: Sequence[Resolved]) -> Merge:
    """Returns the merge that its file would have; the expectation is the sum of its parts'."""
    names, expected = [each.name for each in parts], [each.lineage.expected or (-math.inf, math.inf) for each in parts]
    low, high = (sum(ends) for ends in zip(*expected, strict=True))
    question = f"What do {' and '.join(names)} give together?"
    return Merge(parents=tuple(names), question=question, expected=(low, high), source="the sum of its parts")


def _merge(merge: Merge, parents: Sequence[Resolved], name: str) -> Resolved:
    """Returns the first parent with the changes of the others since their common ancestor."""
    first, *others = parents
    ancestor, child, joined = nearest_shared(parents), first.experiment, []
    for other in others:
        since = changes_since(ancestor, other)
        require(bool(since), f"{other.name} is an ancestor of {first.name}: there is nothing to join")
        before = differences(ancestor.experiment, child)
        for one in since:
            taken = differences(ancestor.experiment, child)
            conflicts = [path for path in one.lineage.change if path in taken] or _replaced(one, before)
            require(
                not conflicts,
                f"{first.name} and {other.name} both change {', '.join(conflicts)}: they cannot be joined",
            )
            child = apply_again(one, child)
            joined += one.lineage.change
    child = dataclasses.replace(child, name=name, question=merge.question)
    bundle = f"the changes of {' and '.join(each.name for each in parents)}, joined"
    about = {"bundle": bundle, "expected": merge.expected, "source": merge.source}
    return _checked(Resolved(child, make_lineage(parents, child, joined, **about), tuple(parents), merge))


def _replaced(one: Resolved, taken: Collection[str]) -> list[str]:
    """Returns the paths of sections that a variant sets as a whole although others have set fields in them."""
    change = one.variant.change if one.variant else {}
    values = {path: value for path, value in change.items() if isinstance(value, Part) or not callable(value)}
    return [path for path in values if any(is_within(leaf, path) for leaf in taken)]


def _checked(resolved: Resolved) -> Resolved:
    """Returns a variant or a merge; refuses one that changes the rate and is to be compared at its best rate."""
    is_of_rate = RATE in {**resolved.lineage.change, **resolved.lineage.consequences}
    require(
        resolved.retune != "learning_rate" or not is_of_rate,
        f"a change of {RATE} is compared at its own rates: leave out retune",
    )
    return resolved
