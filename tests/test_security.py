"""What a run reads is data: nothing of it is executed, and no name leads out of the folder that it is for."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run

import jaxformer.train
from jaxformer.config import UserError
from jaxformer.experiment.resolution import load_experiment
from jaxformer.train import main

pytestmark = pytest.mark.device_free

REPOSITORY = Path(jaxformer.train.__file__).parents[1]
SOURCES = sorted([*REPOSITORY.glob("jaxformer/**/*.py"), *REPOSITORY.glob("tools/**/*.py")])

# Modules that execute what they read.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
LOADS = {"np.load", "numpy.load", "jnp.load", "jax.numpy.load"}


def faults_of(source: str) -> list[str]:
    """Returns what a module does that could execute data, or hand a text to a shell."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        faults += [f"line {node.lineno}: imports {name}" for name in imported(node) if name in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name.removeprefix("builtins.") in UNSAFE_CALLS:
                faults.append(f"line {node.lineno}: calls {name}")
            if options.get("shell", "False") != "False":
                faults.append(f"line {node.lineno}: {name} with shell={options['shell']}")
            if name in LOADS and (options.get("allow_pickle", "False") != "False" or None in options):
                faults.append(f"line {node.lineno}: {name} that may unpickle")
            if name in LOADS and len(node.args) > 2:
                faults.append(f"line {node.lineno}: {name} with allow_pickle by its place")
    return faults


