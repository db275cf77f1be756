"""The directions in which packages and modules import each other, proved from the code's own imports."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer
from jaxformer.layers import ACTIVATIONS

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

ROOT = Path(jaxformer.__file__).parents[1]
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("jaxformer/**/*.py"))
}
# What each package, or module of the root, imports from; and so from all that follows from there.
DIRECTIONS = {
    "commands": "report train",
    "train": "loop plan run",
    "report": "ablation statistics tracking",
    "ablation": "run plan jobs statistics",
    "loop": "run evaluation checkpoint",
    "run": "experiment huggingface",
    "plan": "run",
    "experiment": "evaluation checkpoint optimizer flops tracking",
    "evaluation": "step",
    "checkpoint": "step",
    "huggingface": "model data",
    "step": "loss skip_steps data",
    "skip_steps": "config",
    "parts": "optimizer loss",
    "loss": "model",
    "loss_kernels": "attention",
    "optimizer": "model",
    "flops": "model",
    "model": "layers loss_kernels table",
    "layers": "attention record",
    "attention": "devices",
    "devices": "host",
    "data": "record",
    "jobs": "host",
    "tracking": "host",
    "record": "host",
    "host": "config",
    "statistics": "",
    "config": "",
    "table": "",
}
# Those that never load jax: grain, which `data.packing` and nothing else of them needs, does so of its own accord.
WITHOUT_JAX = [name for name in PATHS if name.split(".")[1:2] in (["host"], ["data"], ["jobs"])]


def imports_of(module: str) -> set[str]:
    """Returns the dotted names that a module imports, wherever in its code.

    `from a import b` gives a.b where that is a module, else a.
    """
    names = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import, which this test does not follow"
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in PATHS
                names.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return names


def room(module: str) -> str:
    """Returns the package that a module lies in, or the module's own name where it lies at the root."""
    return module.split(".")[1]


def reachable(name: str) -> set[str]:
    """Returns all packages that one may import from, itself among them."""
    return {name}.union(*(reachable(each) for each in DIRECTIONS[name].split()))


def test_every_package_has_its_direction_and_none_leads_back():
    rooms = {room(module) for module in PATHS if module != "jaxformer"} - {"__main__"}
    assert set(DIRECTIONS) == rooms
    assert len([*graphlib.TopologicalSorter({name: to.split() for name, to in DIRECTIONS.items()}).static_order()])


@pytest.mark.parametrize("module", [name for name in PATHS if name not in ("jaxformer", "jaxformer.__main__")])
def test_a_module_imports_only_in_the_direction_of_its_package(module):
    imported = {room(name) for name in imports_of(module) if name.startswith("jaxformer.")}
    imported.discard("__main__")  # To which a module that is run as a program hands over.
    assert imported <= reachable(room(module)), "see DIRECTIONS: which package should this import come from?"


def test_no_module_imports_itself_by_way_of_others():
    order = graphlib.TopologicalSorter({module: imports_of(module) & PATHS.keys() for module in PATHS})
    assert set(order.static_order()) >= PATHS.keys() - {"jaxformer"}


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_host_data_and_jobs_import_no_jax(module):
    top_level = {name.split(".")[0] for name in imports_of(module)}
    assert not top_level & {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}


def test_host_data_and_jobs_do_not_load_jax_by_way_of_others():
    modules = ", ".join(name for name in WITHOUT_JAX if name != "jaxformer.data.packing")
    code = f"import sys, {modules}; print(*sorted({{'jax', 'tensorflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [name for name in PATHS if name.startswith("jaxformer.statistics")])
def test_statistics_import_numpy_and_scipy_only(module):
    others = {name for name in imports_of(module) if not name.startswith("jaxformer.statistics")}
    assert {name.split(".")[0] for name in others} <= {"numpy", "scipy", *sys.stdlib_module_names}


def test_nothing_below_ablation_imports_ablation_or_report():
    below = [name for name in PATHS if name != "jaxformer" and room(name) in reachable("ablation") - {"ablation"}]
    assert len(below) > 60
    for name in below:
        assert not {"ablation", "report"} & {room(each) for each in imports_of(name) if each.startswith("jaxformer.")}


@pytest.mark.parametrize("module", PATHS)
def test_the_library_imports_no_experiment_no_tool_and_no_test(module):
    assert not {name.split(".")[0] for name in imports_of(module)} & {"experiments", "tools", "tests"}


# Options of the architecture, as the model and its configuration name them, and what they take.
OPTIONS = {
    "activation", "norm", "norm_epsilon", "rope_base", "learned_positions", "qk_norm", "tied_embeddings",
    "feed_forward", "residual", "window_pattern", *ACTIVATIONS, "rmsnorm", "layernorm",
}  # fmt: skip


def test_the_architecture_is_written_once():
    """No module but the model reads an option of it, or knows the name of one; Hugging Face's translate them."""
    for module, path in PATHS.items():
        if module in ("jaxformer.model", "jaxformer.layers") or module.startswith(
            ("jaxformer.huggingface.", "jaxformer.parts.")
        ):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            reads = isinstance(node, ast.Attribute) and _is_model_config(node.value) and node.attr in OPTIONS
            names = isinstance(node, ast.Constant) and node.value in OPTIONS - {"feed_forward"}
            assert not reads and not names, f"{module}, line {node.lineno}: {ast.unparse(node)} belongs to model.py"


def _is_model_config(node: ast.expr) -> bool:
    """Returns whether an expression is called as configurations of models are: `model`, `experiment.model.config`."""
    return getattr(node, "attr", getattr(node, "id", "")) in ("model", "config", "here", "there")


@pytest.mark.parametrize("path", [*PATHS.values(), *sorted(ROOT.glob("tools/*.py"))], ids=lambda path: path.stem)
def test_no_function_is_longer_than_60_lines(path):
    functions = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []


def test_the_public_face_is_lazy_and_whole():
    code = "import sys, jaxformer; print('jax' in sys.modules); from jaxformer import *; print(Study, train_step)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n<class 'jaxformer.ablation.study.Study'>")
    for name in jaxformer.__all__:
        assert getattr(jaxformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxformer.nothing  # noqa: B018


def test_the_docstring_lists_every_package_and_module_of_the_root():
    listed = [line.split()[0] for line in (jaxformer.__doc__ or "").splitlines() if line.startswith("    ")]
    assert sorted(listed) == sorted(DIRECTIONS)
    packages = [name for name in listed if (ROOT / "jaxformer" / name).is_dir()]
    for i, name in enumerate(packages):
        assert not reachable(name) & set(packages[i + 1 :]), f"{name} imports from what is listed below it"
