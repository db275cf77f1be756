"""How a configuration is declared, checked and overridden from text.

A configuration is a tree of frozen dataclasses, one beside the code that uses it. Fields that change the
science (what is learned) and fields that change only the execution (how it is computed: workers, logging,
micro-batches) are distinguished by `execution`, because only the first identify a run.
"""

import contextlib
import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, NoReturn


class UserError(ValueError):
    """An error that the user can correct. Its text is the line that a command prints before exit status 2."""


class TrainingFailure(RuntimeError):
    """A run cannot go on. Its text is the line that a command prints before exit status 1."""


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


@contextlib.contextmanager
def refusals_of(kind: type, where: str) -> Iterator[None]:
    """Turns what the `__post_init__` of somebody's own class raises into a `UserError` that says where."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or kind.__module__.startswith("jaxformer."):
            raise
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: {reason}") from error


def require_one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises `UserError` with the nearest choice unless `value` is among `choices`."""
    choices = sorted(choices)
    if value not in choices:
        raise UserError(
            f"{name} = {value!r} is unknown{did_you_mean(value, choices)}; choose from {', '.join(choices)}"
        )


def did_you_mean(word: str, known: Iterable[str], *, also: Collection[str] = (), unit: str = "") -> str:
    """Returns '; did you mean X?' for the nearest known words, or nothing.

    Dotted paths and options that end in the same name are the nearest.

    Args:
        also: known words for which `word` is another name.
        unit: of their values, shown behind them.
    """
    paths = {each.lstrip("-").lower(): each for each in known}
    path = word.lstrip("-").lower().replace("-", "_")
    section, _, name = path.rpartition(".")
    near = _nearest(path, [each for each in paths if each in also or f".{each}".endswith(f".{name}")])
    siblings = [each for each in paths if each.rpartition(".")[0] == section]
    for candidates, cutoff in ((siblings, 0.6), (paths, 0.75)):
        ends = [each.rpartition(".")[2] for each in candidates]
        end = difflib.get_close_matches(name, ends, n=1, cutoff=cutoff)
        near = near or _nearest(path, [each for each in candidates if each.rpartition(".")[2] in end])
    if not siblings:
        near = near or difflib.get_close_matches(path, paths, n=1, cutoff=0.6)
    words = " or ".join(paths[each] for each in near)
    return f"; did you mean {words}{unit and f' ({unit})'}?" if near else ""


def _nearest(path: str, candidates: list[str]) -> list[str]:
    """Returns the dotted paths that share most sections with one and, of those, are the shortest."""

    def nearness(each: str) -> tuple[int, int]:
        ours, theirs = each.split("."), path.split(".")
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
        return sum(1 for _ in shared), -len(ours)

    return [each for each in candidates if nearness(each) == max(map(nearness, candidates))]


# From an unknown path and the known ones to a hint, as `did_you_mean` returns it.
Suggest = Callable[[str, Iterable[str]], str]


def execution(default: Any) -> Any:
    """Declares a field that changes how a run is computed but not what it learns: never hashed, never compared."""
    return dataclasses.field(default=default, metadata={"execution": True})


def added(default: Any) -> Any:
    """Declares a field that earlier versions lacked: at its default a run keeps the identity that it had without it."""
    return dataclasses.field(default=default, metadata={"added": True})


