"""Configurations as records: written to JSON, read back, flattened and compared, your own parts included.

A part is a value that is code, such as `feed_forward=MyMoE(experts=8)`. In a record it is its name, the digest of its
source, and its fields: two runs whose parts differ in code differ in what they learn, as with any other field.
"""

import dataclasses
import importlib
import json
import re
import traceback
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from jaxformer.config import UserError, refusals_of, require
from jaxformer.host.own_code import Source, find_source

# What a record holds of a part beside its fields: its name, the digest of its source, and which fields are execution.
_NAME, _CODE, _EXECUTION = "part", "code", "execution"

P = TypeVar("P", bound="Part")

# What is recorded of a part, one by one: name, value, and whether it is execution.
_Recorded = tuple[str, Any, bool]


@dataclass(frozen=True)
class Part:
    """A configuration value that is code: a frozen dataclass, with behaviour in its class and settings in its fields.

    Its class stands at the top level of an experiment file, or of a module beside it. Its fields are numbers, texts,
    tuples of such, or parts. Parts with the same name, source and fields are equal, although a file that runs twice
    makes two classes.
    """

    _source: ClassVar[Source | None] = None
    """Of the class; None where it comes with jaxformer, or stands in no file."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.__eq__, cls.__hash__ = Part.__eq__, Part.__hash__  # Before `dataclass` gives it its own.
        is_ours, is_at_top = cls.__module__.startswith("jaxformer."), "<locals>" not in cls.__qualname__
        cls._source = None if is_ours or not is_at_top else find_source(cls.__module__)

    def _recorded(self) -> tuple[_Recorded, ...]:
        """Returns what is recorded of it."""
        kind = type(self)
        recorded: list[_Recorded] = [(_NAME, name_of(kind), False)]
        if not kind.__module__.startswith("jaxformer."):  # Without a source, the class alone is known to do the same.
            recorded.append((_CODE, kind._source.digest if kind._source else kind, False))
        fields = [(f.name, getattr(self, f.name), f.metadata.get("execution", False)) for f in dataclasses.fields(self)]
        return (*recorded, *fields)

    def __eq__(self, other: object) -> bool:
        return self._recorded() == other._recorded() if isinstance(other, Part) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._recorded())


def source_of(kind: Any) -> Source | None:
    """Returns the source of a class of parts of one's own; None for all else."""
    return kind._source if isinstance(kind, type) and issubclass(kind, Part) else None


def name_of(kind: type[Part]) -> str:
    """Returns the name of a part's class in records: 'my_moe.MyMoE' of a file my_moe.py, wherever that lies."""
    module = kind._source.path.stem if kind._source else kind.__module__
    return f"{module}.{kind.__qualname__}"


@dataclass(frozen=True, repr=False)
class PartOfARecord(Part):
    """A part of a record whose code this process has not loaded: it can only be compared and printed.

    `isinstance` takes it for the class that its field takes; any other use raises `UserError`.
    """

    _kind: type[Part]
    _name: str
    _code: str
    _fields: tuple[_Recorded, ...]

    @property
    def __class__(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `isinstance` takes it for."""
        return self._kind

    def _recorded(self) -> tuple[_Recorded, ...]:
        return ((_NAME, self._name, False), (_CODE, self._code, False), *self._fields)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value, _ in self._fields)
        return f"{self._name.partition('.')[2]}({fields})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        self.__call__()

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises: UserError: always, with what to do."""
        raise UserError(_missing(self))


def describe_failure(part: Part, error: Exception) -> str:
    """Returns what a part's code raised, and where: 'KeyError: 'word' (rhymes.py, line 12)'."""
    source = source_of(type(part))
    frames = traceback.extract_tb(error.__traceback__) if source else []
    lines = [frame.lineno for frame in frames if source and Path(frame.filename).absolute() == source.path]
    where = f" ({source.path.name}, line {lines[-1]})" if source and lines else ""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}{text and ': '}{text}{where}"


