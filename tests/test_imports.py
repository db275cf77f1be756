"""The order of the modules, proved from the code's own imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer

PACKAGE = Path(jaxformer.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
LISTED = re.findall(r"^    (\w+)  +\S", jaxformer.__doc__, re.MULTILINE)
HOST_SIDE = (
    "config",
    "screen",
    "files",
    "lock",
    "cache",
    "remote",
    "storage",
    "records",
    "documents",
    "corpus",
    "tokenizer",
    "shards",
    "units",
    "selection",
    "shard_files",
    "preparation",
    "row_fitting",
    "packing",
)


def imports_of(module: str) -> set[str]:
    """Returns the dotted names that a module imports, wherever in its code; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which this test does not follow"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_is_listed_once_in_the_package_docstring():
    assert sorted(LISTED) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_listed_above_it(module):
    ours = {name.split(".")[1] for name in imports_of(module) if name.startswith("jaxformer.")}
    below = (ours & set(MODULES)) - set(LISTED[: LISTED.index(module)])
    assert not below, f"{module} imports {sorted(below)}, listed at or below it in jaxformer/__init__.py"


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_the_library_imports_no_experiment_no_tool_and_no_test(module):
    assert not {name.split(".")[0] for name in imports_of(module)} & {"experiments", "tools", "tests"}


@pytest.mark.parametrize("module", HOST_SIDE)
def test_a_host_side_module_does_not_import_jax(module):
    top_level = {name.split(".")[0] for name in imports_of(module)}
    assert not top_level & {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}


def test_preparing_data_does_not_load_jax_nor_tensorflow():
    # Up to `preparation`: `packing` loads Grain, which loads jax of its own accord.
    code = "import sys, jaxformer.preparation; print(*sorted({'jax', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
