"""What `on_gpu` takes along to a machine without a network: packages as wheels, a corpus, and its token shards."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What its tests need beside the library.
_TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis")
# Of the machine: they belong to its driver and device.
_OF_THE_DEVICE = re.compile(r"(jax|jaxlib|jax-cuda.*|nvidia-.*|torch|triton)$")
CORPUS, CACHE, WHEELS = "corpus.jsonl", "cache", "wheels"


def prepare(folder: Path, have: Path | None) -> int:
    """Lays all in a folder; needs the network. Returns the exit status.

    Args:
        have: a file of the packages that the machine has, a line each: 'NAME' or 'NAME==VERSION'.
    """
    from jaxformer.data.corpus import CorpusConfig, load_documents

    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": document.text}) for document in load_documents(CorpusConfig(kind="pystdlib"))]
    (folder / CORPUS).write_text("\n".join([*lines, ""]), encoding="utf-8")
    command = [sys.executable, "-m", "jaxformer", "prepare", "--experiment=baseline_27m", *corpus_options(folder)]
    variables = {"JAXFORMER_CACHE": str(folder / CACHE), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    there = have.read_text(encoding="utf-8").splitlines() if have else []
    names = needed_packages({normal_name(re.split(r"[=<>@ ]", line)[0]) for line in there if line.strip()})
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(names)]
    wheels = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / WHEELS)]
    subprocess.run([*wheels, *pinned, str(ROOT)], check=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.0f} MB, {len(pinned)} packages beside jaxformer")
    return 0


def needed_packages(there: Collection[str]) -> set[str]:
    """Returns the packages that jaxformer and its tests need of those installed here, but for those that are there."""
    from packaging.requirements import Requirement

    needed, left = set(), ["jaxformer", *_TEST_PACKAGES]
    while left:
        name = normal_name(left.pop())
        if name in needed or name in there or _OF_THE_DEVICE.match(name):
            continue
        needed.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
        left += [one.name for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    return needed - {"jaxformer"}


def normal_name(package: str) -> str:
    """Returns the one name of a package that may be written in several ways (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def install(prepared: Path, site: Path) -> None:
    """Installs the packages of a prepared folder, if there are any, in a folder for `PYTHONPATH`, once.

    Raises:
        subprocess.CalledProcessError: pip cannot.
    """
    wheels = sorted((prepared / WHEELS).glob("*.whl"))
    if not wheels or site.exists():
        return
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    unfinished = site.with_suffix(".unfinished")
    command = [*pip, "--upgrade", f"--target={unfinished}", *map(str, wheels)]
    subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    unfinished.rename(site)


def corpus_options(prepared: Path) -> list[str]:
    """Returns the options of a run's corpus: the prepared one, or else the same texts of the Python at hand."""
    is_there = (prepared / CORPUS).exists()
    values = {"kind": "jsonl", "path": prepared / CORPUS} if is_there else {"kind": "pystdlib", "path": ""}
    values |= {"key_field": "", "tokens": 0, "validation_share": 0.02, "licence": "PSF"}
    return [f"--corpus.{name}={value}" for name, value in values.items()]
