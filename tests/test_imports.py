"""The order of the modules, proved from the code's own imports."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer

ROOT = Path(jaxformer.__file__).parents[1]
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("jaxformer/**/*.py"))
}


def imports_of(module: str) -> set[str]:
    """Returns the dotted names that a module imports, wherever in its code; `from a import b` gives a.b where that is
    a module, else a."""
    names = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import, which this test does not follow"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= parts & PATHS.keys() or {node.module}
    return names


def test_no_module_imports_itself_by_way_of_others():
    order = graphlib.TopologicalSorter({module: imports_of(module) & PATHS.keys() for module in PATHS})
    assert set(order.static_order()) >= PATHS.keys() - {"jaxformer"}


@pytest.mark.parametrize("module", PATHS)
def test_the_library_imports_no_experiment_no_tool_and_no_test(module):
    assert not {name.split(".")[0] for name in imports_of(module)} & {"experiments", "tools", "tests"}


def test_preparing_data_does_not_load_jax_nor_tensorflow():
    # Up to `preparation`: `packing` loads Grain, which loads jax of its own accord.
    code = "import sys, jaxformer.data.preparation; print(*sorted({'jax', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
