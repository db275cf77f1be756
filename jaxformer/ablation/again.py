"""Earlier runs that a study makes again: trained, or evaluated from their checkpoints. Nothing is lost."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxformer.ablation.earlier import EarlierRuns, own_results
from jaxformer.config import TrainingFailure, require
from jaxformer.host.console import print_line, progress_bar
from jaxformer.host.files import read_json_or_empty
from jaxformer.host.paths import shell_word, typed
from jaxformer.run.folder import evaluations_folder
from jaxformer.run.identity import CONFIG

_EVALUATE = (sys.executable, "-m", "jaxformer", "evaluate")


def describe_again(earlier: EarlierRuns) -> str:
    """Returns a line on the earlier runs that are made again; '' where there are none."""
    trained, evaluated = map(len, earlier)
    parts = [f"{trained} to be set aside"] * bool(trained) + [f"{evaluated} to be evaluated again"] * bool(evaluated)
    return f"earlier runs made by other code: {' and '.join(parts)}" if parts else ""


def make_again(earlier: EarlierRuns, *, on_a_cluster: bool = False) -> None:
    """Sets aside runs that were trained otherwise, and evaluates again here those that were evaluated otherwise.

    Raises:
        UserError: the runs are on a cluster, whose nodes evaluate.
        TrainingFailure: as of `evaluate_again`.
    """
    number, first = len(earlier.evaluated_otherwise), earlier.evaluated_otherwise[:1]
    require(
        not (on_a_cluster and first),
        f"{number} finished runs were evaluated by other code: evaluate them again on a node, "
        f"`jaxformer evaluate --workdir={' '.join(shell_word(path) for path in first)}` and so on",
    )
    move_aside(earlier.trained_otherwise)
    evaluate_again(earlier.evaluated_otherwise)


def move_aside(workdirs: Sequence[Path]) -> None:
    """Moves run folders and their logs into a folder beside them, named after the code that made them."""
    for workdir in workdirs:
        starts = read_json_or_empty(workdir / CONFIG).get("starts") or [{}]
        folder = _free(workdir.parent / f"before_{starts[-1].get('code')!s:.8}", workdir.name)
        folder.mkdir(exist_ok=True)
        workdir.rename(folder / workdir.name)
        for path in (workdir.with_name(f"{workdir.name}{suffix}") for suffix in (".log", ".job")):
            if path.exists():
                path.rename(folder / path.name)
        print_line(f"{workdir}: moved to {folder / workdir.name}")


def _free(folder: Path, name: str) -> Path:
    """Returns a folder, numbered if needed, that has nothing of a name yet."""
    number, found = 1, folder
    while (found / name).exists():
        number += 1
        found = folder.with_name(f"{folder.name}_{number}")
    return found


def evaluate_again(workdirs: Sequence[Path], program: Sequence[str] = _EVALUATE) -> None:
    """Evaluates finished runs from their last checkpoints; earlier results are kept in a folder beside.

    Raises:
        TrainingFailure: an evaluation failed; the same command tries it again.
    """
    if not workdirs:
        return
    print_line(f"{len(workdirs)} finished runs were evaluated by other code, and are evaluated again")
    with progress_bar(desc="evaluating again", unit=" runs", total=len(workdirs)) as bar:
        for workdir in workdirs:
            keep_evaluation(workdir)
            command = [*program, f"--workdir={typed(workdir)}"]
            streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
            done = subprocess.run(command, **streams, check=False)
            if done.returncode:
                reason = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
                raise TrainingFailure(
                    f"{workdir} could not be evaluated again ({reason.removeprefix('jaxformer: ')}); "
                    f"`jaxformer evaluate --workdir={shell_word(workdir)}` shows why, and the same command resumes"
                )
            bar.update()


def keep_evaluation(workdir: Path) -> None:
    """Moves the last evaluation of a run, with its own tasks, to `step_N.before_CODE`; other tasks stay."""
    record, summary = (read_json_or_empty(workdir / name) for name in (CONFIG, "summary.json"))
    folder = evaluations_folder(workdir, summary.get("steps", 0))
    names = own_results(record)
    code = next((code for name in names if (code := read_json_or_empty(folder / f"{name}.json").get("code"))), None)
    if code is None:  # Already moved.
        return
    kept = folder.with_name(f"{folder.name}.before_{code!s:.8}")
    if not kept.exists():
        copy = kept.with_name(f"{kept.name}.unfinished")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        copy.rename(kept)
    for name in names:
        for path in folder.glob(f"{name}.*"):
            path.unlink()
