"""The installed program: it names its commands, runs one by its name, and ends as that does."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from copies import Copies

import jaxformer
from jaxformer.commands.program import COMMANDS, ENVIRONMENT, _load, describe, main
from jaxformer.config import TrainingFailure, UserError
from jaxformer.host.command import Parser, command
from jaxformer.host.signals import Stopped

pytestmark = [pytest.mark.device_free, pytest.mark.usefixtures("default_signals")]


def test_help_fits_a_terminal_and_explains_every_command(capsys):
    assert main(["--help"]) == main([]) == main(["help"]) == 0
    printed = capsys.readouterr().out
    assert printed == 3 * (describe() + "\n")
    names = ("train", "plan", "prepare", "evaluate", "generate", "tune", "compare", "ablate", "report")
    assert COMMANDS[:9] == names
    assert {"replay-step", "harness"} < set(COMMANDS) and len(set(COMMANDS)) == len(COMMANDS)
    assert max(map(len, describe().splitlines())) <= 79
    for name in COMMANDS:
        (line,) = [line for line in describe().splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 2


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxformer {jaxformer.__version__}\n"


def test_a_misspelt_command_is_one_line_with_the_nearest(capsys):
    assert main(["trian", "--experiment=baseline"]) == 2
    assert (
        capsys.readouterr().err == "jaxformer: unknown command 'trian'; did you mean train?; see `jaxformer --help`\n"
    )


@pytest.fixture(scope="module")
def copies():
    with Copies(os.environ | {"COLUMNS": "80"}, "jaxformer.commands.report") as loaded:
        yield loaded


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "harness"])
def test_every_command_explains_itself_and_refuses_an_unknown_option_in_one_line(name, copies, tmp_path):
    status, printed, errors = copies.run([name, "--help"], tmp_path, {})
    assert (status, errors) == (0, "") and printed.startswith(f"usage: jaxformer {name} ") and "--help" in printed
    assert max(map(len, printed.splitlines())) <= 79
    status, printed, errors = copies.run([name, "--no_such_option=1"], tmp_path, {})
    assert (status, printed) == (2, "") and errors.startswith("jaxformer: ") and errors.count("\n") == 1
    assert f"see `jaxformer {name} --help`" in errors


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness explains itself")
def test_the_harness_command_is_explained_where_the_harness_is_not_installed(capsys):
    assert main(["harness", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: jaxformer harness ") and "jaxformer[lm-eval]" in printed
    assert max(map(len, printed.splitlines())) <= 79
    assert main(["harness", "run"]) == 2
    assert "pip install 'jaxformer[lm-eval]'" in capsys.readouterr().err


def test_training_as_a_module_explains_itself_as_such():
    done = subprocess.run([sys.executable, "-m", "jaxformer.train", "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m jaxformer.train ")


def test_only_the_program_sets_the_environment_of_a_command():
    names = {name for variables in ENVIRONMENT.values() for name in variables}
    modules = ", ".join(f"jaxformer.commands.{name.replace('-', '_')}" for name in COMMANDS)
    code = f"""
import os

def print_what_was_set():
    print(*(f"{{name}}={{os.environ.pop(name)}}" for name in {sorted(names)} if name in os.environ))

import {modules}
print_what_was_set()
from jaxformer.commands.program import _load
for name in ("report", "ablate"):
    _load(name)
    print_what_was_set()
os.environ["JAX_PLATFORMS"] = "cuda"
_load("report")
print_what_was_set()
"""
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    expected = ["", "JAX_PLATFORMS=cpu", "XLA_PYTHON_CLIENT_PREALLOCATE=false", "JAX_PLATFORMS=cuda"]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a is wrong"), 2, "a is wrong"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "[Errno 2] No such file or directory: 'a.txt'"),
        (TrainingFailure("it diverged"), 1, "it diverged"),
        (MemoryError(), 2, "memory ran out; free some, or set smaller sizes"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            2,
            "memory ran out (Unable to allocate 9 TiB); free some, or set smaller sizes",
        ),
        (Stopped(signal.SIGTERM, "saved"), 143, "stopped by SIGTERM; saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_status(error, status, line, capsys):
    @command
    def fail(arguments):
        raise error

    assert fail([]) == status
    assert capsys.readouterr().err == f"jaxformer: {line}\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    @command
    def fail(arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail([])


def test_a_description_is_filled_to_the_terminal_and_its_code_is_kept(monkeypatch):
    code = "  jaxformer boil --degrees=100 --water=a_litre   --pot=large"
    parser = Parser("jaxformer boil", f"Boils {'water ' * 30}.\nAnd\nmore.\n\n{code}\n\nEnd.")
    for columns, widest in ((60, 59), (80, 79), (200, 79)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = parser.format_help().splitlines()
        assert code in lines and "End." in lines
        others = [line for line in lines if line != code]
        assert widest - 6 < max(map(len, others)) <= widest and "And" not in lines


def test_an_argument_that_is_not_utf_8_is_refused():
    parser = Parser("jaxformer boil", "Boils.")
    parser.add_argument("--water")
    with pytest.raises(UserError, match="not UTF-8"):
        parser.parse_args(["--water=caf\udce9"])


def test_a_parser_takes_no_abbreviation_and_names_its_help():
    parser = Parser("jaxformer boil", "Boils.")
    parser.add_argument("--degrees", type=int)
    for arguments in (["--deg=3"], ["--degrees=hot"], ["--degrees"]):
        with pytest.raises(UserError, match="see `jaxformer boil --help`"):
            parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("module", "start"),
    [
        ("jaxformer.commands.evaluate", "from jaxformer.commands.program import main; main(['evaluate'])"),
        ("jaxformer.commands.program", "from jaxformer.__main__ import run; run()"),
    ],
)
def test_an_interruption_while_a_command_is_imported_leaves_no_traceback(module, start):
    code = (
        "import sys, importlib.abc\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{module}':\n"
        "            print('importing', flush=True)\n"
        "            import time; time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        f"{start}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-signal.SIGINT, b"")


def test_a_command_is_loaded_outside_of_the_main_thread():
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(_load("plan")))
    thread.start()
    thread.join()
    assert [module.__name__ for module in loaded] == ["jaxformer.commands.plan"]


def test_a_command_that_cannot_be_imported_leaves_the_handler_of_interruptions(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setitem(sys.modules, "jaxformer.commands.plan", None)
        with pytest.raises(ImportError):
            _load("plan")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
