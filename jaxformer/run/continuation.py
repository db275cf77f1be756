"""Runs that go on: one by its folder alone, and one with more steps than it was begun with."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.checkpoint.train_state import copy_step, open_checkpoints
from jaxformer.config import UserError, replace, require
from jaxformer.experiment.experiment import Experiment, spans_of
from jaxformer.experiment.lineage import Lineage
from jaxformer.experiment.resolution import ad_hoc_name
from jaxformer.host.files import write_json
from jaxformer.host.paths import shell_word
from jaxformer.optimizer import make_schedule
from jaxformer.record import to_dict
from jaxformer.run.folder import check_disk, hold_folder, load_run
from jaxformer.run.identity import CONFIG, check_folder, identify, read_config
from jaxformer.run.metrics import cut_metrics
from jaxformer.run.samples import read_samples, write_samples


class BegunRun(NamedTuple):
    """A run as its folder has it."""

    experiment: Experiment
    workdir: Path
    seed: int
    lineage: Lineage


def read_run(workdir: Path) -> BegunRun:
    """Returns the run of a folder.

    Raises:
        UserError: there is none, or it was made with a part of one's own whose code is not known here.
    """
    experiment, record = load_run(workdir)
    try:
        return BegunRun(experiment, workdir, record["seed"], Lineage(**record["lineage"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{workdir / CONFIG}: not the record of a run ({error!r})") from error


def extend_run(run: BegunRun, steps: int, workdir: Path | None = None) -> BegunRun:
    """Returns a run of more steps, whose folder begins with what a run did before the number of steps mattered.

    It equals one that had so many steps from the start; the folder of the run that it goes on from is left as it is.

    Args:
        run: finished or not.
        steps: of the new run.
        workdir: its folder; None for one that is named after its steps. Where it is there already, it goes on.

    Raises:
        UserError: the steps so far depend on how many there are, or no checkpoint is kept of the time before.
    """
    before = run.experiment.training.steps
    require(steps > before, f"--extend_to ({steps}) must be more than the {before} steps of {run.workdir}")
    experiment = replace(run.experiment, {"training.steps": steps})
    in_file, *_ = run.lineage.overrides.get("training.steps", [before])
    overrides = {path: values for path, values in run.lineage.overrides.items() if path != "training.steps"}
    overrides |= {"training.steps": (in_file, steps)} if steps != in_file else {}
    experiment = dataclasses.replace(experiment, name=ad_hoc_name(run.experiment.name, overrides))
    shared = shared_steps(run.experiment, experiment)
    step = _newest_step(run.workdir, run.experiment, shared)
    origin = {"run": str(run.workdir), "step": step, "steps": before}
    lineage = dataclasses.replace(run.lineage, overrides=overrides, extended_from=origin)
    extended = BegunRun(experiment, workdir or _folder_beside(run, experiment), run.seed, lineage)
    record = read_config(run.workdir) or {}
    identity = identify(experiment, run.seed, record["identity"]["init_from"])
    check_folder(extended.workdir, identity, "identity")
    if not (extended.workdir / CONFIG).exists():
        _begin(extended, run.workdir, step, record | {"identity": identity})
    return extended


def shared_steps(one: Experiment, other: Experiment) -> int:
    """Returns how many first steps of two experiments, which differ in their number, have equal rates and batches."""
    steps, kinds = min(one.training.steps, other.training.steps), {}
    rates, batches = [], []
    for each in (one, other):
        rates.append(np.asarray(make_schedule(each.optimizer, each.training.steps)(np.arange(steps))))
        numbers = [np.full(span.steps, kinds.setdefault(span[2:], len(kinds))) for span in spans_of(each)]
        batches.append(np.concatenate(numbers)[:steps])
    same = np.equal(*rates) & np.equal(*batches)
    return steps if same.all() else int(np.argmin(same))


def _newest_step(workdir: Path, experiment: Experiment, shared: int) -> int:
    """Returns the newest checkpoint among the shared steps; raises `UserError` where there is none."""
    lengths = {span.row_length for span in spans_of(experiment)}
    by_steps = "its phases have rows of several lengths, to which documents are dealt by the number of steps"
    require(len(lengths) == 1, f"run folder {workdir}: it cannot be extended: {by_steps}")
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        saved = checkpoints.steps()
    usable = [step for step in saved if step <= shared]
    require(
        bool(usable),
        f"run folder {workdir}: it cannot be extended: its {experiment.optimizer.schedule} schedule depends on the "
        f"number of steps from step {shared + 1} on, and no checkpoint up to {shared} is kept (there are "
        f"{saved or 'none'}). A run of optimizer.schedule=wsd can be extended from before its decay; else train anew "
        f"with more --training.steps, or from these weights with --init_from={shell_word(workdir)}",
    )
    return usable[-1]


def _folder_beside(run: BegunRun, experiment: Experiment) -> Path:
    """Returns the folder of an extended run, named as if it had been begun so."""
    if run.workdir.parent.name == run.experiment.name:
        return run.workdir.parent.parent / experiment.name / run.workdir.name
    return run.workdir.with_name(f"{run.workdir.name}_to_{experiment.training.steps}")


def _begin(run: BegunRun, source: Path, step: int, record: dict) -> None:
    """Writes what a run's folder would hold if it had been stopped after a step; last `config.json`, that makes it one.

    Args:
        source: folder of the run that had the step.
        record: what `config.json` is to hold of it, with its own `identity`.
    """
    folder = source / "checkpoints"
    size = sum(path.stat().st_size for path in (folder / str(step)).rglob("*") if path.is_file())
    with hold_folder(run.workdir), open_checkpoints(folder) as saved:
        check_disk(run.workdir, size, f"a copy of step {step} of {source}")
        with open_checkpoints(run.workdir / "checkpoints", run.experiment.checkpoint) as own:
            copy_step(saved, own, step, {"identity": record["identity"]})
        cut_metrics(source, run.workdir, step)
        write_samples(run.workdir, read_samples(source, step))
        own_record = {"experiment": run.experiment.name, "config": to_dict(run.experiment), "tracked_as": ""}
        write_json(run.workdir / CONFIG, record | own_record)
