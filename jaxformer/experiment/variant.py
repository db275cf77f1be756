"""Questions: an experiment as one change of another, checked to be that and no more.

A file in `experiments/` assigns an `Experiment`, which stands alone, a `Variant`, which writes its change of a parent
only, a `Merge` of variants, or a `Promoted` variant, which was kept and is the next parent. The links to the parents
are the edges of the graph of ablations.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from jaxformer.config import Bounds, OneOf, UserError, check_fields, flatten, override, replace, require
from jaxformer.experiment.best_rate import RATE, RETUNE, moves_best_rate
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.experiment.files import find_experiment, list_experiments, run_experiment_file
from jaxformer.experiment.own_code import collect_own_code
from jaxformer.experiment.patches import refuse_patches

# Between the name of a variant and that of another parent than its own.
OF = "@"

# Between the name of a promoted experiment and that of a change that it keeps: what it is without that change.
WITHOUT = "_without_"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same as its parent but for one change."""

    parent: str
    """The experiment that is changed."""
    question: str
    """What the change is to tell."""
    change: Mapping[str, Any]
    """New values by dotted path, or functions of (the parent's value, the parent), such as `times(2)`. A section's path
    takes a whole configuration.
    """
    bundle: str = ""
    """Why several fields are one idea; '' where the change is of one field."""
    consequences: tuple[Callable[[Experiment, Experiment], dict[str, Any]], ...] = ()
    """What is solved so that the comparison is fair, such as `SolvedFeedForwardWidth()`, in turn."""
    expected: tuple[float, float]
    """The interval that the change of validation bits per byte is expected in, written down before it is measured;
    negative is better.
    """
    source: str
    """Who found so, and where."""
    retune: Annotated[str, OneOf(*RETUNE)] = "auto"
    """'learning_rate' compares the variant and its parent each at its best learning rate, found by runs at three rates
    or more; 'off' compares them at the parent's; 'auto' retunes where the change moves the best rate (`best_rate.py`).
    """

    def __post_init__(self):
        check_fields(self)
        require(bool(self.parent), "a variant must name its parent")
        is_mapping = isinstance(self.change, Mapping) and all(isinstance(path, str) for path in self.change)
        require(is_mapping, f"change ({self.change!r}) must be values by dotted path")
        require(bool(self.change), "a variant must change something")
        for each in self.consequences:
            require(
                callable(each) and hasattr(each, "paths") and not isinstance(each, type),
                f"consequence {each!r} is chosen, not solved; use one of jaxformer.experiment.consequences, such as "
                "SolvedFeedForwardWidth(), or declare it as a part of the change",
            )
        _check_expectation(self)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Two variants or more with an ancestor in common, joined: the only experiment with more than one change."""

    parents: tuple[str, ...]
    """The variants; it is compared with the first, and tells how the changes interact."""
    question: str
    expected: tuple[float, float]
    source: str
    retune: Annotated[str, OneOf(*RETUNE)] = "auto"
    """`question`, `expected`, `source` and `retune`: as of a `Variant`, against the first parent."""

    def __post_init__(self):
        check_fields(self)
        are_different = len(set(self.parents)) == len(self.parents) >= 2
        require(are_different, f"a merge needs two different parents or more, not {self.parents!r}")
        _check_expectation(self)


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A variant that was kept, as the parent of the next questions."""

    variant: str
    """Its name, without that of its parent."""
    parent: str
    """The experiment that it was compared with; of a merge, the one that its parts change."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path of what was tuned for the variant, such as its learning rate; of the optimizer alone."""
    evidence: str
    """The hexadecimal SHA-256 of the comparison that it was kept by."""
    verdict: str
    """What was decided, and the numbers."""
    first_seed: Annotated[int, Bounds(at_least=1)]
    """Where its seeds begin, and those of its variants: it is measured on none that chose it."""

    def __post_init__(self):
        check_fields(self)
        require(bool(self.parent), "a promoted variant must name the parent that it was compared with")
        require(OF not in self.variant, f"variant ({self.variant}) must be the name of a file; its parent has a field")
        require(
            re.fullmatch("[0-9a-f]{64}", self.evidence) is not None,
            f"evidence ({self.evidence}) must be the SHA-256 of a comparison, 64 hexadecimal digits",
        )
        for path in self.change:
            require(
                isinstance(path, str) and path.startswith("optimizer."),
                f"the change of {path} is more than was tuned: a promoted variant may set fields of the optimizer "
                "alone; ask what else it shall change as a variant of it",
            )


