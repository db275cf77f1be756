"""The code that experiment files run beyond assigning values: functions of their own, and modules beside them.

What a file assigns is recorded and compared as values. Code of its own is recorded by its digest, so that all runs of
an experiment, and those of its parent, are known to have been made with the same. The code of a part, which is a value,
is recorded with that.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from jaxformer.config import require
from jaxformer.host.syntax import dump, parse_code

_PACKAGE = Path(__file__).resolve().parents[1]

# In an experiment file, the name of its value.
VALUE = "EXPERIMENT"

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


class Source(NamedTuple):
    """What a module does, with the local modules that it imports, as it was loaded."""

    path: Path
    digest: str
    """16 hexadecimal digits of the SHA-256 of the syntax, without documentation and the value of an experiment."""
    files: dict[str, bytes]
    """The files, by path below a folder from which the first imports the others."""


def find_source(module: str) -> Source | None:
    """Returns the source of a module that is being loaded; None where there is no file of it."""
    return read_source(Path(getattr(sys.modules.get(module), "__file__", None) or ""), module)


def read_source(path: Path, module: str = "") -> Source | None:
    """Returns the source in a file, which is not run; None where it cannot be read.

    Args:
        path: of the file.
        module: the name by which it is imported; '' for one that is not.
    """
    try:
        path = path.absolute()
        content = path.read_bytes()
        tree = parse_code(content)
    except (OSError, SyntaxError, ValueError):
        return None
    tree.body = [statement for statement in tree.body if not _assigns(statement, VALUE)]
    is_package = path.name == "__init__.py"
    found = _local_modules(_imported_by(tree, module if is_package else module.rpartition(".")[0]))
    found.pop(module, None)
    parts = [dump(tree), *(f"{name}: {_module_digest(found[name])}" for name in sorted(found))]
    files = {path.name: content}
    for name, each in found.items():
        folder = name if each.name == "__init__.py" else name.rpartition(".")[0]
        files[f"{folder.replace('.', '/')}/{each.name}".lstrip("/")] = each.read_bytes()
    return Source(path, _digest("\n".join(parts).encode())[:16], files)


@contextlib.contextmanager
def importing_from_beside(path: Path) -> Iterator[None]:
    """Lets a file import modules of its folder within a block, before others of their names; after it, behind those.

    Raises:
        UserError: this process has loaded another module of the name of one.
    """
    folder, beside = str(path.absolute().parent), _modules_beside(path)
    for name, file in beside.items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        require(
            loaded is None or Path(loaded).resolve() == file.resolve(),
            f"it imports {name} of {file}, and {loaded} is loaded by that name already; give one of them another name",
        )
    try:
        sys.path[:0] = [folder] * bool(beside)
        yield
    finally:
        if beside:
            sys.path.remove(folder)
            sys.path += [folder] * (folder not in sys.path)


def _modules_beside(path: Path) -> dict[str, Path]:
    """Returns the files of the modules that a file imports from its folder, by name."""
    try:
        names = _imported_by(ast.parse(path.read_bytes()), "") - {"jaxformer"} - sys.stdlib_module_names
    except (OSError, SyntaxError, ValueError):  # Which is reported where the file runs.
        return {}
    files = ((name, path.parent / each) for name in names for each in (f"{name}.py", f"{name}/__init__.py"))
    return {name: file for name, file in files if file.is_file()}


def record_own_code(path: Path, assigned: str, parts: Collection[str] = ()) -> None:
    """Adds to what is collected the code of a file that has run, and of the local modules that it imports.

    Modules are found in the code: one of a computed name is not. So it does not matter what this process has loaded.

    Args:
        path: of the file.
        assigned: the name whose assignment is no code, since its value is recorded.
        parts: names of classes whose code is recorded with their values; what only they use is recorded there too.
    """
    found = _collected.get()
    if found is None:
        return
    tree = parse_code(path.read_bytes())
    tree.body = _without_parts(tree.body, parts, assigned)
    found |= {f"module {name}": _module_digest(file) for name, file in _local_modules(_imported_by(tree, "")).items()}
    others = [statement for statement in tree.body if not _assigns(statement, assigned)]
    if not all(map(_is_declaration, others)):
        found[f"experiment {path.stem}"] = _digest("".join(map(dump, others)).encode())


def _local_modules(names: set[str]) -> dict[str, Path]:
    """Returns the files of those modules of some names that are local, and of all that those import locally."""
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        path = _local_file(name)
        if path is None or name in found:
            continue
        found[name] = path
        if path.suffix == ".py":
            tree = parse_code(path.read_bytes())
            waiting += _imported_by(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _module_digest(path: Path) -> str:
    content = path.read_bytes()
    return _digest(dump(parse_code(content)).encode() if path.suffix == ".py" else content)


def _local_file(name: str) -> Path | None:
    """Returns the file of a module, if it has one and belongs neither to Python nor to an installed package.

    The parts that come with jaxformer are local as well: each run records the code of those that it uses.
    """
    top, *rest = name.split(".")
    is_part = name.startswith("jaxformer.parts.")  # Which the digest of the package's code leaves out.
    if top in sys.stdlib_module_names or (top == "jaxformer" and not is_part):
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
    return path if is_part or not any(path.is_relative_to(folder) for folder in _installed_folders()) else None


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


def _without_parts(body: list[ast.stmt], parts: Collection[str], assigned: str) -> list[ast.stmt]:
    """Returns the statements of a file without those that bind the names of parts, or what is used by those alone."""
    own = [one for one in body if _bound(one) & {*parts}]

    def used_by(roots: list[ast.stmt], others: list[ast.stmt]) -> list[ast.stmt]:
        found = [*roots]
        for one in found:  # Which grows.
            names = {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
            found += [each for each in others if _bound(each) & names and each not in found]
        return found

    theirs = used_by(own, body)
    rest = [one for one in body if one not in own]
    kept = used_by([one for one in rest if one not in theirs or _assigns(one, assigned)], rest)
    return [one for one in body if one in kept]


def _bound(statement: ast.stmt) -> set[str]:
    """Returns the names that a statement defines or imports."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


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
