"""Which checkpoints are kept."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxformer.config import NonNegativeInt, PositiveInt, check_fields, execution


@dataclass(frozen=True)
class CheckpointConfig:
    """When states are saved and which are kept (always the newest)."""

    every_steps: PositiveInt = execution(1000)
    """Steps between saves; a state is also saved before it is validated, and at the end."""
    keep: PositiveInt = execution(3)
    """Number of newest checkpoints to keep."""
    keep_every_steps: NonNegativeInt = execution(0)
    """Checkpoints at multiples of this step are kept for good; 0 for none."""
    keep_best: bool = execution(True)
    """Keep the checkpoint with the lowest validation loss so far."""

    def __post_init__(self):
        check_fields(self, "checkpoint")


def best_step(steps: Iterable[int], validation_losses: Mapping[int, float]) -> int | None:
    """Returns the step with the lowest validation loss, the first of equal ones; non-finite losses do not count."""
    finite = [step for step in sorted(steps) if math.isfinite(validation_losses.get(step, math.nan))]
    return min(finite, key=lambda step: validation_losses[step], default=None)


def steps_to_keep(
    steps: Iterable[int], config: CheckpointConfig, validation_losses: Mapping[int, float], decay_start: int = 0
) -> set[int]:
    """Returns which of the saved steps are kept.

    Args:
        decay_start: step from which on the learning rate depends on the length of the run. The newest checkpoint up to
            it is kept, since a longer run can continue from it. 0 if it depends on it from the first step on.
    """
    ordered = sorted(steps)
    kept = set(ordered[-config.keep :])
    if config.keep_every_steps:
        kept |= {step for step in ordered if step % config.keep_every_steps == 0}
    if config.keep_best and (best := best_step(ordered, validation_losses)) is not None:
        kept.add(best)
    kept |= {*[step for step in ordered if step <= decay_start][-1:]}
    return kept


def most_kept(config: CheckpointConfig, steps: int, decay_start: int = 0) -> int:
    """Returns the most checkpoints of a run of `steps` steps on disk at once, including one being written."""
    for_good = steps // config.keep_every_steps if config.keep_every_steps else 0
    return config.keep + 1 + config.keep_best + for_good + (decay_start > 0)