def _check_expectation(question: Variant | Merge) -> None:
    require(bool(question.question.strip()), "a variant must ask a question")
    require(bool(question.source.strip()), "a variant must say where its expectation comes from: source")
    low, high = question.expected
    require(low < high, f"expected ({low}, {high}) must be an interval (low, high) of bits per byte")


@dataclass(frozen=True)
class Lineage:
    """How an experiment came about, as its runs record it."""

    parents: tuple[str, ...] = ()
    """Names; none where it stands alone. What it is compared with comes first."""
    change: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """(before, after) of the scientific fields that differ from the first parent because they were declared to."""
    consequences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """(before, after) of those that were solved."""
    bundle: str = ""
    expected: tuple[float, float] | None = None
    source: str = ""
    """`bundle`, `expected` and `source`: as of the `Variant`."""
    evidence: str = ""
    """As of the `Promoted`, where it is one; what was tuned for it is a part of `change`."""
    overrides: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Scientific fields that the command line set: such a run is ad hoc, and no part of the graph."""
    init_from: Mapping[str, Any] | None = None
    """The trained weights that a run started from, as of `InitialWeights.record`; None where the seed drew them."""
    own_code: Mapping[str, str] = field(default_factory=dict)
    """Digests of the code that its file and those of its ancestors run beyond assigning values, by 'experiment NAME' or
    'module NAME'.
    """


class Resolved(NamedTuple):
    """An experiment, how it came about, and its parents, resolved themselves."""

    experiment: Experiment
    lineage: Lineage
    parents: tuple["Resolved", ...] = ()
    variant: Variant | None = None
    """Variant as its file has it, with what was tuned for it since; None where it is none."""
    retune: str = "off"
    """As of the variant or the merge."""
    promoted: Promoted | None = None
    """Promoted variant as its file has it; None where it is none."""
    without: str = ""
    """Name of the kept change that is left out of the parent; '' where none is."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def generation(self) -> int:
        """How many promoted variants stand in its line of first parents, itself left out."""
        return sum(one.promoted is not None for one in _line(self)[1:])

    @property
    def first_seed(self) -> int:
        """The first seed of its runs: that of the nearest promoted variant in its line of first parents, else 0."""
        return next((one.promoted.first_seed for one in _line(self) if one.promoted), 0)

    @property
    def is_retuned(self) -> bool:
        """Whether it and its first parent are compared each at its best learning rate."""
        if self.retune != "auto":
            return self.retune == "learning_rate"
        return self.moves_best_rate

    @property
    def moves_best_rate(self) -> bool:
        """Whether its change moves the best learning rate, and is not of that."""
        paths = {**self.lineage.change, **self.lineage.consequences}
        is_of_rate = not self.parents or RATE in paths
        return not is_of_rate and moves_best_rate(paths, self.parents[0].experiment, self.experiment)


class Kept(NamedTuple):
    """A change that a promoted experiment keeps."""

    name: str
    """That of the variant; where the same one is kept twice, of the promoted experiment."""
    variant: Variant
    """Variant with what was tuned for it."""
    variant_name: str
    lineage: Lineage
    parent: str
    """The experiment that it was compared with."""