class Bounds(NamedTuple):
    """Where a number must lie, as metadata of its field: `share: Annotated[float, Bounds(above=0, at_most=1)]`."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __str__(self):
        limits = [(name.replace("_", " "), limit) for name, limit in self._asdict().items() if math.isfinite(limit)]
        return " and ".join(f"{words} {_short(limit)}" for words, limit in limits)

    def check(self, path: str, value: float) -> None:
        """Raises `UserError` unless a value lies within the bounds."""
        lies_within = self.at_least <= value <= self.at_most and self.above < value < self.below
        require(lies_within, f"{path} ({value}) must be {self}")


class OneOf:
    """Which texts are known, as metadata of their field: `norm: Annotated[str, OneOf("rmsnorm", "layernorm")]`."""

    def __init__(self, *choices: str):
        self.choices = choices

    def __str__(self):
        return f"one of {', '.join(self.choices)}"

    def check(self, path: str, value: str) -> None:
        """Raises `UserError` with the nearest choice unless a value is one of them."""
        require_one_of(path, value, self.choices)


PositiveInt = Annotated[int, Bounds(at_least=1)]
NonNegativeInt = Annotated[int, Bounds(at_least=0)]
# For numbers that JAX counts or addresses in int32.
PositiveInt32 = Annotated[int, Bounds(at_least=1, below=1 << 31)]
NonNegativeInt32 = Annotated[int, Bounds(at_least=0, below=1 << 31)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(at_least=0)]


def _short(limit: float) -> str:
    """Returns a limit as text, a large power of two as one: '2**31'."""
    if isinstance(limit, int) and limit > 1 << 10 and limit & (limit - 1) == 0:
        return f"2**{limit.bit_length() - 1}"
    return str(limit)


def override(config: Any, texts: Mapping[str, str], suggest: Suggest = did_you_mean) -> Any:
    """Returns a copy of a dataclass tree with the fields at dotted paths replaced by values parsed from text.

    All replacements are made at once, so that fields that depend on each other (width and heads) can change
    together. Elements of a tuple are addressed by their index: `corpus.parts.1.weight`.

    Args:
        suggest: returns the hint on an unknown path.

    Raises:
        UserError: an unknown path (with the nearest known one), or a text that is not of the field's type.
    """
    _check_paths(config, texts, suggest)
    return _replaced(config, texts, _parse, "")


def replace(config: Any, values: Mapping[str, Any], suggest: Suggest = did_you_mean) -> Any:
    """Returns a copy of a dataclass tree with the fields or whole sections at dotted paths replaced by values.

    Raises:
        UserError: an unknown path (with the nearest known one), or values that are no valid configuration.
    """
    _check_paths(config, values, suggest)
    return _replaced(config, values, None, "")


def values_by_path(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every value of a configuration by dotted path, sections among them."""
    return {
        path: value
        for name, child in _children(config).items()
        for path, value in ({prefix + name: child} | values_by_path(child, f"{prefix}{name}.")).items()
    }


def _children(node: Any) -> dict[str, Any]:
    """Returns what a section or a tuple holds, by its name or index; nothing for any other value."""
    if isinstance(node, tuple):
        return {str(i): value for i, value in enumerate(node)}
    return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}


def _check_paths(config: Any, paths: Iterable[str], suggest: Suggest) -> None:
    """Raises `UserError` unless all paths are there, each of them set as a whole or in parts."""
    known, paths = {"": config, **values_by_path(config)}, list(paths)
    for path in paths:
        for each in paths:
            require(not path.startswith(f"{each}."), f"{each} is set as a whole and in parts; set one of them")
        if path not in known:
            _refuse_unknown(path, known, suggest)


def _refuse_unknown(path: str, known: Mapping[str, Any], suggest: Suggest) -> NoReturn:
    section = path
    while section not in known:
        section = section.rpartition(".")[0]
    candidates = [each for each in known if not path.startswith(f"{each}.") or not _children(known[each])]
    inside = ", ".join(_children(known[section])) or "nothing"
    raise UserError(f"unknown key {path}{suggest(path, candidates) or f'; known here: {inside}'}")


def _replaced(config: Any, values: Mapping[str, Any], parse: Callable | None, prefix: str) -> Any:
    groups: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        groups.setdefault(head, {})[rest] = value
    known = _children(config)
    if isinstance(config, tuple):
        return tuple({**known, **_changed(known, {}, groups, parse, prefix)}.values())
    changed = _changed(known, typing.get_type_hints(type(config)), groups, parse, prefix)
    with refusals_of(type(config), prefix.removesuffix(".")):
        return dataclasses.replace(config, **changed)


def _changed(known: dict, hints: dict, groups: dict[str, dict], parse: Callable | None, prefix: str) -> dict:
    """Returns the new values of the named children of one node."""
    changed = {}
    for name, inner in groups.items():
        path, value = prefix + name, known[name]
        if "" not in inner:
            changed[name] = _replaced(value, inner, parse, path + ".")
            continue
        is_node, kind = dataclasses.is_dataclass(value) or isinstance(value, tuple), hints.get(name, type(value))
        if is_node and parse and _parser(kind) is None:
            inside = ", ".join(f"{path}.{child}" for child in [*_children(value)][:3])
            advice = f"set one of its fields: {inside}, ..." if inside else "set it in an experiment file"
            raise UserError(f"{path} is a section, not a value; {advice}")
        is_one_kind = is_node and isinstance(kind, type)
        require(not is_one_kind or isinstance(inner[""], type(value)), f"{path} must be a {type(value).__name__}")
        changed[name] = parse(path, inner[""], kind) if parse else inner[""]
    return changed


def _parse(path: str, text: str, kind: type) -> Any:
    """Returns the value of `text` as `kind`."""
    parser = _parser(kind)
    if parser is None:
        raise UserError(f"{path} cannot be set from the command line; write it in an experiment file")
    expected, parse = parser
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} must be {expected}, not {text!r}") from error


