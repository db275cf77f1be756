"""The blocks of each page are executed, in their order and in an empty folder, as a reader would who types them.

Only the experiments are smaller (`small_package`). A block that cannot be executed here says so on the line before it:
`<!-- not run: needs a GPU -->`; what it names is tested in `test_names.py`.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from copies import kill_group
from markdown_pages import PAGES, ROOT, Block, blocks_of, commands_of
from quick_python import QuickPython
from small_package import SIZES, install

from jaxformer.ablation.judge import STATUS
from jaxformer.ablation.verdict import Word

pytestmark = pytest.mark.device_free

# Of blocks that are executed, and of those that are only read.
EXECUTED, READ = {"console", "python"}, {"text", "json", "mermaid"}

# Why a block may be left out.
REASONS = (
    "needs (a|several) GPUs?",
    "needs a process of its own",
    "needs two processes at once",
    "needs a network",
    "needs an account",
    "needs a cluster",
    "needs a checkout",
    "needs PyTorch",
    "needs your (documents|files|data|own .*)",
    "takes (hours|long)",
    "installs packages",
)

LOADED = [f"jaxformer.commands.{path.stem}" for path in (ROOT / "jaxformer/commands").glob("[!_]*.py")]
LOADED = [*sorted(set(LOADED) - {"jaxformer.commands.harness"}), "matplotlib.pyplot", "networkx"]

# The exit statuses of `jaxformer judge`, which are no failures.
VERDICTS = set(STATUS.values()) - {STATUS[Word.NOT_COMPARED]}

# Executes the code that it is sent, and answers what that raised.
SESSION = """
import json, sys, traceback

def answer(text, to=open(int(sys.argv[1]), "w")):
    sys.stdout.flush()
    print(json.dumps(text), file=to, flush=True)

for line in sys.stdin:
    try:
        exec(compile(*json.loads(line), "exec"))
    except BaseException:
        answer(traceback.format_exc())
    else:
        answer("")
"""

# A program that a page must not start.
REFUSED = """#!/bin/sh
echo "$(basename "$0"): mark the block as one that is not run" >&2
exit 1
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory, cache):
    """Variables of a reader who has installed the small package, and whose programs start at once."""
    folder = tmp_path_factory.mktemp("installed")
    package = install(folder / "site")
    names = ("HOME", "LANG", "LC_ALL", "TMPDIR", "XLA_FLAGS")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    variables |= {"PYTHONPATH": str(folder / "site"), "JAXFORMER_CACHE": str(folder / "cache")}
    variables |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    # Whoever would reach the network learns at once that there is none.
    variables |= {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    refusing = folder / "bin"
    refusing.mkdir()
    for name in ("pip", "git", "curl", "wget", "sbatch", "srun", "tensorboard", "mkdocs"):
        (refusing / name).write_text(REFUSED)
        (refusing / name).chmod(0o755)
    with QuickPython(variables | {"PATH": os.environ["PATH"]}, *LOADED) as python:
        variables["PATH"] = f"{python.programs}:{refusing}:/usr/bin:/bin"
        subprocess.run(SIZES.split(), cwd=package, env=variables, check=True, stdout=subprocess.DEVNULL)
        yield variables


class Reader:
    """Somebody who types in a folder what a page says: commands in one shell, and Python in one session.

    Args:
        environment: all variables.
        state: a folder for what the shell and the session remember from block to block.
    """

    def __init__(self, folder: Path, environment: dict[str, str], state: Path):
        self.folder, self.environment, self.state = folder, environment, state
        self._session = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._session:
            kill_group(self._session.pid)
            self._session.communicate()

    def do(self, block: Block) -> None:
        """Does what a block says.

        Raises:
            Failed: a command has another exit status than 0, or the code raises.
        """
        if block.saved_as:
            path = self.folder / block.saved_as
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            self._execute(block)
        else:
            self._type(block)

    def _type(self, block: Block) -> None:
        lines = [f"cd '{self.folder}'", f"[ ! -f '{self.state}/shell' ] || . '{self.state}/shell'"]
        for number, command in commands_of(block.code):
            done = VERDICTS if command.startswith("jaxformer judge ") else {0}
            checked = f"case $status in {'|'.join(map(str, sorted(done)))}) ;; *)"
            lines += [command, f"status=$?; {checked} echo {block.line + number} >&3; exit $status;; esac"]
        lines += [f"{{ export -p; echo \"cd '$PWD'\"; }} > '{self.state}/shell'"]
        failed = self.state / "failed"
        with (self.state / "output").open("w+") as output, failed.open("w") as failing:
            shell = ["bash", "-c", 'exec 3>&"$0"; ' + "\n".join(lines), str(failing.fileno())]
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            options |= {"env": self.environment, "process_group": 0, "pass_fds": [failing.fileno()]}
            with subprocess.Popen(shell, **options) as process:
                try:
                    status = process.wait(timeout=900)
                except BaseException:
                    kill_group(process.pid)
                    raise
            output.seek(0)
            printed = output.read()
        if status:
            line = failed.read_text().strip() or block.line
            pytest.fail(f"{block.page}:{line}: exit status {status}\n{printed}", pytrace=False)

    def _execute(self, block: Block) -> None:
        if self._session is None:
            reading, writing = os.pipe()
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "pass_fds": [writing], "text": True}
            options |= {"env": self.environment, "cwd": self.folder, "process_group": 0}
            self._session = subprocess.Popen(
                [self.environment["PATH"].split(":")[0] + "/python", "-c", SESSION, str(writing)], **options
            )
            os.close(writing)
            self._answers = os.fdopen(reading)
        self._session.stdin.write(json.dumps([block.code, str(block)]) + "\n")
        self._session.stdin.flush()
        answer = json.loads(self._answers.readline() or '"the session ended"')
        if answer:
            pytest.fail(f"{block}: {answer}", pytrace=False)


