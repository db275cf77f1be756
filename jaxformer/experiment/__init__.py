"""Questions as files: all that a file in `experiments/` imports, in one line.

Most only need `from jaxformer.experiment import Variant`. A file with a whole configuration also imports the class of
each section from here.
"""

from jaxformer.attention.dispatch import AttentionConfig
from jaxformer.checkpoint.retention import CheckpointConfig
from jaxformer.config import replace
from jaxformer.data.corpus import CorpusConfig
from jaxformer.data.documents import Document
from jaxformer.data.packing import PackingConfig
from jaxformer.data.phases import Phase
from jaxformer.data.reader import Reader
from jaxformer.data.tokenizer import TokenizerConfig
from jaxformer.devices.mesh import MeshConfig
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.tasks import Task
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, SolvedWidth, times
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.experiment.resolution import load_experiment, resolve
from jaxformer.experiment.variant import Merge, Promoted, Variant
from jaxformer.layers import Activation, Norm
from jaxformer.model import AuxiliaryLoss, LayerPart, ModelConfig, Residual, Scaling
from jaxformer.optimizer import Decay, Optimizer, OptimizerConfig
from jaxformer.step import TrainingConfig
from jaxformer.tracking.config import TrackingConfig

__all__ = [
    "Activation",
    "AttentionConfig",
    "AuxiliaryLoss",
    "CheckpointConfig",
    "CorpusConfig",
    "Decay",
    "Document",
    "EvaluationConfig",
    "Experiment",
    "Item",
    "LayerPart",
    "Merge",
    "MeshConfig",
    "ModelConfig",
    "Norm",
    "Optimizer",
    "OptimizerConfig",
    "Option",
    "PackingConfig",
    "Phase",
    "Promoted",
    "Reader",
    "Residual",
    "Scaling",
    "SolvedFeedForwardWidth",
    "SolvedWidth",
    "Task",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainingConfig",
    "Variant",
    "load_experiment",
    "make_state",
    "replace",
    "resolve",
    "times",
]