def load_experiment(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """Returns the experiment that `resolve` finds."""
    return resolve(name_or_path, overrides).experiment


def resolve(name_or_path: str, overrides: Mapping[str, str] | None = None, *, parent: str = "") -> Resolved:
    """Returns the experiment of a file in `experiments/`, or at a path, with overrides applied, and how it came about.

    Overrides of scientific fields make another experiment, and are marked in its name: `baseline~1a2b3c`. A variant
    that is asked of another parent than its own is named after both: `swiglu@baseline_100m`.

    Args:
        overrides: texts by dotted path, such as `{"model.width": "256"}`.
        parent: asks a variant, or those that a merge joins, of this experiment instead of its own parent.

    Raises:
        UserError: no such experiment, a configuration that is not valid, or a variant that differs from its parent by
            another change than it declares.
    """
    return with_overrides(_resolve(name_or_path, None, parent, ()), overrides or {})


def with_overrides(resolved: Resolved, overrides: Mapping[str, str]) -> Resolved:
    """Returns a resolved experiment with overrides applied, as `resolve` does.

    Raises:
        UserError: the configuration is not valid.
    """
    base = resolved.experiment
    changed = override(base, _without_licence_of_another(base, overrides))
    ad_hoc = _differences(base, changed)
    lineage = dataclasses.replace(resolved.lineage, overrides=ad_hoc)
    return resolved._replace(experiment=dataclasses.replace(changed, name=base.name + _mark(ad_hoc)), lineage=lineage)


def _resolve(name_or_path: str, near: Path | None, asked_of: str, above: tuple[tuple[str, str], ...]) -> Resolved:
    """Args: near: the folder of the file that names this one; above: (name, asked_of) of each on the way here."""
    with collect_own_code() as own_code:
        resolved = _resolve_files(name_or_path, near, asked_of, above)
    return resolved._replace(lineage=dataclasses.replace(resolved.lineage, own_code=own_code))


def _resolve_files(name_or_path: str, near: Path | None, asked_of: str, above: tuple[tuple[str, str], ...]) -> Resolved:
    is_path = name_or_path.endswith(".py") or "/" in name_or_path
    if not is_path and OF in name_or_path:
        require(not asked_of, f"--parent={asked_of}: {name_or_path} has a parent in its name; give one of them")
        name_or_path, _, asked_of = name_or_path.partition(OF)
        require(bool(asked_of), f"the name of a parent must follow '{OF}' in {name_or_path}{OF}")
    if not is_path and WITHOUT in name_or_path and not _has_file(name_or_path, near):
        require(not asked_of, f"{name_or_path} has no parent but its own: it cannot be asked of {asked_of}")
        whole, _, left_out = name_or_path.rpartition(WITHOUT)
        return _without(_resolve(whole, near, "", above), left_out, name_or_path)
    path = find_experiment(name_or_path, near=near)
    value = run_experiment_file(path, (Experiment, Variant, Merge, Promoted))
    name = path.stem
    way = " of ".join([*(each for each, _ in above), name])
    require((name, asked_of) not in above, f"experiment {path}: it descends from itself ({way})")
    above = (*above, (name, asked_of))
    if isinstance(value, Experiment):
        require(not asked_of, f"{name} stands alone: it cannot be asked of {asked_of}")
        return Resolved(dataclasses.replace(value, name=name), Lineage())
    is_promoted = isinstance(value, Promoted)
    require(
        not (is_promoted and asked_of), f"{name} was promoted with its own parent: it cannot be asked of {asked_of}"
    )
    if asked_of and asked_of != getattr(value, "parent", None):
        name += OF + asked_of.removesuffix(".py").rpartition("/")[2]
    try:
        if isinstance(value, Variant):
            beside = near if asked_of and near else path.parent  # Of the file that names the parent.
            return _applied(value, _resolve(asked_of or value.parent, beside, "", above), name)
        if isinstance(value, Promoted):
            return _promoted(value, _judged(value, path.parent, above), name)
        parents = [_resolve(parent, path.parent, asked_of, above) for parent in value.parents]
        return _merged(value, parents, name)
    except UserError as error:
        is_prefixed = str(error).startswith("experiment ") and not isinstance(value, Promoted)
        raise UserError(str(error) if is_prefixed else f"experiment {path}: {error}") from error


def _applied(variant: Variant, parent: Resolved, name: str) -> Resolved:
    """Returns what a variant makes of a parent; refuses another change than it declares."""
    base = parent.experiment
    sections = _sections(_effective(base))
    values = {}
    for path, value in variant.change.items():
        if path not in sections:
            replace(base, {path: value})  # Tells the nearest path that there is.
        is_function = callable(value) and not isinstance(value, type)
        values[path] = _call(f"the change of {path}", value, sections[path], base) if is_function else value
    child = replace(base, _without_licence_of_another(base, values))
    declared = _differences(base, child)
    learned, differs = science(base) | science(child), _differences(_effective(base), _effective(child))
    for path in values:
        require(
            any(_is_within(leaf, path) for leaf in learned),
            f"{path} decides how a run is computed, not what it learns, and is no question",
        )
        require(
            any(_is_within(leaf, path) for leaf in differs),
            f"the change of {path} changes nothing: {base.name} has {sections[path]!r}, or takes no notice of it",
        )
    is_one = len(declared) == 1 or bool(variant.bundle.strip())
    require(
        is_one,
        f"it changes {len(declared)} fields ({', '.join(declared)}); ask one question at a time, or say in `bundle` "
        "why they are one idea",
    )
    solved_paths = set()
    for consequence in variant.consequences:
        solved_paths |= set(consequence.paths)
        child = replace(child, _call(f"the consequence {consequence!r}", consequence, base, child))
    child = dataclasses.replace(child, name=name, question=variant.question)
    everything = _differences(base, child)
    extra = [path for path in everything if path not in declared and path not in solved_paths]
    moved = [path for path in declared if everything.get(path) != declared[path]]
    require(
        not extra and not moved, f"it differs from {base.name} by more than it declares: {', '.join(extra + moved)}"
    )
    consequences = {path: values for path, values in everything.items() if path not in declared}
    lineage = Lineage((base.name,), declared, consequences, variant.bundle, variant.expected, variant.source)
    _check_retune(variant, everything)
    return Resolved(child, lineage, (parent,), variant, variant.retune)


def _check_retune(question: Variant | Merge, everything: Mapping[str, Any]) -> None:
    require(
        question.retune != "learning_rate" or RATE not in everything,
        f"a change of {RATE} is compared at the rates that it names: leave out retune",
    )


def _call(what: str, function: Callable, *arguments: Any) -> Any:
    """Returns what a function of an experiment file returns; its failure is the file's."""
    try:
        with refuse_patches(what):
            return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} fails: {type(error).__name__}: {error}") from error


