"""A guard against experiment files that change the package, or libraries that it computes with, in place.

An experiment is a value. A file that replaced `jaxformer.model.activate` would train something else than its record
says, and a comparison would take it for one change.
"""

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import jax

from jaxformer.config import UserError

_PACKAGE = "jaxformer"

# Other modules whose functions and classes may not be replaced.
_LIBRARIES = (
    "builtins", "math", "numpy", "jax", "jax.numpy", "jax.lax", "jax.nn", "jax.random", "flax.nnx", "optax",
)  # fmt: skip

# Attributes that Python itself sets.
_SET_BY_PYTHON = {"__annotations__", "__annotations_cache__", "__doc__", "__signature__", "__warningregistry__"}

# Changes that are named in one line.
_NAMED = 3


class _State(NamedTuple):
    """The state before; objects are compared by identity."""

    modules: dict[str, ModuleType]
    members: list[tuple[str, ModuleType | type, dict[str, Any]]]
    """Of this package's modules and their classes: name, owner, attributes."""
    functions: list[tuple[str, str, FunctionType, tuple]]
    """Of those: name of the owner, own name, function, what it computes."""
    contents: list[tuple[str, str, Any, Any]]
    """Of mutable values of the modules: name of the owner, own name, value, copy."""
    library: list[tuple[str, ModuleType, dict[str, Any]]]
    """Of libraries: name, module, functions and classes."""
    options: dict[str, Any]
    environment: dict[str, str]


@contextlib.contextmanager
def refuse_patches(what: str) -> Iterator[None]:
    """Undoes changes of a block to the package, libraries, JAX's options and the environment.

    Args:
        what: what the block runs, for the error.

    Raises:
        UserError: it changed something.
    """
    before, changed = _state(), []
    try:
        yield
    finally:
        changed += _restore(before)
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise UserError(
            f"{what} changes {', '.join(changed[:_NAMED])}{more} in place, and its runs would not train what "
            "they record; change fields of the experiment, or the package itself, for the parent as well"
        )


def only_declares(tree: ast.Module) -> bool:
    """Returns whether a file only imports from this package and assigns values made with it.

    Most experiment files do, and checking all that another may change takes 30 ms.
    """

    def is_value(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return ast.unparse(node.func) in made | {"dataclasses.replace"}
        return not isinstance(node, ast.Lambda | ast.NamedExpr | ast.Await | ast.comprehension)

    made = set()
    for statement in tree.body:
        match statement:
            case ast.ImportFrom(module=str(module), level=0) if module.split(".")[0] in (_PACKAGE, "dataclasses"):
                made |= {alias.asname or alias.name for alias in statement.names}
            case ast.Import(names=[ast.alias(name="dataclasses", asname=None)]) | ast.Expr(value=ast.Constant()):
                pass
            case ast.Assign(targets=[ast.Name()], value=value) if all(map(is_value, ast.walk(value))):
                pass
            case _:
                return False
    return True


def import_what_it_may_patch(tree: ast.Module) -> None:
    """Imports what a file names of this package, so that its state is known before the file runs."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(node.module, alias.name) for alias in node.names]
    for module, name in names:
        if module.split(".")[0] == _PACKAGE:
            with contextlib.suppress(ImportError, AttributeError):
                getattr(importlib.import_module(module), name or "__name__")
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{module}.{name}" if name else module)


def _state() -> _State:
    modules = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{_PACKAGE}.")}
    members, functions, contents = [], [], []
    for name, module in modules.items():
        classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == name]
        for owner in (module, *classes):
            own_name, attributes = name if owner is module else f"{name}.{owner.__name__}", dict(vars(owner))
            members.append((own_name, owner, attributes))
            for key, value in attributes.items():
                kind = type(value)
                if kind is FunctionType and value.__module__ == name:
                    functions.append((own_name, key, value, _computed_by(value)))
                elif kind in (dict, list, set) and not key.startswith("__"):
                    contents.append((own_name, key, value, value.copy()))
    library = [
        (name, sys.modules[name], {key: value for key, value in vars(sys.modules[name]).items() if callable(value)})
        for name in _LIBRARIES
        if name in sys.modules
    ]
    return _State(modules, members, functions, contents, library, dict(jax.config.values), dict(os.environ))


def _computed_by(function: FunctionType) -> tuple:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _restore(before: _State) -> list[str]:
    """Restores the state before; returns the names of what had changed."""
    changed = []
    for name, module in before.modules.items():
        if sys.modules.get(name) is not module:
            sys.modules[name] = module
            changed.append(f"sys.modules[{name!r}]")
    for name, owner, attributes in before.members:
        changed += _restore_attributes(name, owner, attributes, with_new=True)
    for name, key, function, computed in before.functions:
        if any(now is not then for now, then in zip(_computed_by(function), computed, strict=True)):
            function.__code__, function.__defaults__, function.__kwdefaults__ = computed
            changed.append(f"{name}.{key}")
    for name, key, value, copy in before.contents:
        if not _is_same(value, copy):
            value.clear()
            value.extend(copy) if isinstance(value, list) else value.update(copy)
            changed.append(f"{name}.{key}")
    for name, module, attributes in before.library:
        changed += _restore_attributes(name, module, attributes, with_new=False)
    return [*changed, *_restore_options(before.options), *_restore_environment(before.environment)]


def _restore_attributes(name: str, owner: ModuleType | type, before: dict[str, Any], *, with_new: bool) -> list[str]:
    now, changed, new = vars(owner), [], []
    for key, value in before.items():
        if now.get(key, now) is not value and key not in _SET_BY_PYTHON:
            changed.append(key)
    if with_new and len(now) != len(before):
        new = sorted(key for key in now.keys() - before.keys() - _SET_BY_PYTHON)
        new = [key for key in new if sys.modules.get(f"{name}.{key}") is not now[key]]  # An import binds a submodule.
    for key in changed:
        setattr(owner, key, before[key])
    for key in new:
        delattr(owner, key)
    return [f"{name}.{key}" for key in (*changed, *new)]


def _is_same(value: dict | list | set, copy: dict | list | set) -> bool:
    """Returns whether a collection holds the same objects as its copy."""
    if isinstance(value, dict) and isinstance(copy, dict):
        return value.keys() == copy.keys() and all(value[key] is copy[key] for key in copy)
    if isinstance(value, set):
        return value == copy
    return len(value) == len(copy) and all(one is other for one, other in zip(value, copy, strict=True))


def _restore_options(before: dict) -> list[str]:
    now = jax.config.values
    changed = [name for name in before if now.get(name) != before[name]]
    for name in changed:
        jax.config.update(name, before[name])
    return [f"jax.config.{name}" for name in changed]


def _restore_environment(before: dict[str, str]) -> list[str]:
    changed = sorted({name for name, _ in before.items() ^ os.environ.items()})
    for name in changed:
        os.environ.pop(name, None)
    os.environ.update({name: before[name] for name in changed if name in before})
    return [f"os.environ[{name!r}]" for name in changed]
