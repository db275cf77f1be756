"""The folder of a run: what identifies it, and files that are whole or absent."""

import dataclasses
import hashlib
import importlib.metadata
import json
import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxformer.attention import Implementation
from jaxformer.config import UserError, differences, require, to_dict
from jaxformer.experiment import Experiment, science
from jaxformer.step import compute_dtype


def check_folder(workdir: Path, ours: dict, key: str) -> None:
    """Raises `UserError` if a run folder was written with other values under a key of its `config.json`."""
    require(not workdir.exists() or workdir.is_dir(), f"run folder {workdir}: not a folder; choose another --workdir")
    stored = read_json(workdir / "config.json")
    if stored is None:
        return
    check_same(f"run folder {workdir} belongs", ours, stored.get(key, {}))


def check_same(belongs: str, ours: dict, theirs: dict) -> None:
    """Raises `UserError` if two records of what identifies a run differ, with the keys in which they do."""
    differing = differences(json.loads(json.dumps(ours)), theirs)
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    require(
        not differing,
        f"{belongs} to another configuration ({'; '.join(differing[:5])}{more}); "
        "choose another --workdir, or delete it",
    )


def identify(experiment: Experiment, seed: int) -> dict:
    """Returns what a run learns from, by dotted path: its science, its seed and the precision on this device."""
    precision = jnp.dtype(compute_dtype(experiment.training)).name
    return {**science(experiment), "training.compute_dtype": precision, "seed": seed}


def make_folder(workdir: Path) -> None:
    """Creates a run folder unless it exists; raises `UserError` where it cannot be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run folder {workdir}: {error.strerror}; choose another --workdir") from error


def run_record(experiment: Experiment, identity: dict, digests: dict[str, str], attention: Implementation) -> dict:
    """Returns what `config.json` holds: the configuration and all that it was run with."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "sentencepiece")
    return {
        "experiment": experiment.name,
        "seed": identity["seed"],
        "config": to_dict(experiment),
        "identity": identity,
        "digests": digests,
        "code": code,
        "versions": {
            "python": sys.version.split()[0],
            **{p: importlib.metadata.version(p) for p in ("jaxformer", *packages)},
        },
        "attention": dataclasses.asdict(attention),
        "device": jax.devices()[0].device_kind,
    }


def peak_memory() -> int:
    """Returns the largest memory of this process, bytes: the device's where it keeps count, else the host's."""
    on_device = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return on_device.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