def _effective(experiment: Experiment) -> Experiment:
    """Returns an experiment in which no field stands for another value, or for nothing."""
    model, optimizer = experiment.model.effective(), experiment.optimizer.effective()
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)


def _merged(merge: Merge, parents: list[Resolved], name: str) -> Resolved:
    """Returns the first parent with the changes of the others since their common ancestor."""
    first, *others = parents
    ancestor = _shared_ancestor(parents)
    result, joined = first, []
    for other in others:
        line = [one.name for one in _line(other)]
        since = _line(other)[: line.index(ancestor.name)][::-1]
        require(bool(since), f"{other.name} is an ancestor of {first.name}: there is nothing to join")
        for one in since:
            if one.variant is None:
                raise UserError(f"{one.name} is a merge itself; join the variants")
            taken = _differences(ancestor.experiment, result.experiment)
            conflicts = [path for path in one.lineage.change if path in taken]
            require(
                not conflicts,
                f"{first.name} and {other.name} both change {', '.join(conflicts)}: they cannot be joined",
            )
            result = _applied(one.variant, result, name)
            joined += one.lineage.change
    child = dataclasses.replace(result.experiment, name=name, question=merge.question)
    everything = _differences(first.experiment, child)
    change = {path: values for path, values in everything.items() if path in joined}
    consequences = {path: values for path, values in everything.items() if path not in joined}
    names = tuple(parent.name for parent in parents)
    bundle = f"the changes of {' and '.join(names)}, joined"
    _check_retune(merge, everything)
    lineage = Lineage(names, change, consequences, bundle, merge.expected, merge.source)
    return Resolved(child, lineage, tuple(parents), retune=merge.retune)


