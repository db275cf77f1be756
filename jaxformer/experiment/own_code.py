"""The code that experiment files run beyond assigning values: functions of their own, and modules beside them.

What a file assigns is recorded and compared as values. Code of its own is recorded by its digest, so that all runs of
an experiment, and those of its parent, are known to have been made with the same.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from jaxformer.host.syntax import parse_code

_PACKAGE = Path(__file__).resolve().parents[1]

# Where the code of files that run now is collected; None where nobody wants it.
_collected: ContextVar[dict[str, str] | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def collect_own_code() -> Iterator[dict[str, str]]:
    """Collects the digests of the own code of all experiment files that run in a block.

    They are named 'experiment NAME' and 'module NAME'. A block around this one has them too.
    """
    outer, inner = _collected.get(), dict[str, str]()
    token = _collected.set(inner)
    try:
        yield inner
    finally:
        _collected.reset(token)
        if outer is not None:
            outer.update(inner)


def record_own_code(path: Path, assigned: str) -> None:
    """Adds to what is collected the code of a file that has run, and of the local modules that it imports.

    Modules are found in the code: one of a computed name is not. So it does not matter what this process has loaded.

    Args:
        path: of the file.
        assigned: the name whose assignment is no code, since its value is recorded.
    """
    found = _collected.get()
    if found is None:
        return
    tree = parse_code(path.read_bytes())
    found |= {f"module {name}": digest for name, digest in _local_modules(_imported_by(tree, "")).items()}
    others = [statement for statement in tree.body if not _assigns(statement, assigned)]
    if not all(map(_is_declaration, others)):
        found[f"experiment {path.stem}"] = _digest("".join(map(ast.dump, others)).encode())


def _local_modules(names: set[str]) -> dict[str, str]:
    """Returns the digests of those modules of some names that are local, and of all that those import locally."""
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        path = _local_file(name)
        if path is None or name in found:
            continue
        if path.suffix == ".py":
            tree = parse_code(path.read_bytes())
            found[name] = _digest(ast.dump(tree).encode())
            waiting += _imported_by(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
        else:
            found[name] = _digest(path.read_bytes())
    return found


def _local_file(name: str) -> Path | None:
    """Returns the file of a module, if it has one and belongs neither to Python nor to an installed package."""
    top, *rest = name.split(".")
    if top in sys.stdlib_module_names or top == "jaxformer":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if rest:  # Found without importing what is around it.
        folders = (Path(folder, *rest[:-1]) for folder in spec.submodule_search_locations or ())
        files = [path for folder in folders for path in (folder / rest[-1] / "__init__.py", folder / f"{rest[-1]}.py")]
        path = next((path for path in files if path.is_file()), None)
    else:
        path = Path(spec.origin) if spec.origin else None
    if path is None or not path.is_file():
        return None
    path = path.resolve()
    return None if any(path.is_relative_to(folder) for folder in _installed_folders()) else path


@functools.cache
def _installed_folders() -> list[Path]:
    """Returns where Python, installed packages and this one lie."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [*(sysconfig.get_paths()[kind] for kind in kinds), *site.getsitepackages(), site.getusersitepackages()]
    return [_PACKAGE, *(Path(folder).resolve() for folder in folders)]


def _imported_by(tree: ast.Module, package: str) -> set[str]:
    """Returns the modules that code may import, by statements and by names in `import_module`, and those around them.

    Args:
        tree: of the code.
        package: that relative imports start from; '' for a file that is in none.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names |= {str(node.args[0].value)} if called in ("import_module", "__import__") else set()
    chains = [name.split(".") for name in names if name]
    return {".".join(chain[:count]) for chain in chains for count in range(1, len(chain) + 1)}


def _is_declaration(statement: ast.stmt) -> bool:
    """Returns whether a statement imports, or gives a name to a value that is no function."""
    if any(isinstance(node, ast.Lambda) for node in ast.walk(statement)):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    is_assignment = isinstance(statement, ast.Assign | ast.AnnAssign)
    is_plain = is_assignment and all(isinstance(target, ast.Name) for target in targets)
    return is_plain or isinstance(statement, ast.Import | ast.ImportFrom)


def _assigns(statement: ast.stmt, name: str) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