def kind_of(value: Any) -> Any:
    """Returns what stays of a value when its fields change: of a part, its name and the digest of its source."""
    if not isinstance(value, Part):
        return type(value)
    return [each for each in value._recorded() if each[0] in (_NAME, _CODE)]


def missing_parts(config: Any) -> dict[str, str]:
    """Returns what to do about the parts that this process has not loaded, by the digest of their source."""
    return {part._code: _missing(part) for part in all_parts(config) if type(part) is PartOfARecord}


def _missing(part: PartOfARecord) -> str:
    file = f"{part._name.partition('.')[0]}.py"
    return (
        f"{part!r} is code of {file}, which is unknown here or has changed since; give that file as it was, under its "
        f"name, by --code=FILE: the run folder keeps a copy, code/{part._code}/{file}"
    )


def all_parts(config: Any) -> Iterator[Part]:
    """Yields the parts in a dataclass tree, those in others too."""
    if isinstance(config, Part):
        yield config
    if dataclasses.is_dataclass(config) or isinstance(config, tuple):
        for _, value, _ in _children(config):
            yield from all_parts(value)


def to_dict(config: Any, *, to_print: bool = False) -> dict:
    """Returns the dataclass tree as plain dicts, lists and values: what JSON can hold.

    Args:
        to_print: write parts as in code, 'MyMoE(experts=8)', which `from_dict` does not read.
    """
    return json.loads(json.dumps(_plain(config, to_print)))


def _plain(value: Any, to_print: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(each, to_print) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    if to_print and isinstance(value, Part):
        return repr(value)
    children = _children(value)
    plain = {name: _plain(each, to_print) for name, each, _ in children}
    execution = [name for name, _, is_execution in children if is_execution]
    return {**plain, _EXECUTION: execution} if execution and isinstance(value, Part) else plain


def _children(config: Any) -> list[_Recorded]:
    """Returns what a dataclass or a tuple holds.

    Raises:
        UserError: a part cannot be recorded.
    """
    if isinstance(config, Part):
        _check_recordable(config)
        return [*config._recorded()]
    if isinstance(config, tuple):
        return [(str(i), value, False) for i, value in enumerate(config)]
    values = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
    return [(f.name, value, _decides_nothing(f, value)) for f, value in values]


def _decides_nothing(field: dataclasses.Field, value: Any) -> bool:
    return field.metadata.get("execution", False) or (field.metadata.get("added", False) and value == field.default)


def _check_recordable(part: Part) -> None:
    """Raises `UserError` unless a part can be identified by its record."""
    kind, recorded = type(part).__name__, part._recorded()
    is_declared = "__dataclass_params__" in vars(type(part))
    require(is_declared, f"{kind}: put @dataclass(frozen=True) before its class, so that its fields are recorded")
    for name, value, _ in recorded:
        require(
            not isinstance(value, type) or name != _CODE,
            f"{kind}: its class must stand at the top level of a file, whose source then identifies it",
        )
        require(_is_plain(value), f"{kind}: {name} ({value!r}) must be a number, a text, a tuple of such, or a part")
    names = [name for name, _, _ in recorded]
    taken = {_EXECUTION} & {*names} | {name for name in (_NAME, _CODE) if names.count(name) > 1}
    require(not taken, f"{kind}: a field of a part cannot be called {' or '.join(sorted(taken))}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Part)


def from_dict(kind: type, values: Mapping[str, Any]) -> Any:
    """Returns the dataclass tree that `to_dict` wrote, without running anything that is not loaded or jaxformer's own.

    A part of one's own is of the class that this process has loaded, or else a `PartOfARecord`.

    Raises:
        UserError: a field is missing or unknown, or the values are not a valid configuration.
    """
    hints = typing.get_type_hints(kind)
    unknown = [name for name in values if name not in hints]
    require(not unknown, f"{kind.__name__} has no field {', '.join(unknown)}")
    fields = {name: _rebuilt(hints[name], value) for name, value in values.items()}
    try:
        with refusals_of(kind, kind.__name__):
            return kind(**fields)
    except TypeError as error:
        raise UserError(str(error).replace("__init__() ", "")) from error


def _rebuilt(kind: Any, value: Any) -> Any:
    for each in (kind, *typing.get_args(kind)):
        kinds = typing.get_args(each)
        if isinstance(value, list) and typing.get_origin(each) is tuple:
            kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
            return tuple(map(_rebuilt, kinds, value))
        if isinstance(value, Mapping) and isinstance(each, type) and dataclasses.is_dataclass(each):
            return _rebuilt_part(each, value) if issubclass(each, Part) else from_dict(each, value)
    return tuple(map(_rebuilt_value, value)) if isinstance(value, list) else value


def _rebuilt_part(kind: type[Part], record: Mapping[str, Any]) -> Part:
    """Returns a part of a kind from its record."""
    name, code = record.get(_NAME), record.get(_CODE, "")
    if not (isinstance(name, str) and isinstance(code, str)):
        raise UserError(f"{name!r} ({code!r}) is no part")
    fields = {each: value for each, value in record.items() if each not in (_NAME, _CODE, _EXECUTION)}
    known = _loaded_part(name, code) if code else _part_of_package(name)
    if known:
        return from_dict(known, fields)
    execution = record.get(_EXECUTION, ())
    recorded = ((each, _rebuilt_value(value), each in execution) for each, value in fields.items())
    return PartOfARecord(kind, name, code, tuple(recorded))


def _rebuilt_value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_rebuilt_value, value))
    return _rebuilt_part(Part, value) if isinstance(value, Mapping) else value


