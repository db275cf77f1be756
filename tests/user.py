"""A user with an empty folder, a small corpus and an experiment file, who types commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from copies import Copies, Ended, kill_group

EXPERIMENT = """
from jaxformer.experiment import (
    AttentionConfig, CheckpointConfig, CorpusConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig,
    PackingConfig, TokenizerConfig, TrainingConfig
)

EXPERIMENT = Experiment(
    question="Does a user meet here what others met elsewhere?",
    model=ModelConfig(vocabulary_size=400, width=16, depth=1, heads=2),
    corpus=CorpusConfig(kind="jsonl", path="texts.jsonl", validation_share=0.1),
    tokenizer=TokenizerConfig(vocabulary_size=400, processes=1),
    packing=PackingConfig(row_length=32, minimum_fill=0.5),
    attention=AttentionConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    training=TrainingConfig(steps=4, rows_per_step=4, log_every_steps=1, startup_proof=False),
    checkpoint=CheckpointConfig(every_steps=2, keep=2),
    evaluation=EvaluationConfig(every_steps=4, validation_bytes=200, rows_per_batch=2, sample_tokens=0),
)
"""
# From a checkout, as the README's first minute does it.
REPOSITORY = Path(__file__).parents[1]


def is_gone(process: int) -> bool:
    """Returns whether a process has ended, also one that nobody asks for its status."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # Not Linux; or it ended just now, which the next call returns.
        return False


def wait_until(condition: Callable[[], object], process: int, seconds: float = 240) -> None:
    """Waits until a condition holds while a process runs.

    Raises:
        AssertionError: the process ended before, or the time is over.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert not is_gone(process), "it ended before"
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


# Variables that are read when a command runs, and not while it is loaded; NUMBER is read by experiments of the tests.
_OF_A_COMMAND = {"JAXFORMER_CACHE", "HOME", "GIT_DIR", "GIT_WORK_TREE", "MPLBACKEND", "NUMBER", "NO_PROXY"}
_OF_A_COMMAND |= {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"}


# Of this process: the variables of its first user, and a process that was loaded with them.
_first: list[tuple[dict[str, str], Copies]] = []


def _loaded(own: dict[str, str], environment: dict[str, str]) -> Copies | None:
    """Returns a process whose copies run commands with variables of the first user; None for others.

    Args:
        own: the variables of a user, who may be the first.
        environment: those of a command of that user.
    """
    own, variables = (
        {name: value for name, value in each.items() if name not in _OF_A_COMMAND} for each in (own, environment)
    )
    if not _first and variables == own:
        _first.append((own, Copies(own, "jaxformer.commands.report")))
    return _first[0][1] if _first and _first[0][0] == variables else None


class User:
    """Types commands in a folder that holds `tiny.py`, `texts.jsonl`, the cache, and what a test puts there.

    Args:
        folder: an empty one.
        texts: of the corpus.
        environment: variables that differ from those of the tests.
    """

    def __init__(self, folder: Path, texts: list[str], environment: dict[str, str]):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        self.environment |= {"PYTHONPATH": str(REPOSITORY), "JAXFORMER_CACHE": str(folder / "cache"), **environment}
        self.write("tiny.py", EXPERIMENT)
        self.write("texts.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes a file below the folder, and the folders above it; returns its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def start(self, *words: str, prefix=(), python=(), environment=(), **options) -> subprocess.Popen:
        """Starts `jaxformer WORD...` and returns its process.

        Args:
            words: the command and its arguments.
            prefix: words before the interpreter, such as `nohup`.
            python: options of the interpreter.
            environment: a mapping of variables that are set, or removed where they are None.
            options: of `subprocess.Popen`.
        """
        changed = self.environment | dict(environment)
        options = {"cwd": self.folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
        options = {"stderr": subprocess.PIPE} | options
        variables = {name: value for name, value in changed.items() if value is not None}
        command = [*prefix, sys.executable, *python, "-m", "jaxformer", *words]
        return subprocess.Popen(command, env=variables, **options)

    def run(
        self,
        *words: str,
        timeout: int = 240,
        meanwhile: Callable[[int], object] | None = None,
        environment=(),
        **options,
    ) -> Ended:
        """Runs `jaxformer WORD...` to its end.

        Args:
            timeout: in seconds.
            meanwhile: called while it runs, with the number of its process, which leads a group of its own: it may
                signal the group.
            environment: as that of `start`; where all of it is read when a command runs, it runs in a loaded process.
            options: of `start`.
        """
        changed = {name: value for name, value in (self.environment | dict(environment)).items() if value is not None}
        if not options and (loaded := _loaded(self.environment, changed)):
            of_command = {name: changed[name] for name in _OF_A_COMMAND & changed.keys()}
            return loaded.run(words, self.folder, of_command, timeout, meanwhile=meanwhile)
        with self.start(*words, environment=environment, process_group=0, **options) as process:
            try:
                if meanwhile:
                    meanwhile(process.pid)
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                kill_group(process.pid)
                raise
        return Ended(process.returncode, *((text or b"").decode(errors="backslashreplace") for text in (out, err)))

    def train(self, *words: str, workdir: str = "run", experiment: str = "tiny.py", **options) -> Ended:
        """Runs `jaxformer train` on an experiment file in a run folder."""
        return self.run("train", f"--experiment={experiment}", f"--workdir={workdir}", *words, **options)

    def summary(self, workdir: str = "run") -> dict:
        """Returns the results of a finished run, without what depends on the clock."""
        summary = json.loads((self.folder / workdir / "summary.json").read_bytes())
        return {name: value for name, value in summary.items() if not name.endswith(("seconds", "per_second"))}