def _whole_number(text: str) -> int:
    """Returns the integer that a text writes, as 5000, 5_000 or 5e3."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


_PARSERS = {
    str: ("text", str),
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    int: ("a whole number", _whole_number),
    float: ("a number", float),
}


def _parser(kind: Any) -> tuple[str, Callable] | None:
    """Returns what a text must be for a type, or for one of several, and how it is parsed; None where no text can."""
    return next((_PARSERS[each] for each in _alternatives(kind) if each in _PARSERS), None)


def _alternatives(kind: Any) -> tuple:
    """Returns the types of a union, or the only one."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def describe_type(kind: Any) -> str:
    """Returns in words what a field of a declared type takes: 'a whole number, at least 1'."""
    arguments = typing.get_args(kind)
    if len(_alternatives(kind)) > 1:
        return " or ".join("none" if each is types.NoneType else describe_type(each) for each in _alternatives(kind))
    if typing.get_origin(kind) is Annotated:
        return ", ".join([describe_type(arguments[0]), *map(str, arguments[1:])])
    if typing.get_origin(kind) is tuple:
        element = describe_type(arguments[0])
        return f"a tuple of ({element})" if len(_alternatives(arguments[0])) > 1 else f"a tuple of {element}"
    return _PARSERS[kind][0] if kind in _PARSERS else kind.__name__


def check_fields(config: Any, section: str = "") -> None:
    """Checks the fields of a configuration by their declarations; call it first in `__post_init__`.

    Numbers must be finite. Tuples are checked element by element, and the value of a union by the type that it has.
    Fields declared as mappings or callables are left to their class.

    Args:
        section: dotted path of the configuration, so that errors name its fields as the command line does.

    Raises:
        UserError: a value is not of its declared type, or breaks the metadata of its type (`Bounds`, `OneOf`).
    """
    declared = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        path = f"{section}.{field.name}" if section else field.name
        _check(path, declared[field.name], getattr(config, field.name))


def _check(path: str, kind: Any, value: Any) -> None:
    """Raises `UserError` unless a value is what an annotation declares."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        _check(path, arguments[0], value)
        for bound in arguments[1:]:
            bound.check(path, value)
    elif origin is tuple:
        require(isinstance(value, tuple), f"{path} must be a tuple, not {value!r}")
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        require(len(kinds) == len(value), f"{path} must have {len(kinds)} elements, not {value!r}")
        for i, (each_kind, each) in enumerate(zip(kinds, value, strict=True)):
            _check(f"{path}.{i}", each_kind, each)
    elif len(_alternatives(kind)) > 1:
        fitting = [each for each in arguments if isinstance(value, _runtime_class(each))]
        if not fitting:
            _refuse_alternatives(path, kind, value)
        _check(path, fitting[0], value)
    elif isinstance(kind, type):
        _check_plain(path, kind, value)


def _refuse_alternatives(path: str, kind: Any, value: Any) -> NoReturn:
    classes = [describe_type(each) for each in _alternatives(kind) if dataclasses.is_dataclass(each)]
    how = f"; give Mine(...) of `class Mine({classes[0]})`" if classes else ""
    given = f"the class {value.__name__}; give {value.__name__}(...)" if isinstance(value, type) else f"{value!r}{how}"
    raise UserError(f"{path} must be {describe_type(kind)}, not {given}")


def _runtime_class(kind: Any) -> Any:
    """Returns what `isinstance` takes for an annotation."""
    if typing.get_origin(kind) is Annotated:
        return _runtime_class(typing.get_args(kind)[0])
    return (float, int) if kind is float else typing.get_origin(kind) or kind


def _check_plain(path: str, kind: type, value: Any) -> None:
    """Raises `UserError` unless a value is of a class, finite, and small enough to be passed on."""
    accepted = (float, int) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{path} must be of type {kind.__name__}, not {value!r}")
    if isinstance(value, int):
        require(-(2**63) <= value < 2**63, f"{path} ({value}) must fit in 64 bits")
    if isinstance(value, float):
        require(math.isfinite(value), f"{path} ({value}) must be finite")
    if isinstance(value, str):
        require(is_unicode(value) and "\0" not in value, f"{path} ({value!r}) must be Unicode text without NUL")


def is_unicode(text: str) -> bool:
    """Returns whether a text is valid Unicode: Python reads a byte that is not UTF-8 as a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def require_unicode(text: str) -> None:
    """Raises `UserError` unless a text is valid Unicode, which tokenizers need."""
    require(is_unicode(text), "the text is not UTF-8")