def imported(node: ast.AST) -> Iterator[str]:
    """Yields the top packages that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_module_executes_data_or_uses_a_shell(path):
    faults = faults_of(path.read_text())
    if path.name == "workers.py":  # What it unpickles, its own processes send through a pipe that has no name.
        faults = [fault for fault in faults if not fault.endswith("imports pickle")]
    assert faults == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import os.path, marshal",
        "def f():\n    import dill as d",
        "eval('1')",
        "builtins.exec(text)",
        "os.system('ls')",
        "x = __import__('os')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=is_text)",
        "yaml.load(file)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, None, True)",
        "np.load(path, **options)",
    ],
)
def test_such_a_module_would_be_found(source):
    assert len(faults_of(source)) == 1


def test_files_are_run_as_python_where_a_user_names_them_only():
    runners = {"run_path", "run_module", "import_module", "exec_module", "load_module", "module_from_spec"}
    runs = {
        (path.relative_to(REPOSITORY).as_posix(), node.attr if isinstance(node, ast.Attribute) else node.id)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, "attr", getattr(node, "id", None)) in runners
    }
    importers = {
        path.name for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if "runpy" in imported(node)
    }
    # The others import parts of this package by their names, and a peer's code from the checkout that a user names.
    assert runs == {
        ("jaxformer/__init__.py", "import_module"),
        ("jaxformer/experiment/files.py", "run_path"),
        ("jaxformer/experiment/patches.py", "import_module"),  # Of this package alone, what a file names.
        ("jaxformer/record.py", "import_module"),  # Of this package's parts alone.
        ("jaxformer/commands/program.py", "import_module"),
        ("tools/docs_site.py", "import_module"),
        ("tools/peer_steps.py", "import_module"),
    }
    assert importers == {"files.py"}


NAMES = [
    "..", ".", "", "/", "../x", "../baseline", "a/../../b", "...py", "../..py", "./...py", "..py", ".py", "-.py",
    "/etc/passwd", "/etc", "~", "~/x.py", "~nobody_at_all/x.py", "a\0b", "a\0b.py", "runs\n.py", "a\nb", "a\nb.py",
    "a b.py", "\u202eyp.x.py", "caf\udce9.py", "baseline/..", "baseline.py/../..", "x" * 300, "x" * 300 + ".py",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "there"])
def test_experiment_names_never_lead_out_of_the_folder_of_runs(name, is_there, tmp_path, monkeypatch):
    """Whether or not a file lies where the name leads, it is refused, or its run is one folder below `runs`."""
    here = tmp_path / "a" / "b" / "c"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    if is_there:
        for path in (here / name, here / f"{name}.py", here / "experiments" / f"{name}.py"):
            if "\0" not in name and len(name) < 200 and tmp_path in Path(os.path.normpath(path)).parents:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_text((REPOSITORY / "experiments" / "baseline.py").read_text())
    workdirs = []
    monkeypatch.setattr(jaxformer.train, "train", lambda experiment, workdir, seed, lineage: workdirs.append(workdir))
    before = sorted(tmp_path.rglob("*"))
    status = main([f"--experiment={name}"])
    assert sorted(tmp_path.rglob("*")) == before
    assert (status, len(workdirs)) in ((2, 0), (0, 1))
    for workdir in workdirs:
        assert Path(os.path.normpath(here / workdir)).parents[1] == here / "runs"
        assert workdir.name == "seed_0" and workdir.parts[1].isprintable() and not workdir.parts[1].startswith(".")


def test_name_from_a_file_is_its_own_and_not_what_the_file_says(tmp_path):
    source = (REPOSITORY / "experiments" / "baseline.py").read_text()
    (tmp_path / "mine.py").write_text(
        source.replace("EXPERIMENT = Experiment(", "EXPERIMENT = Experiment(name='../x',")
    )
    assert load_experiment(str(tmp_path / "mine.py")).name == "mine"
    (tmp_path / "..py").write_text(source)
    with pytest.raises(UserError, match="a run folder is named after it"):
        load_experiment(str(tmp_path / "..py"))


# Each would leave a file behind if it were imported, evaluated or unpickled.
TRAP = "__import__('pathlib').Path('sprung').touch()"
PICKLE = b"cos\nsystem\n(S'touch sprung'\ntR."
ODD_LINES = [
    TRAP,
    '{"step": 1, "train/loss": "' + TRAP + '"}',
    '{"step": 2, "train/loss": null}',
    '{"step": 3, "validation/loss": {"a": 1}}',
    '{"step": 3, "validation/loss": 1' + "0" * 400 + "}",
    '{"step": "one", "train/loss": 1.0}',
    '{"step": 1e400, "train/loss": 1.0}',
    "[" * 100_000,
    "\0\x1b[2J\udce9",
    "{}",
    "null",
]


@pytest.fixture
def trapped_run(experiment_files, uninterrupted, tmp_path):
    """A run without its summary, whose folder is full of what would run if any of it were executed."""
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted("best_fit"), folder)
    (folder / "summary.json").unlink()
    for name in (
        "sitecustomize.py",
        "usercustomize.py",
        "conftest.py",
        "json.py",
        "jax.py",
        "config.py",
        "__init__.py",
    ):
        (folder / name).write_text(TRAP + "\n")
    for name in ("config.pickle", "state.pkl", "checkpoints/12.pkl"):
        (folder / name).write_bytes(PICKLE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"experiment": TRAP, "device": f"{{{TRAP}}}", "code": TRAP, "__class__": TRAP, "versions": {"jax": TRAP}}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write("\n".join(ODD_LINES))
    return folder


def test_resumed_run_executes_nothing_of_its_folder(trapped_run, experiment_files, compiled):
    command = [sys.executable, "-m", "jaxformer.train", *tiny_run.command(experiment_files["best_fit"], trapped_run)]
    options = {"cwd": trapped_run.parent, "env": os.environ | compiled, "timeout": 300}
    ended = subprocess.run(command, capture_output=True, text=True, **options)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "resumed from step 12\n" in ended.stdout
    assert list(trapped_run.parent.rglob("sprung")) == []
    for line in (trapped_run / "metrics.jsonl").read_text().splitlines():
        assert all(isinstance(float(value), float) for value in json.loads(line).values())


@pytest.mark.parametrize("key", ["identity", "digests", "config"])
def test_config_that_looks_like_python_is_refused_and_not_executed(
    key, trapped_run, experiment_files, compiled, monkeypatch, capfd
):
    config = json.loads((trapped_run / "config.json").read_text())
    (trapped_run / "config.json").write_text(json.dumps({**config, key: TRAP}))
    monkeypatch.chdir(trapped_run.parent)
    capfd.readouterr()
    assert main(tiny_run.command(experiment_files["best_fit"], trapped_run)) == 2
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith(f"jaxformer: {trapped_run / 'config.json'}: ")
    assert list(trapped_run.parent.rglob("sprung")) == []