def promoted_variant(resolved: Resolved) -> Resolved:
    """Returns the variant that was promoted to an experiment, as it was judged: without what was tuned for it."""
    if resolved.promoted is None:
        raise UserError(f"{resolved.name} is no promoted variant; `jaxformer promote` makes one")
    return _judged(resolved.promoted, None, ())


def _judged(promoted: Promoted, near: Path | None, above: tuple[tuple[str, str], ...]) -> Resolved:
    """Returns the variant that was promoted, of the parent that it was compared with."""
    one = _resolve(promoted.variant, near, "", above)
    if promoted.parent in (each.name for each in ancestors(one)):
        return one
    return _resolve(promoted.variant, near, promoted.parent, above)


def _promoted(promoted: Promoted, one: Resolved, name: str) -> Resolved:
    """Returns a variant under another name, with what was tuned for it."""
    require(bool(one.parents), f"{one.name} stands alone, and is no variant that could have been kept")
    child = dataclasses.replace(replace(one.experiment, promoted.change), name=name)
    tuned = _differences(one.experiment, child)
    for path in promoted.change:
        require(
            any(_is_within(leaf, path) for leaf in tuned),
            f"the change of {path} changes nothing: {one.name} has it already; leave it out",
        )
    everything = _differences(one.parents[0].experiment, child)
    solved = one.lineage.consequences.keys() - tuned.keys()
    lineage = dataclasses.replace(
        one.lineage,
        change={path: values for path, values in everything.items() if path not in solved},
        consequences={path: values for path, values in everything.items() if path in solved},
        bundle=one.lineage.bundle or ("the change, and what was tuned for it" if tuned else ""),
        evidence=promoted.evidence,
    )
    # What was tuned for it has the best rate, and is compared at that.
    retune = "off" if RATE in promoted.change else one.retune
    variant = one.variant and dataclasses.replace(
        one.variant, change={**one.variant.change, **promoted.change}, bundle=lineage.bundle, retune=retune
    )
    return one._replace(experiment=child, lineage=lineage, variant=variant, retune=retune, promoted=promoted)


def _has_file(name: str, near: Path | None) -> bool:
    return name in list_experiments() or (near is not None and (near / f"{name}.py").is_file())


def kept_changes(whole: Resolved) -> tuple[Resolved, list[Kept]]:
    """Returns where the line of promoted experiments begins, and the changes that they keep since, in order.

    What was promoted without a change does not keep it any more.

    Raises:
        UserError: an experiment was not promoted, or what was promoted joins merges, or was tuned as a whole.
    """
    require(whole.promoted is not None, f"{whole.name} is not a promoted variant, and keeps no changes that are known")
    root, kept, left_out = whole, [], set()
    while promoted := root.promoted:
        one, root = root, _shared_ancestor(root.parents)
        is_tuned = one.variant is None and bool(promoted.change)
        require(not is_tuned, f"{one.name} was tuned as a whole: its changes cannot be told apart")
        if one.variant is None and len(one.parents) == 1:
            left_out.add(promoted.variant.rpartition(WITHOUT)[2])
            continue
        for name, each in _promoted_changes(one, promoted, root)[::-1]:
            if each.variant is None:
                raise UserError(f"{one.name} joins {each.name}, which joins others: its changes cannot be told apart")
            if not left_out & {name, one.name}:
                kept.insert(0, (one.name, Kept(name, each.variant, name, each.lineage, root.name)))
    names = [each.name for _, each in kept]
    return root, [each._replace(name=one) if names.count(each.name) > 1 else each for one, each in kept]


