"""All configurations of a run as one value, checked as a whole; and the state and the attention that follow from it."""

import dataclasses
from dataclasses import dataclass

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxformer.attention.dispatch import AttentionConfig, Implementation, choose_implementation
from jaxformer.attention.support import AttentionShape
from jaxformer.checkpoint.train_state import CheckpointConfig
from jaxformer.config import check_fields, execution, require
from jaxformer.data.corpus import CorpusConfig
from jaxformer.data.packing import PackingConfig
from jaxformer.data.tokenizer import TokenizerConfig
from jaxformer.devices.mesh import DATA, FSDP, MeshConfig, check_rows, make_mesh
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, check_schedule, make_optimizer
from jaxformer.record import flatten
from jaxformer.step import TrainingConfig, TrainState, compute_dtype, init_state


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and the configuration whose run answers it."""

    question: str = execution("")
    """What the run is to tell."""
    name: str = execution("")
    """Name of the experiment; set from its file when it is loaded."""
    init_from: str = ""
    """Trained weights to start from, on which all else begins anew: RUN, the folder of a finished run;
    RUN/checkpoints/STEP; or a folder in the form of Hugging Face's transformers. '': the seed draws the weights.
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
            "table that embeds as well has optimizer.embedding_rate",
        )
        require(
            self.model.most_positions == 0 or self.model.most_positions >= self.packing.row_length,
            f"model.learned_positions ({self.model.most_positions}) must be at least "
            f"packing.row_length ({self.packing.row_length})",
        )


def run_mesh(experiment: Experiment) -> Mesh:
    """Returns the mesh of the devices that an experiment runs on.

    Raises:
        UserError: they are not there, or do not divide the rows of a step.
    """
    mesh = make_mesh(experiment.mesh, jax.devices())
    training = experiment.training
    check_rows(mesh.shape[DATA], mesh.shape[FSDP], training.rows_per_step, training.micro_batches or 1)
    return mesh


def attention_shape(experiment: Experiment, devices: int = 1) -> AttentionShape:
    """Returns what attention is computed on in a step of the experiment, on each of so many devices."""
    model, training, packing = experiment.model, experiment.training, experiment.packing
    return AttentionShape(
        rows=training.rows_per_step // (training.micro_batches or 1) // devices,
        row_length=packing.row_length,
        heads=model.heads,
        key_value_heads=model.G,
        head_width=model.K,
        dtype=compute_dtype(training),
        # Validation has documents in its rows even where training does not tell them apart.
        documents_per_row=packing.documents_per_row,
        window=model.sliding_window,
    )


def make_state(
    experiment: Experiment,
    seed: int,
    attention: Implementation | None = None,
    mesh: Mesh | None = None,
    *,
    token_count: int,
    params: nnx.State | None = None,
) -> TrainState:
    """Returns the state before the first step; attention is what suits the device and the shapes if it is not given.

    It lies on one device, or on a mesh. It reads nothing: what a run takes from its tokenizer and from the weights that
    `init_from` names is for the caller to give.

    Args:
        token_count: ids that the tokenizer has, which may be fewer than `model.vocabulary_size`.
        params: parameters to begin with, whose memory it takes over; None draws them by the seed, whatever `init_from`
            names.
    """
    if attention is None:
        shape = attention_shape(experiment, mesh.size if mesh else 1)
        attention = choose_implementation(experiment.attention, shape).implementation
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
    """Returns the leaves, by dotted path, that decide what a run learns: what identifies it and is compared."""
    return flatten(experiment, science_only=True)
