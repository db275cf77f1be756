"""All configurations of a run as one value, checked as a whole; and the state and attention that they define."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxformer.attention.dispatch import AttentionConfig, Implementation, choose_implementation
from jaxformer.attention.support import AttentionShape
from jaxformer.checkpoint.train_state import CheckpointConfig
from jaxformer.config import check_fields, execution, require
from jaxformer.data.corpus import CorpusConfig, parts_of
from jaxformer.data.packing import PackingConfig
from jaxformer.data.phases import Span, make_spans
from jaxformer.data.tokenizer import TokenizerConfig
from jaxformer.devices.mesh import DATA, FSDP, MeshConfig, check_rows, make_mesh
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.flops import training_flops_per_token
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, check_schedule, decay_start, make_optimizer
from jaxformer.record import flatten, from_dict
from jaxformer.step import TrainingConfig, TrainState, compute_dtype, init_state
from jaxformer.tracking.config import TrackingConfig

# Fields of earlier versions that no longer matter, by section.
_GONE = {"attention": ("autotune",)}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and the configuration whose run answers it."""

    question: str = execution("")
    """The question that the run answers."""
    name: str = execution("")
    """Name of the experiment; set from its file when it is loaded."""
    init_from: str = ""
    """Trained weights to start from; all else starts fresh: RUN, the folder of a finished run; RUN/checkpoints/STEP; or
    a folder in the form of Hugging Face's transformers. '': the seed draws the weights.
    """
    model: ModelConfig
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    attention: AttentionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        check_fields(self)
        require(
            bool(self.tokenizer.path or self.init_from) or self.tokenizer.vocabulary_size <= self.model.vocabulary_size,
            f"tokenizer.vocabulary_size ({self.tokenizer.vocabulary_size}) must not exceed "
            f"model.vocabulary_size ({self.model.vocabulary_size})",
        )
        require(
            bool(self.evaluation.task_data)
            or not any(each.decontaminate for each in (self.corpus, *self.corpus.parts)),
            "corpus.decontaminate needs tasks to remove from the corpus; set evaluation.task_data",
        )
        check_schedule(self.optimizer, self.training.steps)
        require(
            self.optimizer.unembedding_rate == 1 or self.model.has_unembedding,
            f"optimizer.unembedding_rate ({self.optimizer.unembedding_rate}) needs model.tied_embeddings = False: a "
            "tied table uses optimizer.embedding_rate",
        )
        lengths = {"packing.row_length": self.packing.row_length}
        lengths |= {f"training.phases.{i}.row_length": one.row_length for i, one in enumerate(self.training.phases)}
        for name, row_length in lengths.items():
            require(
                self.model.most_positions == 0 or self.model.most_positions >= row_length,
                f"model.learned_positions ({self.model.most_positions}) must be at least {name} ({row_length})",
            )
        all_but_last, saved = self.training.profiled_steps[:-1], decay_start(self.optimizer, self.training.steps)
        every = self.evaluation.every_steps, self.checkpoint.every_steps
        pauses = [step for step in all_but_last if step == saved or any(step % each == 0 for each in every)]
        require(
            not pauses,
            f"training.profile ({self.training.profile}) must have no validation or save between its steps, but there "
            f"is one after step {[*pauses, 0][0]}",
        )
        for span in spans_of(self):
            require(
                span.first_step not in all_but_last,
                f"training.profile ({self.training.profile}) must lie within one phase, but step {span.first_step + 1} "
                "begins another",
            )