def is_quoted(block: Block) -> bool:
    """Returns whether a block stands as it is in an experiment of the repository."""
    files = (ROOT / "experiments").rglob("*.py")
    return block.language == "python" and any(block.code in path.read_text(encoding="utf-8") for path in files)


@pytest.fixture
def reader(tmp_path, environment):
    """A reader in an empty folder."""
    for name in ("reader", "state"):
        (tmp_path / name).mkdir()
    with Reader(tmp_path / "reader", environment, tmp_path / "state") as reader:
        yield reader


# These are executed in CI; all others take minutes together, `-m long`.
FIRST = ("README.md", "docs/tutorials/first_run.md", "docs/tutorials/own_text.md", "docs/tutorials/one_gpu.md")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in FIRST else pytest.mark.long) for page in PAGES]
)
def test_the_blocks_of_a_page_do_what_they_say(page, reader):
    for block in blocks_of(page):
        if block.language in EXECUTED and not block.not_run and not is_quoted(block):
            reader.do(block)


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("console", "true\nfalse && true\n", "page:8: exit status 1"),
        ("console", "jaxformer train \\\n    --experiment=frist\n", "page:7: exit status 2\n.*did you mean first"),
        ("console", "jaxformer judge first first\n", "page:7: exit status 2"),
        ("console", "cat <<'END'\nfalse\nEND\npip install jaxformer\n", "page:10: exit status 1"),
        ("python", "import jaxformer\njaxformer.nothing\n", "page:7: Traceback.*line 2.*AttributeError"),
    ],
)
def test_what_fails_on_a_page_fails_its_test(reader, language, code, message):
    with pytest.raises(pytest.fail.Exception, match=f"(?s){message}"):
        reader.do(Block("page", 7, language, code, ""))


def test_blocks_of_a_page_share_a_shell_a_session_and_a_folder(reader):
    blocks = [
        ("console", "export GREETING=hello\nmkdir deep\ncd deep\n"),
        ("console", '[ "$GREETING" = hello ] && [ "$(basename $PWD)" = deep ]\n'),
        ("python", "# deep/number.py\nnumber = 7\n"),
        ("console", "python -c 'import number; assert number.number == 7'\n"),
        ("python", "a = 3\n"),
        ("python", "import os\nassert a == 3 and os.path.exists('deep/number.py')\n"),
    ]
    for language, code in blocks:
        reader.do(Block("page", 1, language, code, ""))


@pytest.mark.parametrize("page", PAGES)
def test_each_block_has_a_language_and_each_reason_is_of_a_kind(page):
    blocks = blocks_of(page)
    others = [f"{block}: {block.language or 'none'}" for block in blocks if block.language not in EXECUTED | READ]
    assert not others, f"blocks are {', '.join(sorted(EXECUTED | READ))}"
    unknown = [f"{block}: {block.not_run}" for block in blocks if block.not_run and not is_known(block.not_run)]
    assert not unknown, f"the reasons there are: {REASONS}"
    assert PAGES[page].count("<!-- not run") == sum(bool(block.not_run) for block in blocks), "each before a block"
    assert PAGES[page].count("```") == 2 * len(blocks)


def is_known(reason: str) -> bool:
    return any(re.match(f"{known}\\b", reason) for known in REASONS)