def loaded_kinds(base: type[P]) -> Iterator[type[P]]:
    """Yields the classes of parts of one's own, of a kind, that this process has loaded."""
    for kind in base.__subclasses__():
        if kind._source is not None:
            yield kind
        yield from loaded_kinds(kind)


def _loaded_part(name: str, code: str) -> type[Part] | None:
    """Returns the class of a part of one's own among those that this process has loaded."""
    for kind in loaded_kinds(Part):
        if kind._source and (name_of(kind), kind._source.digest) == (name, code):
            return kind
    return None


def _part_of_package(name: str) -> type[Part]:
    """Returns the class of a part that comes with jaxformer; nothing but modules of its parts is imported.

    Raises:
        UserError: there is none of this name.
    """
    found = re.fullmatch(r"(jaxformer\.parts\.[a-z_0-9]+)\.(\w+)", name)
    try:
        kind = found and getattr(importlib.import_module(found[1]), found[2], None)
    except ImportError:
        kind = None
    if not (found and isinstance(kind, type) and issubclass(kind, Part) and kind.__module__ == found[1]):
        raise UserError(f"{name} is no part of this jaxformer")
    return kind


def flatten(config: Any, *, science_only: bool = False, _prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a dataclass tree by dotted path; with `science_only`, without execution fields.

    A part has, beside its fields, the leaves `part`, its name, and `code`, the digest of its source if that is not
    jaxformer's.
    """
    leaves = {}
    for name, value, is_execution in _children(config):
        if science_only and is_execution:
            continue
        if dataclasses.is_dataclass(value) or isinstance(value, tuple):
            leaves.update(flatten(value, science_only=science_only, _prefix=f"{_prefix}{name}."))
        else:
            leaves[_prefix + name] = value
    return leaves


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns one text 'path: theirs -> ours' for each leaf in which two flat configurations differ."""
    missing = "(absent)"
    return [
        f"{path}: {theirs.get(path, missing)} -> {ours.get(path, missing)}"
        for path in dict.fromkeys([*theirs, *ours])
        if theirs.get(path, missing) != ours.get(path, missing)
    ]


def check_same(belongs: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises `UserError` if two flat records of what identifies a run differ, with the keys in which they do."""
    differing = differences(json.loads(json.dumps(ours)), theirs)
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    require(
        not differing,
        f"{belongs} to another configuration ({'; '.join(differing[:5])}{more}); "
        "choose another --workdir, or delete it",
    )
