"""Where a run is tracked beside its own files."""

import re
from dataclasses import dataclass
from importlib.util import find_spec

from jaxformer.config import check_fields, execution, require, require_one_of

TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run is tracked beside its own files."""

    to: str = execution("")
    """Trackers that get the contents of `metrics.jsonl`, separated by commas: tensorboard, by files in the run folder;
    trackio, by a database on this machine; wandb, which is Weights & Biases. '': none.
    """
    project: str = execution("jaxformer")
    """Project of the run at trackio and Weights & Biases."""

    def __post_init__(self):
        check_fields(self, "tracking")
        for name in self.names:
            require_one_of("tracking.to", name, TRACKERS)

    @property
    def names(self) -> list[str]:
        """Names of the trackers, each once."""
        return list(dict.fromkeys(filter(None, re.split(r"[,\s]+", self.to))))


def check_installed(config: TrackingConfig) -> None:
    """Raises `UserError` if a tracker is not installed."""
    missing = [name for name in config.names if find_spec(name) is None]
    extras = ",".join(missing)
    require(not missing, f"tracking.to needs {' and '.join(missing)}: pip install 'jaxformer[{extras}]'")
