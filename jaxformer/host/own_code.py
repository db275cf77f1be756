"""Code in experiment files that does more than assign values: their own functions, and modules beside them.

Assigned values are recorded and compared. A file's own code is recorded by its digest, to check that all runs of an
experiment, and of its parent, were made with the same. The code of a part, which is a value, is recorded with it.
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

# Collects the code of files that run now; None if not needed.
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
    """The source of a loaded module, with the local modules that it imports."""

    path: Path
    digest: str
    """16 hexadecimal digits of the SHA-256 of the syntax, without documentation and the experiment's value."""
    files: dict[str, bytes]
    """The files, by path below a folder from which the first can import the others."""


def find_source(module: str) -> Source | None:
    """Returns the source of a module that is being loaded; None if it has no file."""
    return read_source(Path(getattr(sys.modules.get(module), "__file__", None) or ""), module)


def read_source(path: Path, module: str = "") -> Source | None:
    """Returns the source in a file without running it; None if it cannot be read.

    Args:
        path: of the file.
        module: its name for imports; '' for one that is not imported.
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
    """Lets a file import modules of its folder: within the block before others with their names, later after them.

    Raises:
        UserError: this process has loaded another module with one of their names.
    """
    folder, beside = str(path.absolute().parent), _modules_beside(path)
    for name, file in beside.items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        require(
            loaded is None or Path(loaded).resolve() == file.resolve(),
            f"it imports {name} of {file}, but {loaded} is already loaded by that name; give one of them another name",
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
    except (OSError, SyntaxError, ValueError):  # Reported when the file runs.
        return {}
    files = ((name, path.parent / each) for name in names for each in (f"{name}.py", f"{name}/__init__.py"))
    return {name: file for name, file in files if file.is_file()}


def record_own_code(path: Path, assigned: str, parts: Collection[str] = ()) -> None:
    """Collects the code of a file that has run, and of the local modules that it imports.

    Modules are found in the code, except those with a computed name, independent of what this process has loaded.

    Args:
        path: of the file.
        assigned: the name whose assignment does not count, since its value is recorded.
        parts: names of classes whose code is recorded with their values, as is the code that only they use.
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
    """Returns the files of the local ones among some modules, and of all their local imports."""
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

    The parts that come with jaxformer count as local: each run records the code of those that it uses.
    """
    top, *rest = name.split(".")
    is_part = name.startswith("jaxformer.parts.")  # The digest of the package's code leaves these out.
    if top in sys.stdlib_module_names or (top == "jaxformer" and not is_part):
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if rest:  # Found without importing its parent packages.
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
    """Returns the folders of Python, installed packages and this one."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [*(sysconfig.get_paths()[kind] for kind in kinds), *site.getsitepackages(), site.getusersitepackages()]
    return [_PACKAGE, *(Path(folder).resolve() for folder in folders)]


def _imported_by(tree: ast.Module, package: str) -> set[str]:
    """Returns the modules that code may import, by statements and by `import_module`, and their parent packages.

    Args:
        tree: of the code.
        package: that relative imports start from; '' for a file in none.
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
    """Returns the statements of a file, without those that define parts or names used only by parts."""
    own = [one for one in body if _bound(one) & {*parts}]

    def used_by(roots: list[ast.stmt], others: list[ast.stmt]) -> list[ast.stmt]:
        found = [*roots]
        for one in found:  # The list grows.
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
    """Returns whether a statement imports, or assigns a value that is no function."""
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