def recorded_experiment(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of a run's record, of this version or another whose fields are all known.

    Raises:
        UserError: a field is missing or unknown, or the values are not a valid configuration.
    """
    known = {**config}
    for section, names in _GONE.items():
        if isinstance(known.get(section), Mapping):
            known[section] = {name: value for name, value in known[section].items() if name not in names}
    return from_dict(Experiment, known)


def spans_of(experiment: Experiment) -> tuple[Span, ...]:
    """Returns the spans of steps with equal kinds of batches: the phases of a run, or all its steps."""
    training, weights = experiment.training, tuple(part.weight for part in parts_of(experiment.corpus))
    whole = Span(0, training.steps, training.rows_per_step, experiment.packing.row_length, weights)
    return make_spans(training.phases, whole)


def evaluated_steps(experiment: Experiment) -> list[int]:
    """Returns the steps after which an experiment is evaluated, including 0 if it starts from trained weights."""
    steps, every = experiment.training.steps, experiment.evaluation.every_steps
    return [*range(0 if experiment.init_from else every, steps, every), steps]


def shapes_of(experiment: Experiment) -> list[Experiment]:
    """Returns an experiment without phases for each batch shape of a run, in order.

    Each takes its own memory and time on a device.
    """
    sizes = dict.fromkeys((span.rows_per_step, span.row_length) for span in spans_of(experiment))
    parts = tuple(dataclasses.replace(part, weight=1.0) for part in experiment.corpus.parts)  # 0 needs a phase.
    return [
        dataclasses.replace(
            experiment,
            corpus=dataclasses.replace(experiment.corpus, parts=parts),
            packing=dataclasses.replace(experiment.packing, row_length=row_length),
            training=dataclasses.replace(experiment.training, rows_per_step=rows, phases=()),
        )
        for rows, row_length in sizes
    ]


def trained_tokens(experiment: Experiment, steps: int | None = None) -> int:
    """Returns how many tokens the first steps of a run are trained on, padding included; all of them by default."""
    spans, steps = spans_of(experiment), experiment.training.steps if steps is None else steps
    return sum(span.tokens_per_step * min(span.steps, max(0, steps - span.first_step)) for span in spans)


def tokens_by_step(experiment: Experiment, steps: int) -> np.ndarray:
    """Returns the tokens that a run has trained on after each of its first steps, int64 (steps,)."""
    spans = spans_of(experiment)
    span_of = np.searchsorted([span.first_step for span in spans], np.arange(steps), side="right") - 1
    return np.cumsum(np.array([span.tokens_per_step for span in spans])[span_of])


def step_tokens(experiment: Experiment) -> list[tuple[int, int]]:
    """Returns (step, tokens) for each step, from 0, at which the number of tokens per batch changes."""
    sizes = [(span.first_step, span.tokens_per_step) for span in spans_of(experiment)]
    return [sizes[i] for i in range(len(sizes)) if i == 0 or sizes[i][1] != sizes[i - 1][1]]


def training_flops(experiment: Experiment) -> float:
    """Returns the floating-point operations of all steps of a run, by `flops.training_flops_per_token`."""
    return sum(
        span.steps * span.tokens_per_step * training_flops_per_token(experiment.model, span.row_length)
        for span in spans_of(experiment)
    )


def run_mesh(experiment: Experiment) -> Mesh:
    """Returns the mesh of the devices that an experiment runs on.

    Raises:
        UserError: they are missing, or do not divide the rows of a step.
    """
    mesh = make_mesh(experiment.mesh, jax.devices())
    for span in spans_of(experiment):
        check_rows(mesh.shape[DATA], mesh.shape[FSDP], span.rows_per_step, experiment.training.micro_batches or 1)
    return mesh


def attention_shape(experiment: Experiment, devices: int = 1) -> AttentionShape:
    """Returns the shape of the attention of configured batches, on each of so many devices."""
    model, training, packing = experiment.model, experiment.training, experiment.packing
    return AttentionShape(
        rows=training.rows_per_step // (training.micro_batches or 1) // devices,
        row_length=packing.row_length,
        heads=model.heads,
        key_value_heads=model.G,
        head_width=model.K,
        dtype=compute_dtype(training),
        # Validation has documents in its rows even if training does not separate them.
        documents_per_row=packing.documents_per_row,
        window=model.sliding_window,
    )


def attention_shapes(experiment: Experiment, devices: int = 1) -> list[AttentionShape]:
    """Returns the shapes of the attention in the steps of a run, in order."""
    return [attention_shape(one, devices) for one in shapes_of(experiment)]


def make_state(
    experiment: Experiment,
    seed: int,
    attention: Implementation | None = None,
    mesh: Mesh | None = None,
    *,
    token_count: int,
    params: nnx.State | None = None,
) -> TrainState:
    """Returns the state before the first step; by default with the attention that suits the device and the shapes.

    It lies on one device, or on a mesh. Nothing is read: the caller passes what a run takes from its tokenizer and from
    the weights that `init_from` names.

    Args:
        token_count: ids that the tokenizer has, which may be fewer than `model.vocabulary_size`.
        params: initial parameters, which are donated; None draws them by the seed, whatever `init_from` names.
    """
    if attention is None:
        shape, *others = attention_shapes(experiment, mesh.size if mesh else 1)
        attention = choose_implementation(experiment.attention, shape, others=others).implementation
    return init_state(
        experiment.model,
        make_optimizer(experiment.optimizer, experiment.training.steps, experiment.model),
        seed=seed,
        attention=attention,
        compute_dtype=compute_dtype(experiment.training),
        micro_batches=experiment.training.micro_batches or 1,
        skip_spikes_above=experiment.training.skip_spikes_above,
        mesh=mesh,
        token_count=token_count,
        params=params,
    )


def science(experiment: Experiment) -> dict:
    """Returns the leaves, by dotted path, that decide what a run learns: they identify it and are compared."""
    return flatten(experiment, science_only=True)
