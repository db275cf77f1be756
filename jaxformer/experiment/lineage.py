"""Where an experiment comes from: its ancestors, and its difference from its first parent."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxformer.config import UserError
from jaxformer.experiment.best_rate import RATE, moves_best_rate
from jaxformer.experiment.change import differences
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.experiment.variant import Merge, Promoted, Variant


@dataclass(frozen=True)
class Lineage:
    """How an experiment came about, as its runs record it."""

    parents: tuple[str, ...] = ()
    """Names; none where it stands alone. It is compared with the first."""
    change: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """(before, after) of the scientific fields whose difference from the first parent was declared."""
    consequences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """(before, after) of the fields that were solved."""
    bundle: str = ""
    expected: tuple[float, float] | None = None
    source: str = ""
    """`bundle`, `expected` and `source`: as of the `Variant`."""
    evidence: str = ""
    """As of a `Promoted`; what was tuned for it is part of `change`."""
    without: str = ""
    """Name of the kept change that is left out of the parent; '' where none is."""
    overrides: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Scientific fields set on the command line: such a run is ad hoc, and not in the graph."""
    experiment: str = ""
    """Name of the experiment, if the command line gave the run another; else ''."""
    init_from: Mapping[str, Any] | None = None
    """The trained weights that a run started from, as of `InitialWeights.record`; None where the seed drew them."""
    extended_from: Mapping[str, Any] | None = None
    """The `run` of fewer `steps` that this run continues from `step`; None where it continues none."""
    own_code: Mapping[str, str] = field(default_factory=dict)
    """Digests of the code in its file and its ancestors' files that does more than assign values, by 'experiment NAME'
    or 'module NAME'.
    """


class Resolved(NamedTuple):
    """An experiment, its lineage, and its resolved parents."""

    experiment: Experiment
    lineage: Lineage
    parents: tuple["Resolved", ...] = ()
    declaration: Variant | Merge | Promoted | None = None
    """As in its file; None where it stands alone, or leaves out a kept change."""
    judged: "Resolved | None" = None
    """Of a promoted variant, the judged variant, before anything was tuned for it."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def without(self) -> str:
        """Name of the kept change that is left out of the parent; '' where none is."""
        return self.lineage.without

    @property
    def promoted(self) -> Promoted | None:
        """The promoted variant as in its file; None where it is none."""
        return self.declaration if isinstance(self.declaration, Promoted) else None

    @property
    def tuned(self) -> Mapping[str, Any]:
        """Values by path that were tuned for it as a promoted variant."""
        return self.promoted.change if self.promoted else {}

    @property
    def variant(self) -> Variant | None:
        """The variant, promoted or not; None where it is a merge, or no variant."""
        declaration = (self.judged or self).declaration
        return declaration if isinstance(declaration, Variant) else None

    @property
    def line(self) -> list["Resolved"]:
        """Itself and its ancestors along first parents."""
        return [self, *(self.parents[0].line if self.parents else [])]

    @property
    def ancestors(self) -> list["Resolved"]:
        """Its parents and their ancestors, the nearest of each line first."""
        return [each for parent in self.parents for each in (parent, *parent.ancestors)]

    @property
    def common_ancestor(self) -> "Resolved":
        """The parent; of a merge, the nearest ancestor that all parents share."""
        return nearest_shared(self.parents)

    @property
    def generation(self) -> int:
        """The number of promoted variants in its longest line of ancestors."""
        return max((each.generation + bool(each.promoted) for each in self.parents), default=0)

    @property
    def first_seed(self) -> int:
        """The first seed of its runs, from the latest promoted variant in its line; else 0."""
        return max((each.promoted.first_seed for each in (self, *self.ancestors) if each.promoted), default=0)

    @property
    def retune(self) -> str:
        """As of the variant or the merge; one promoted with a tuned learning rate is compared at that rate."""
        declaration = (self.judged or self).declaration
        return declaration.retune if isinstance(declaration, Variant | Merge) and RATE not in self.tuned else "off"

    @property
    def is_retuned(self) -> bool:
        """Whether it and its first parent are each compared at their best learning rate."""
        return self.moves_best_rate if self.retune == "auto" else self.retune == "learning_rate"

    @property
    def moves_best_rate(self) -> bool:
        """Whether its change moves the best learning rate, without being a change of it."""
        paths = {**self.lineage.change, **self.lineage.consequences}
        is_of_rate = not self.parents or RATE in paths
        return not is_of_rate and moves_best_rate(paths, self.parents[0].experiment, self.experiment)

    def is_same(self, other: "Resolved") -> bool:
        """Returns whether two experiments of one name learn the same: two folders may have files of that name."""
        return self.name == other.name and science(self.experiment) == science(other.experiment)


def nearest_shared(experiments: Sequence[Resolved]) -> Resolved:
    """Returns the nearest experiment that is in the lines of all.

    Raises:
        UserError: there is none.
    """
    first, *others = (one.line for one in experiments)
    for one in first:
        if all(any(each.is_same(one) for each in line) for line in others):
            return one
    names = [one.name for one in first if all(one.name in {each.name for each in line} for line in others)]
    hint = f"; files named {names[0]} in two folders differ" if names else ""
    raise UserError(f"its parents {', '.join(one.name for one in experiments)} have no ancestor in common{hint}")


def make_lineage(parents: Sequence[Resolved], child: Experiment, declared: Collection[str], **recorded: Any) -> Lineage:
    """Returns the lineage of an experiment.

    Args:
        declared: paths of fields whose difference from the first parent was declared; all others were solved.
        recorded: further fields of the lineage.
    """
    found = differences(parents[0].experiment, child)
    change = {path: values for path, values in found.items() if path in declared}
    consequences = {path: values for path, values in found.items() if path not in declared}
    return Lineage(tuple(each.name for each in parents), change, consequences, **recorded)


def describe_change(change: Mapping[str, Sequence]) -> list[str]:
    """Returns 'path: before → after' for each field of a change, and for each part that is added or removed."""
    lines = []
    for path in changed_settings(change):
        sides = [_part(change, path, side) for side in (0, 1)] if f"{path}.part" in change else change[path]
        lines.append(f"{path}: {_value(sides[0])} → {_value(sides[1])}")
    return lines


def changed_settings(change: Mapping[str, Sequence]) -> list[str]:
    """Returns the path of each field of a change; of a part that is added or removed, its path alone."""
    parts = [path.removesuffix(".part") for path in change if path.endswith(".part")]
    wholes = (next((part for part in parts if f"{path}.".startswith(f"{part}.")), path) for path in change)
    return [*dict.fromkeys(wholes)]


def _part(change: Mapping[str, Sequence], path: str, side: int) -> Any:
    """Returns a part before (0) or after (1) a change, as in code; the value itself if it is no part."""
    inner = {name.removeprefix(f"{path}."): each[side] for name, each in change.items() if name.startswith(f"{path}.")}
    name, _ = inner.pop("part"), inner.pop("code", None)
    if name is None:
        return change.get(path, (None, None))[side]
    return f"{name.rpartition('.')[2]}({', '.join(f'{n}={v!r}' for n, v in inner.items() if v is not None)})"


def _value(value: Any) -> str:
    return "none" if value is None else "''" if value == "" else str(value)
