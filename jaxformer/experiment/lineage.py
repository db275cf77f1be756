"""Where an experiment comes from: its parents and theirs, and in what it differs from the first of them."""

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
    without: str = ""
    """Name of the kept change that is left out of the parent; '' where none is."""
    overrides: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Scientific fields that the command line set: such a run is ad hoc, and no part of the graph."""
    experiment: str = ""
    """Name of the experiment, where the command line gave the run another; '' where it did not."""
    init_from: Mapping[str, Any] | None = None
    """The trained weights that a run started from, as of `InitialWeights.record`; None where the seed drew them."""
    extended_from: Mapping[str, Any] | None = None
    """The `run` of fewer `steps` whose first ones, up to `step`, are those of this run; None where it has none."""
    own_code: Mapping[str, str] = field(default_factory=dict)
    """Digests of the code that its file and those of its ancestors run beyond assigning values, by 'experiment NAME' or
    'module NAME'.
    """


class Resolved(NamedTuple):
    """An experiment, how it came about, and its parents, resolved themselves."""

    experiment: Experiment
    lineage: Lineage
    parents: tuple["Resolved", ...] = ()
    declaration: Variant | Merge | Promoted | None = None
    """As its file has it; None where it stands alone, or leaves out a kept change."""
    judged: "Resolved | None" = None
    """Of a promoted variant, what was judged: the variant before anything was tuned for it."""

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
        """Promoted variant as its file has it; None where it is none."""
        return self.declaration if isinstance(self.declaration, Promoted) else None

    @property
    def tuned(self) -> Mapping[str, Any]:
        """Values by path of what was tuned for it as a promoted variant."""
        return self.promoted.change if self.promoted else {}

    @property
    def variant(self) -> Variant | None:
        """Variant that makes it of its parent, promoted or not; None where it is a merge, or none."""
        declaration = (self.judged or self).declaration
        return declaration if isinstance(declaration, Variant) else None

    @property
    def line(self) -> list["Resolved"]:
        """Itself and its ancestors along first parents."""
        return [self, *(self.parents[0].line if self.parents else [])]

    @property
    def ancestors(self) -> list["Resolved"]:
        """Its parents, and theirs, the nearest of each line first."""
        return [each for parent in self.parents for each in (parent, *parent.ancestors)]

    @property
    def common_ancestor(self) -> "Resolved":
        """The parent; of a merge, the nearest ancestor that all parents share."""
        return nearest_shared(self.parents)

    @property
    def generation(self) -> int:
        """How many promoted variants stand in its longest line of ancestors."""
        return max((each.generation + bool(each.promoted) for each in self.parents), default=0)

    @property
    def first_seed(self) -> int:
        """The first seed of its runs: that of the latest promoted variant that it is or goes back to; else 0."""
        return max((each.promoted.first_seed for each in (self, *self.ancestors) if each.promoted), default=0)

    @property
    def retune(self) -> str:
        """As of the variant or the merge; what was promoted with a tuned learning rate is compared at that."""
        declaration = (self.judged or self).declaration
        return declaration.retune if isinstance(declaration, Variant | Merge) and RATE not in self.tuned else "off"

    @property
    def is_retuned(self) -> bool:
        """Whether it and its first parent are compared each at its best learning rate."""
        return self.moves_best_rate if self.retune == "auto" else self.retune == "learning_rate"

    @property
    def moves_best_rate(self) -> bool:
        """Whether its change moves the best learning rate, and is not of that."""
        paths = {**self.lineage.change, **self.lineage.consequences}
        is_of_rate = not self.parents or RATE in paths
        return not is_of_rate and moves_best_rate(paths, self.parents[0].experiment, self.experiment)

    def is_same(self, other: "Resolved") -> bool:
        """Returns whether two experiments of a name learn the same: a file of that name may lie in two folders."""
        return self.name == other.name and science(self.experiment) == science(other.experiment)


def nearest_shared(experiments: Sequence[Resolved]) -> Resolved:
    """Returns the nearest experiment that is in the line of all of several.

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
    """Returns 'path: before → after' for each field of a change, and for each part that is put in or taken out."""
    parts = [path.removesuffix(".part") for path in change if path.endswith(".part")]
    lines = {}
    for path, values in change.items():
        whole = next((part for part in parts if f"{path}.".startswith(f"{part}.")), path)
        sides = [_part(change, whole, side) for side in (0, 1)] if whole in parts else values
        lines[whole] = f"{whole}: {_value(sides[0])} → {_value(sides[1])}"
    return [*lines.values()]


def _part(change: Mapping[str, Sequence], path: str, side: int) -> Any:
    """Returns a part in a change before (0) or after it (1), as code writes it; where there is none, what there is."""
    inner = {name.removeprefix(f"{path}."): each[side] for name, each in change.items() if name.startswith(f"{path}.")}
    name, _ = inner.pop("part"), inner.pop("code", None)
    if name is None:
        return change.get(path, (None, None))[side]
    return f"{name.rpartition('.')[2]}({', '.join(f'{n}={v!r}' for n, v in inner.items() if v is not None)})"


def _value(value: Any) -> str:
    return "none" if value is None else "''" if value == "" else str(value)