def _promoted_changes(one: Resolved, promoted: Promoted, root: Resolved) -> list[tuple[str, Resolved]]:
    """Returns the variants by name that a promoted experiment applies to another: itself, or those that it joins."""
    if one.variant is not None:
        return [(promoted.variant, one)]
    lines = [itertools.takewhile(lambda each: each.name != root.name, _line(parent)) for parent in one.parents]
    return [(each.name.partition(OF)[0], each) for line in lines for each in [*line][::-1]]


def _without(whole: Resolved, left_out: str, name: str) -> Resolved:
    """Returns what a promoted experiment is without one of the changes that it keeps; the others follow in order."""
    root, kept = kept_changes(whole)
    by_name = {each.name: each for each in kept}
    require(left_out in by_name, f"{whole.name} keeps {', '.join(by_name)}, and no {left_out}")
    removed, result = by_name.pop(left_out), root
    for each, one in by_name.items():
        try:
            result = _applied(one.variant, result, name)
        except UserError as error:
            raise UserError(f"{whole.name} cannot be without {left_out}, since {each} needs it: {error}") from error
    question = f"What does {whole.name} lose without {left_out}?"
    child = dataclasses.replace(result.experiment, name=name, question=question)
    everything = _differences(whole.experiment, child)
    require(bool(everything), f"{whole.name} is the same without {left_out}: a later change replaced it")
    change = {path: values for path, values in everything.items() if path in removed.lineage.change}
    consequences = {path: values for path, values in everything.items() if path not in change}
    low, high = removed.variant.expected
    source = f"what was expected of {left_out}, turned round ({removed.variant.source})"
    lineage = Lineage((whole.name,), change, consequences, f"without {left_out}", (0 - high, 0 - low), source)
    return Resolved(child, lineage, (whole,), without=left_out)


def ancestors(resolved: Resolved) -> list[Resolved]:
    """Returns the parents of an experiment, and theirs, the nearest of each line first."""
    return [each for parent in resolved.parents for each in (parent, *ancestors(parent))]


def _line(resolved: Resolved) -> list[Resolved]:
    """Returns an experiment and its ancestors, along first parents."""
    return [resolved, *(_line(resolved.parents[0]) if resolved.parents else [])]


def common_ancestor(merge: Resolved) -> Resolved:
    """Returns the nearest ancestor that all parents of a merge share."""
    return _shared_ancestor(merge.parents)


def _shared_ancestor(parents: Sequence[Resolved]) -> Resolved:
    first, *others = (_line(parent) for parent in parents)
    names = [{one.name for one in line} for line in others]
    for one in first:
        if all(one.name in line for line in names):
            return one
    raise UserError(f"its parents {', '.join(parent.name for parent in parents)} have no ancestor in common")


def _sections(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every value of a configuration by dotted path, sections among them."""
    if isinstance(config, tuple):
        children = {str(i): value for i, value in enumerate(config)}
    elif dataclasses.is_dataclass(config):
        children = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    else:
        return {}
    return {
        path: value
        for name, child in children.items()
        for path, value in ({prefix + name: child} | _sections(child, f"{prefix}{name}.")).items()
    }


def _differences(before: Experiment, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """Returns (before, after) of each scientific leaf that differs; None where there is none."""
    ours, theirs = science(after), science(before)
    paths = dict.fromkeys([*theirs, *ours])
    return {path: (theirs.get(path), ours.get(path)) for path in paths if theirs.get(path) != ours.get(path)}


def _without_licence_of_another(base: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by path that also reset the origin and the licence of each corpus whose source they change."""
    known, result = flatten(base.corpus, _prefix="corpus."), dict(values)
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        if name in ("path", "kind") and path in known and value != known[path]:
            result = {f"{section}.origin": "", f"{section}.licence": ""} | result
    return result


def _is_within(leaf: str, path: str) -> bool:
    return leaf == path or leaf.startswith(path + ".")


def _mark(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns '' or, where overrides changed the science, '~' and six digits that tell one change from another."""
    texts = sorted((path, repr(after)) for path, (_, after) in changes.items())
    return f"~{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:6]}" if texts else ""
