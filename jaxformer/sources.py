"""The sources that decide a run's numbers, as a digest."""

import ast
import functools
import hashlib
from pathlib import Path


@functools.cache  # The code that runs is that of the start, whatever is edited since.
def code_digest() -> str:
    """Returns the hexadecimal SHA-256 of what decides a run's numbers: the loop, and all that the data and model take.

    It is of the syntax without documentation, so that comments, docstrings, reports and commands may change between
    runs that are compared.
    """
    digest = hashlib.sha256()
    for name in sorted({"loop"} | _imported_by("data")):
        tree = _parse(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                is_text = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
                node.body = [s for s, text in zip(node.body, is_text, strict=True) if not text]
        digest.update(f"{name}: {ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _imported_by(name: str) -> set[str]:
    """Returns a module of this package and all that it imports, directly or not."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(_parse(name)):
            if isinstance(node, ast.ImportFrom) and node.module == "jaxformer":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxformer."):
                waiting.append(node.module.removeprefix("jaxformer."))
    return seen


def _parse(name: str) -> ast.Module:
    return ast.parse((Path(__file__).parent / f"{name}.py").read_text())
