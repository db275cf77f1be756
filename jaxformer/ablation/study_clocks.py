"""The times per token of a study's variants relative to their parents': planned, measured, and removed."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxformer.ablation.another_process import in_another_process
from jaxformer.ablation.clock import CLOCK
from jaxformer.ablation.clock_measurement import clock_seconds, measure_clock
from jaxformer.ablation.finished_runs import load_finished_run
from jaxformer.ablation.study import Study, resolve_study
from jaxformer.config import TrainingFailure, UserError
from jaxformer.experiment.variant import AD_HOC
from jaxformer.host.console import print_notice
from jaxformer.record import all_parts, source_of


def measure_clocks(pairs: Sequence[tuple[str, str]]) -> None:
    """Measures the times per token of pairs of run folders (parent, variant); prints those that cannot be measured.

    Parts of one's own must be loaded in this process.
    """
    for number, (parent, variant) in enumerate(pairs, 1):
        what = f"measuring the time per token of {Path(variant).parent.name}, {number} of {len(pairs)}"
        try:
            parts = [part for run in (parent, variant) for part in all_parts(load_finished_run(Path(run)).experiment)]
            own_files = sorted({source.path for part in parts if (source := source_of(type(part)))})
            in_another_process(what, measure_clock, Path(parent), Path(variant), own_files)
        except (UserError, TrainingFailure, OSError) as error:
            print_notice(f"{Path(variant).parent.name}: the time per token was not measured: {error}")


def clocks_to_come(study: Study, runs: Path, seconds: Mapping[str, float], *, again: bool = False) -> list[float]:
    """Returns the most seconds to measure the time per token of each variant that may need it.

    Args:
        seconds: of a run of each experiment, estimated.
        again: includes those that were measured before.
    """
    parent, *others = resolve_study(study)
    variants = [one for one in others if again or not _clock_files(one.name, runs)]
    return [
        clock_seconds((parent.experiment, one.experiment), seconds[one.name] / one.experiment.training.steps)
        for one in variants
    ]


def forget_clocks(study: Study, runs: Path) -> None:
    """Removes the measured times per token of a study's variants."""
    for one in resolve_study(study)[1:]:
        for path in _clock_files(one.name, runs):
            path.unlink(missing_ok=True)


def _clock_files(name: str, runs: Path) -> list[Path]:
    """Returns the files with a variant's measurements, at its own learning rate and at others."""
    return [*runs.glob(f"{glob.escape(name)}/{CLOCK}"), *runs.glob(f"{glob.escape(name)}{AD_HOC}*/{CLOCK}")]
