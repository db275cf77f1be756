"""Continued runs: one resumed by its folder alone, and one extended by more steps."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.checkpoint.train_state import copy_newest, open_checkpoints
from jaxformer.config import UserError, override, replace, require
from jaxformer.experiment.change import differences
from jaxformer.experiment.customary import suggest
from jaxformer.experiment.experiment import Experiment, spans_of
from jaxformer.experiment.lineage import Lineage, describe_change
from jaxformer.experiment.resolution import ad_hoc_name
from jaxformer.host.console import print_notice
from jaxformer.host.files import require_json, write_json
from jaxformer.host.paths import absolute, shell_word
from jaxformer.optimizer import make_schedule
from jaxformer.record import to_dict
from jaxformer.run.folder import hold_folder, load_run
from jaxformer.run.identity import CONFIG, check_folder
from jaxformer.run.metrics import cut_metrics
from jaxformer.run.samples import read_samples, write_samples


class BegunRun(NamedTuple):
    """A run as its folder has it, or will have it."""

    experiment: Experiment
    workdir: Path
    seed: int
    lineage: Lineage


def read_run(workdir: Path, overrides: Mapping[str, str] | None = None) -> BegunRun:
    """Returns the run of a folder.

    Args:
        overrides: texts by dotted path, for fields that only change how it is computed.

    Raises:
        UserError: there is none, it was made with a part whose code is unknown here, or an override changes what it
            learns.
    """
    experiment, record = load_run(workdir)
    experiment = replace(experiment, {"model.loss": "auto"})  # As it began on the same device, else chosen anew.
    changed = override(experiment, overrides or {}, suggest)
    learned = differences(experiment, changed)
    learned.pop("training.compute_dtype", None)  # What 'auto' means is compared when the run starts.
    require(
        not learned,
        f"run folder {workdir}: {'; '.join(describe_change(learned))} would change what the run learns; begin another "
        "with --experiment=NAME, or give it more steps with --extend_to=STEPS",
    )
    try:
        return BegunRun(changed, workdir, record["seed"], Lineage(**record["lineage"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{workdir / CONFIG}: not the record of a run ({error!r})") from error


def extend_run(run: BegunRun, steps: int, workdir: Path | None = None) -> BegunRun:
    """Returns a run with more steps than another; `begin_extended_run` starts it from the other's steps.

    Args:
        run: finished or not.
        steps: of the new run.
        workdir: its folder; None for one beside the other's.

    Raises:
        UserError: they are not more.
    """
    before = run.experiment.training.steps
    require(steps > before, f"--extend_to ({steps}) must be more than the {before} steps of {run.workdir}")
    in_file, *_ = run.lineage.overrides.get("training.steps", [before])
    overrides = {path: values for path, values in run.lineage.overrides.items() if path != "training.steps"}
    overrides |= {"training.steps": (in_file, steps)} if steps != in_file else {}
    experiment = replace(run.experiment, {"training.steps": steps})
    experiment = dataclasses.replace(experiment, name=ad_hoc_name(run.experiment.name, overrides))
    lineage = dataclasses.replace(run.lineage, overrides=overrides)
    return BegunRun(experiment, workdir or _folder_beside(run, experiment), run.seed, lineage)


def _folder_beside(run: BegunRun, experiment: Experiment) -> Path:
    """Returns the folder of an extended run, named as if it had begun with more steps, for any spelling of the path."""
    own = absolute(run.workdir)
    if own.parent.name == run.experiment.name:
        folder = own.parent.parent / experiment.name / own.name
    else:
        folder = own.with_name(f"{own.name}_to_{experiment.training.steps}")
    is_here = not run.workdir.is_absolute() and folder.is_relative_to(Path.cwd())
    return folder.relative_to(Path.cwd()) if is_here else folder


def begin_extended_run(run: BegunRun, source: BegunRun) -> Lineage:
    """Writes the first checkpoint and metrics of an extended run, unless they exist; returns its lineage.

    The run then equals one that had so many steps from the start.

    Args:
        run: from `extend_run(source)`.
        source: whose folder stays as it is; it may be running.

    Raises:
        UserError: the folder is of another run; or the steps so far depend on their total number, and no checkpoint
            from before that is kept.
        TrainingFailure: the disk does not take the copy.
    """
    require(run.experiment.mesh.processes == 1, "--extend_to needs a single process; several can resume the run")
    record = require_json(source.workdir / CONFIG)
    identity = record["identity"] | {"training.steps": run.experiment.training.steps}
    check_folder(run.workdir, identity, "identity")
    checkpoints, unfinished = (run.workdir / name for name in ("checkpoints", "checkpoints.unfinished"))
    if checkpoints.exists() or ((run.workdir / CONFIG).exists() and not unfinished.exists()):
        return read_run(run.workdir).lineage
    with hold_folder(run.workdir):
        shutil.rmtree(unfinished, ignore_errors=True)  # Of an attempt that was interrupted.
        step = _copy_checkpoint(run, source, unfinished, identity)
        cut_metrics(source.workdir, run.workdir, step)
        write_samples(run.workdir, read_samples(source.workdir, step))
        origin = {"run": str(absolute(source.workdir)), "step": step, "steps": source.experiment.training.steps}
        lineage = dataclasses.replace(run.lineage, extended_from=origin)
        own = {"experiment": run.experiment.name, "config": to_dict(run.experiment), "identity": identity}
        write_json(run.workdir / CONFIG, record | own | {"lineage": dataclasses.asdict(lineage), "tracked_as": ""})
        unfinished.rename(checkpoints)  # Last: until then the same command starts again.
    return lineage


def _copy_checkpoint(run: BegunRun, source: BegunRun, target: Path, identity: dict) -> int:
    """Copies the newest whole checkpoint of the steps that two runs share; returns its step."""
    lengths = {span.row_length for span in spans_of(source.experiment)}
    by_steps = "its phases have rows of several lengths, and the number of steps decides which documents fill which"
    require(len(lengths) == 1, f"run folder {source.workdir}: it cannot be extended: {by_steps}")
    shared = shared_steps(source.experiment, run.experiment)
    schedule = run.experiment.optimizer.schedule
    with open_checkpoints(source.workdir / "checkpoints") as checkpoints:
        saved = checkpoints.steps()
        require(
            any(step <= shared for step in saved),
            f"run folder {source.workdir}: it cannot be extended: its {schedule} schedule depends on "
            f"the number of steps from step {shared + 1} on, and no checkpoint up to {shared} is kept (there are "
            f"{saved or 'none'}). A run with optimizer.schedule=wsd can be extended from before its decay; else train "
            f"again with more --training.steps, or from these weights with --init_from={shell_word(source.workdir)}",
        )
        step, damaged = copy_newest(checkpoints, target, shared, {"identity": identity})
    for line in damaged:
        print_notice(line)
    return step


def shared_steps(one: Experiment, other: Experiment) -> int:
    """Returns how many first steps have equal rates and batches in two experiments with different numbers of steps."""
    steps, kinds = min(one.training.steps, other.training.steps), {}
    rates, batches = [], []
    for each in (one, other):
        rates.append(np.asarray(make_schedule(each.optimizer, each.training.steps)(np.arange(steps))))
        numbers = [np.full(span.steps, kinds.setdefault(span[2:], len(kinds))) for span in spans_of(each)]
        batches.append(np.concatenate(numbers)[:steps])
    same = np.equal(*rates) & np.equal(*batches)
    return steps if same.all() else int(np.argmin(same))
