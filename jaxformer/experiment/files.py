"""Experiment files: found by name or path, and run for the one value that each assigns."""

import ast
import contextlib
import re
import runpy
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxformer.config import UserError, did_you_mean, require
from jaxformer.experiment.patches import import_what_it_may_patch, only_declares, refuse_patches
from jaxformer.host.own_code import VALUE, importing_from_beside, record_own_code
from jaxformer.host.paths import expanded
from jaxformer.record import source_of


def list_experiments() -> list[str]:
    """Returns the names of the known experiments."""
    return _names(_folders())


def is_path(name_or_path: str) -> bool:
    """Returns whether a text is the path of a file, and no name."""
    return name_or_path.endswith(".py") or "/" in name_or_path


def find_experiment(name_or_path: str, *, folder: Path | None = None) -> Path:
    """Returns the file of an experiment, by path or name.

    A name is searched in `folder`, in `experiments/` of the working directory, then among those that came with the
    package.

    Raises:
        UserError: there is none; with the nearest known name.
    """
    return _find("experiment", name_or_path, [*([folder] if folder else []), *_folders()])


def comes_with_package(name: str) -> bool:
    """Returns whether an experiment of a name came with the package; a user's may have the same name."""
    return _is_file(_folders()[-1] / f"{name}.py")


def find_study(name_or_path: str) -> Path:
    """Returns the file of a study: by path, or by name in `studies/` of the experiment folders.

    Raises:
        UserError: there is none; with the nearest known name.
    """
    return _find("study", name_or_path, [folder / "studies" for folder in _folders()])


def _find(what: str, name_or_path: str, folders: list[Path]) -> Path:
    if is_path(name_or_path):
        path = expanded(name_or_path)
        require(_is_file(path), f"{what} file {path}: no such file")
        return path
    for folder in folders:
        path = folder / f"{name_or_path}.py"
        if _is_file(path):
            return path
    known = _names(folders)
    hint = did_you_mean(name_or_path, known) or f"; known here: {', '.join(known) or 'none'}"
    raise UserError(f"unknown {what} {name_or_path!r}{hint}")


def _names(folders: list[Path]) -> list[str]:
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("[!_]*.py")})


def run_experiment_file(path: Path, kinds: tuple[type, ...]) -> Any:
    """Returns what a file assigns to `EXPERIMENT`.

    Raises:
        UserError: it fails (with the line), or assigns nothing of these kinds; or a folder cannot be named after it.
    """
    value = run_file(path, VALUE, kinds, "experiment")
    check_name(path.stem, f"experiment file {path}")
    return value


def check_name(name: str, what: str) -> None:
    """Raises `UserError` unless a run folder can be named so.

    Args:
        what: the thing with the name, for the error.
    """
    allowed = "a run folder is named after it; use letters, digits, '_', '-' and '.' only"
    require(re.fullmatch(r"\w[\w.-]*", name) is not None, f"{what}: {allowed}")


def run_file(path: Path, name: str, kinds: tuple[type, ...], what: str) -> Any:
    """Returns what a Python file assigns to a name.

    Args:
        kinds: that it may assign.
        what: kind of file, for errors.

    Raises:
        UserError: it fails (with the line), assigns nothing of these kinds, or changes the package in place.
    """
    values = _run(path, what)
    value = values.get(name)
    wanted = " or ".join(kind.__name__ for kind in kinds)
    article = "an" if wanted[0] in "AEIOU" else "a"
    require(isinstance(value, kinds), f"{what} {path}: it must assign {article} {wanted} to {name}")
    record_own_code(path, name, [each for each, kind in values.items() if source_of(kind)])
    return value


def load_parts(path: Path) -> None:
    """Runs a Python file for the classes of parts in it, or in its imports.

    Raises:
        UserError: there is none, or it fails.
    """
    require(_is_file(path), f"file {path}: no such file")
    _run(path, "file")


def _run(path: Path, what: str) -> dict[str, Any]:
    """Returns the names that a file assigns; raises as `run_file` does."""
    module, watched = ModuleType(f"{what} {path.stem}"), refuse_patches("it")
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # Reported when the file runs.
        tree = ast.parse(path.read_bytes())
        import_what_it_may_patch(tree)
        watched = contextlib.nullcontext() if only_declares(tree) else watched
    try:
        with watched, importing_from_beside(path):
            vars(module).update(runpy.run_path(str(path), run_name=module.__name__))
    except UserError as error:
        raise UserError(f"{what} {path}: {error}") from error
    except (Exception, SystemExit) as error:
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (frames[-1] if frames else "?")
        moved = isinstance(error, ImportError) and (error.name or "").startswith("jaxformer.")
        public = "jaxformer" if what == "study" else "jaxformer.experiment"
        hint = f"; import what the file needs from {public}" if moved else ""
        raise UserError(f"{what} {path}, line {line}: {type(error).__name__}: {error}{hint}") from error
    sys.modules[module.__name__] = module  # Where Python resolves the annotations of its classes.
    return vars(module)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # The name is too long, or the folder not accessible.
        return False


def _folders() -> list[Path]:
    """Returns where names are searched: the user's own folder, then the installed one or the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "experiments"
    return [Path("experiments"), installed if installed.is_dir() else package.parent / "experiments"]
