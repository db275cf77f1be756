"""The sources that decide a run's numbers, as a digest."""

import ast
import functools
import hashlib
from pathlib import Path

import jaxformer

_ROOT = Path(jaxformer.__file__).parent.parent


@functools.cache  # The code that runs is that of the start, whatever is edited since.
def code_digest() -> str:
    """Returns the hexadecimal SHA-256 of what decides a run's numbers: the loop, and all that the data and model take.

    It is of the syntax without documentation, so that comments, docstrings, reports and commands may change between
    runs that are compared.
    """
    digest = hashlib.sha256()
    for name in sorted({"jaxformer.loop"} | _imported_by("jaxformer.run.inputs")):
        tree = _parse(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                is_text = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
                node.body = [s for s, text in zip(node.body, is_text, strict=True) if not text]
        digest.update(f"{name}: {ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _imported_by(name: str) -> set[str]:
    """Returns a module of this package and all that it imports from it, directly or not."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(_parse(name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxformer":
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                modules = {part for part in parts if _path(part).is_file()}
                waiting += modules | ({node.module} if len(modules) < len(parts) else set())
    return seen


def _path(name: str) -> Path:
    """Returns the file of a module or package."""
    path = _ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parse(name: str) -> ast.Module:
    return ast.parse(_path(name).read_text())
