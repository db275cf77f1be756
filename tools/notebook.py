"""Executes the notebook of the documentation in an empty folder, with the extra `docs`.

    python tools/notebook.py [--write]

It fails where a cell does, and where one prints something else than is stored, but for its numbers; a cell whose
metadata have `not_compared`, a reason, is left out of that. With --write the notebook is stored with what the cells
print and draw, and with a digest of their sources, by which a test tells that outputs are older than a cell.
"""

import argparse
import difflib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorials" / "notebook.ipynb"

# In the metadata of the notebook, the digest of what was executed.
DIGEST = "executed"


def source_digest(notebook: Mapping) -> str:
    """Returns the digest of the sources of a notebook's cells of code."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def text_of(cell: Mapping) -> str:
    """Returns what a cell of code has printed, in which all numbers are 0; nothing for one that is not compared."""
    if "not_compared" in cell["metadata"]:
        return ""
    text = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    return re.sub(r"[-+]?\d[\d,.]*", "0", re.sub(" +", " ", text))


def main(arguments: list[str]) -> int:
    """Executes the notebook; returns the exit status."""
    import nbclient  # Tests import this module without the extra.
    import nbformat
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store what the cells print and draw")
    options = parser.parse_args(arguments)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [text_of(cell) for cell in cells]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # When it began and ended.
    if options.write:
        notebook.metadata[DIGEST] = source_digest(notebook)
        nbformat.write(notebook, NOTEBOOK)
        return 0
    for cell, before in zip(cells, stored, strict=True):
        if (now := text_of(cell)) != before:
            print(*difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm=""), sep="\n", file=sys.stderr)
            print(f"cell {cell.execution_count} prints another text: python tools/notebook.py --write", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
