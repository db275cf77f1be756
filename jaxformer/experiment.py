"""The record of one question: all configurations of a run as one value, read from a file and checked as a whole."""

import dataclasses
import hashlib
import json
import os
import re
import runpy
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxformer.attention import AttentionConfig, Implementation, choose_implementation
from jaxformer.attention_support import AttentionShape
from jaxformer.checkpoint import CheckpointConfig
from jaxformer.config import UserError, check_types, did_you_mean, execution, flatten, override, require
from jaxformer.corpus import CorpusConfig
from jaxformer.evaluate import EvaluationConfig
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.packing import PackingConfig
from jaxformer.step import TrainingConfig, TrainState, compute_dtype, init_state
from jaxformer.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and the configuration whose run answers it.

    question: what the run is to tell.
    name: of the experiment; set from its file when it is loaded.
    """

    question: str = execution("")
    name: str = execution("")
    model: ModelConfig
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    attention: AttentionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig

    def __post_init__(self):
        check_types(self)
        require(
            bool(self.tokenizer.path) or self.tokenizer.vocabulary_size <= self.model.vocabulary_size,
            f"tokenizer.vocabulary_size ({self.tokenizer.vocabulary_size}) must not exceed "
            f"model.vocabulary_size ({self.model.vocabulary_size})",
        )
        require(
            self.optimizer.warmup_steps < self.training.steps,
            f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be less than "
            f"training.steps ({self.training.steps})",
        )
        require(
            self.model.learned_positions == 0 or self.model.learned_positions >= self.packing.row_length,
            f"model.learned_positions ({self.model.learned_positions}) must be at least "
            f"packing.row_length ({self.packing.row_length})",
        )


def load_experiment(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """Returns the experiment of a file in `experiments/`, or at a path, with overrides applied.

    A name is looked up in `experiments/` of the working directory, then beside the installed package. The file
    assigns an `Experiment` to `EXPERIMENT`. Overrides of scientific fields make another experiment, and are marked in
    its name: `baseline~1a2b3c`.

    Args:
        overrides: texts by dotted path, such as `{"model.width": "256"}`.

    Raises:
        UserError: no such experiment, a file that does not define one, or a configuration that is not valid.
    """
    path = _find(name_or_path)
    try:
        experiment = runpy.run_path(str(path)).get("EXPERIMENT")
    except UserError as error:
        raise UserError(f"experiment {path}: {error}") from error
    except (Exception, SystemExit) as error:
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (frames[-1] if frames else "?")
        raise UserError(f"experiment {path}, line {line}: {type(error).__name__}: {error}") from error
    require(isinstance(experiment, Experiment), f"experiment {path}: it must assign an Experiment to EXPERIMENT")
    require(
        re.fullmatch(r"\w[\w.-]*", path.stem) is not None,
        f"experiment file {path}: a run folder is named after it; use letters, digits, '_', '-' and '.' only",
    )
    base = dataclasses.replace(experiment, name=path.stem)
    changed = override(base, overrides or {})
    return dataclasses.replace(changed, name=base.name + _mark(base, changed))


def attention_shape(experiment: Experiment) -> AttentionShape:
    """Returns what attention is computed on in a step of the experiment."""
    model, training, packing = experiment.model, experiment.training, experiment.packing
    return AttentionShape(
        rows=training.rows_per_step // training.micro_batches,
        row_length=packing.row_length,
        heads=model.heads,
        key_value_heads=model.G,
        head_width=model.K,
        dtype=compute_dtype(training),
        documents_per_row=packing.documents_per_row,
        window=model.sliding_window,
    )


def make_state(experiment: Experiment, seed: int, attention: Implementation | None = None) -> TrainState:
    """Returns the state before the first step; attention is what suits the device and the shapes if it is not given."""
    if attention is None:
        attention = choose_implementation(experiment.attention, attention_shape(experiment)).implementation
    return init_state(
        experiment.model,
        make_optimizer(experiment.optimizer, experiment.training.steps),
        seed=seed,
        attention=attention,
        compute_dtype=compute_dtype(experiment.training),
        micro_batches=experiment.training.micro_batches,
        skip_spikes_above=experiment.training.skip_spikes_above,
    )


def list_experiments() -> list[str]:
    """Returns the names of the experiments that `load_experiment` finds."""
    return sorted({path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("[!_]*.py")})


def science(experiment: Experiment) -> dict:
    """Returns the leaves, by dotted path, that decide what a run learns: what identifies it and is compared."""
    return flatten(experiment, science_only=True)


def _mark(base: Experiment, changed: Experiment) -> str:
    """Returns '' or, where overrides changed the science, '~' and six digits that tell one change from another."""
    before, after = science(base), science(changed)
    changes = sorted((path, repr(value)) for path, value in after.items() if before.get(path) != value)
    return f"~{hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:6]}" if changes else ""


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".py") or "/" in name_or_path:
        path = Path(os.path.expanduser(name_or_path))
        require(_is_file(path), f"experiment file {path}: no such file")
        return path
    for folder in _folders():
        path = folder / f"{name_or_path}.py"
        if _is_file(path):
            return path
    known = list_experiments()
    hint = did_you_mean(name_or_path, known) or f"; known here: {', '.join(known) or 'none'}"
    raise UserError(f"unknown experiment {name_or_path!r}{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that is too long, or a folder that may not be entered.
        return False


def _folders() -> list[Path]:
    return [Path("experiments"), Path(__file__).resolve().parent.parent / "experiments"]
