"""The folder of a run: what identifies it, and files that are whole or absent."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import jax

from jaxformer.config import UserError, differences, require, to_dict
from jaxformer.experiment import Experiment, science


def check_folder(workdir: Path, ours: dict, key: str) -> None:
    """Raises `UserError` if a run folder was written with other values under a key of its `config.json`."""
    require(not workdir.exists() or workdir.is_dir(), f"run folder {workdir}: not a folder; choose another --workdir")
    stored = read_json(workdir / "config.json")
    if stored is None:
        return
    differing = differences(json.loads(json.dumps(ours)), stored[key])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    require(
        not differing,
        f"run folder {workdir} belongs to another configuration ({'; '.join(differing[:5])}{more}); "
        "choose another --workdir, or delete it",
    )


def make_folder(workdir: Path) -> None:
    """Creates a run folder unless it exists; raises `UserError` where it cannot be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run folder {workdir}: {error.strerror}; choose another --workdir") from error


def run_record(experiment: Experiment, seed: int, digests: dict[str, str]) -> dict:
    """Returns what `config.json` holds: the configuration and all that it was run with."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "sentencepiece")
    return {
        "experiment": experiment.name,
        "seed": seed,
        "config": to_dict(experiment),
        "science": {**science(experiment), "seed": seed},
        "digests": digests,
        "code": code,
        "versions": {
            "python": sys.version.split()[0],
            **{p: importlib.metadata.version(p) for p in ("jaxformer", *packages)},
        },
        "device": jax.devices()[0].device_kind,
    }


def read_json(path: Path) -> dict | None:
    """Returns what a JSON file holds, or None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}); move the run folder away or restore the file") from error


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file that is whole or absent."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    unfinished.rename(path)
