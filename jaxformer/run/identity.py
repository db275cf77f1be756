"""What identifies a run and its evaluations, and errors for folders and files of another."""

import ast
import functools
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.config import UserError, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.options import recorded_options
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.host.files import read_json
from jaxformer.host.syntax import dump, parse_code, statements
from jaxformer.record import check_same
from jaxformer.step import compute_dtype

# The configuration's file in a run folder; and advice for a damaged file.
CONFIG = "config.json"
ADVICE = "remove it: the same command writes it again, and checks the checkpoints"


def read_config(workdir: Path) -> dict | None:
    """Returns the `config.json` of a run folder, or None where there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_json(workdir / CONFIG, ADVICE)


def identify(experiment: Experiment, seed: int, initial_params: str = "") -> dict:
    """Returns what decides what a run learns, by dotted path: its science, its seed and the precision on this device.

    Args:
        initial_params: digest of the parameters that `init_from` names, in place of their path.
    """
    if bool(experiment.init_from) != bool(initial_params):
        raise ValueError("the digest of the parameters that init_from names, and of no others, identifies a run")
    precision = jnp.dtype(compute_dtype(experiment.training)).name
    own = {"init_from": initial_params, "training.compute_dtype": precision, "seed": seed}
    return {**science(experiment), **own}


def check_folder(workdir: Path, ours: dict, key: str) -> None:
    """Raises `UserError` if a run folder was written with other values under a key of its `config.json`."""
    try:
        is_possible = workdir.is_dir() or not workdir.exists()
    except OSError as error:
        raise UserError(f"run folder {workdir}: {error.strerror}; choose another --workdir") from error
    require(is_possible, f"run folder {workdir}: not a folder; choose another --workdir")
    stored = read_config(workdir)
    if stored is None:
        return
    theirs = stored.get(key)
    if not isinstance(theirs, dict):
        raise UserError(f"{workdir / CONFIG}: it has no {key}; move the run folder elsewhere")
    check_same(f"run folder {workdir} belongs", ours, theirs)


def check_tasks(workdir: Path, ours: dict[str, str]) -> None:
    """Raises `UserError` if a run folder has scores of a task on other data, which would be confused with these."""
    theirs = (read_config(workdir) or {}).get("tasks", {})
    changed = [name for name, digest in ours.items() if theirs.get(name, digest) != digest]
    require(
        not changed,
        f"run folder {workdir}: the data of {', '.join(changed)} have changed since it was begun, or your code for "
        "them; restore them, leave the task out with --evaluation.tasks, or choose another --workdir",
    )


def identify_evaluation(experiment: Experiment, seed: int, step: int, tokenizer: Tokenizer) -> dict:
    """Returns what an evaluation's results depend on beside its data, as its files record it."""
    return {
        "experiment": experiment.name,
        "seed": seed,
        "step": step,
        "tokenizer": tokenizer.digest,
        "row_length": experiment.packing.row_length,
        "compute_dtype": jnp.dtype(compute_dtype(experiment.training)).name,
        **evaluated_with(),
    }


def evaluated_with() -> dict:
    """Returns the code and versions of an evaluation made now, as its files record them."""
    return _made_with(evaluation_code_digest())


def timed_with() -> dict:
    """Returns the device, code, versions and options that the time of a step depends on, beside its configuration."""
    return _made_with(code_digest())


def _made_with(code: str) -> dict:
    return {
        "device": jax.devices()[0].device_kind,
        "code": code,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "environment": recorded_options(),
    }


_ROOT = Path(__file__).parents[2]


# What decides how a model is evaluated, but not what it learns.
_EVALUATION = "jaxformer.evaluation"


@functools.cache  # The running code is that of the start, even if files change.
def code_digest() -> str:
    """Returns the hexadecimal SHA-256 of the code that decides what a run learns: the loop, and all for data and model.

    It is of the syntax without documentation, so that comments, docstrings, reports and commands may change between
    compared runs. Evaluation code has its own digest. Tasks may decide which documents are trained on; the digests of
    the data cover that.
    """
    return _digest({"jaxformer.loop"} | _imported_by("jaxformer.run.inputs", without=_EVALUATION))


@functools.cache
def evaluation_code_digest() -> str:
    """Returns the same of the code that decides an evaluation's numbers: validation, tasks and the model."""
    return _digest(_imported_by(f"{_EVALUATION}.validation") | _imported_by(f"{_EVALUATION}.task_scores"))


def read_sources() -> None:
    """Reads the code and the state of git for the digests now, while the code is imported."""
    code_digest()
    evaluation_code_digest()
    git_state()


def _digest(modules: set[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}: {_read_code(_source(name)).syntax}\n".encode())
    return digest.hexdigest()


def _imported_by(name: str, without: str = "-") -> set[str]:
    """Returns a module of this package and all that it imports from it, directly or not.

    Args:
        without: a package whose modules are left out, with what only they import.
    """
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen or f"{name}.".startswith(f"{without}."):
            continue
        seen.add(name)
        waiting += _read_code(_source(name)).imported
    return seen


class _Code(NamedTuple):
    """A module's syntax without documentation, and the modules of this package that it imports."""

    syntax: str
    imported: set[str]


@functools.cache  # The digests of training and of evaluation have many modules in common.
def _read_code(source: bytes) -> _Code:
    tree, imported = parse_code(source), set()
    for node in statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxformer":
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {part for part in parts if _path(part).is_file()}
            imported |= modules | ({node.module} if len(modules) < len(parts) else set())
    return _Code(dump(tree), imported)


def _path(name: str) -> Path:
    """Returns the file of a module or package."""
    path = _ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _source(name: str) -> bytes:
    return _path(name).read_bytes()


@functools.cache  # As of the code that runs.
def git_state() -> dict[str, str | None] | None:
    """Returns the git commit that the package was started from, and the digest of uncommitted changes.

    `changes` is the hexadecimal SHA-256 of the package's diff from the commit, None without one. The whole is None
    where the package is not in a git checkout.
    """
    folder = _ROOT / "jaxformer"
    # Within a git hook, GIT_DIR and similar name the hook's repository; GIT_CONFIG_... may admit this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}

    def git(*arguments: str) -> bytes:
        # A checkout of another user, as in a container, is trusted: its code runs already.
        command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # An installed package may lie in a folder that git ignores.
        commit = git("rev-parse", "HEAD").decode().strip()
        new = git("ls-files", "--others", "--exclude-standard", "-z", ".").split(b"\0")[:-1]
        changes = git("diff", "HEAD", "--no-ext-diff", "--no-color", ".")
        changes += b"".join(name + b"\n" + (folder / os.fsdecode(name)).read_bytes() for name in new)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changes": hashlib.sha256(changes).hexdigest() if changes else None}
