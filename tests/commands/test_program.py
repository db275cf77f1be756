"""The installed program: it names its commands, runs one by its name, and ends as that does."""

import signal
import subprocess
import sys
import time

import pytest

import jaxformer
from jaxformer.commands.program import COMMANDS, describe, main
from jaxformer.config import TrainingFailure, UserError
from jaxformer.host.command import Parser, command
from jaxformer.host.signals import Stopped

pytestmark = pytest.mark.device_free


def test_help_fits_a_terminal_and_explains_every_command(capsys):
    assert main(["--help"]) == main([]) == main(["help"]) == 0
    printed = capsys.readouterr().out
    assert printed == 3 * (describe() + "\n")
    assert {"train", "prepare", "evaluate", "ablate", "report", "replay-step", "harness", "plan"} <= set(COMMANDS)
    for name in COMMANDS:
        (line,) = [line for line in describe().splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 2 and len(line) <= 79


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxformer {jaxformer.__version__}\n"


def test_a_misspelt_command_is_one_line_with_the_nearest(capsys):
    assert main(["trian", "--experiment=baseline"]) == 2
    assert (
        capsys.readouterr().err == "jaxformer: unknown command 'trian'; did you mean train?; see `jaxformer --help`\n"
    )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "harness"])
def test_every_command_explains_itself_and_refuses_an_unknown_option_in_one_line(name):
    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", "jaxformer", name, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    status, printed, errors = run("--help")
    assert (status, errors) == (0, "") and "usage: " in printed and "--help" in printed
    status, printed, errors = run("--no_such_option=1")
    assert (status, printed) == (2, "") and errors.startswith("jaxformer: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a is wrong"), 2, "a is wrong"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "[Errno 2] No such file or directory: 'a.txt'"),
        (TrainingFailure("it diverged"), 1, "it diverged"),
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


def test_a_parser_takes_no_abbreviation_and_names_its_help():
    parser = Parser("jaxformer boil", "Boils.")
    parser.add_argument("--degrees", type=int)
    for arguments in (["--deg=3"], ["--degrees=hot"], ["--degrees"]):
        with pytest.raises(UserError, match="see `jaxformer boil --help`"):
            parser.parse_args(arguments)


def test_an_interruption_while_a_command_is_imported_leaves_no_traceback():
    code = (
        "import sys, importlib.abc\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'jaxformer.commands.evaluate':\n"
        "            print('importing', flush=True)\n"
        "            import time; time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from jaxformer.commands.program import main\n"
        "main(['evaluate'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-signal.SIGINT, b"")
