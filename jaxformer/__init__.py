"""Pretraining of small decoder-only transformers on one GPU or a few, to decide by evidence.

The training path, in the order in which data flows:

    config       how a configuration is declared, checked and overridden
    record       how it is written, read back and compared, with the parts that are code
    table        lookup of rows, with a reproducible gradient
    layers       what layers are made of
    model        the whole architecture
    flops        parameters and operations of a model
    loss_kernels GPU kernels for the loss
    loss         cross-entropy as sums
    optimizer    schedules and Optax chains
    skip_steps   which steps count: finite ones, and no spikes
    step         the pure training step
    loop         the steps of a run
    train        the run, and `python -m jaxformer.train`

The packages that serve it; none imports from one listed below it:

    host         files, locks, signals and the console, without jax
    data         documents to packed batches, without jax
    jobs         runs as processes and queues, without jax
    statistics   paired differences and their errors, with numpy and scipy alone
    tracking     TensorBoard, trackio, Weights & Biases, and your own trackers
    devices      the local device, meshes and processes
    attention    document-masked causal attention, one contract
    evaluation   validation, tasks and samples
    checkpoint   training states saved, verified and restored
    parts        optional architectures from the literature, a file each
    huggingface  import and export of Hugging Face transformers folders
    experiment   questions as files
    run          the folder of a run, and what it reads, writes and prints
    plan         what a run costs, and how it fits a device
    ablation     runs compared, judged and queued
    report       what a study decided, as text and pictures
    commands     the installed program

The names below are what a notebook or an experiment file needs; they are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.ablation.chain import Chain
    from jaxformer.ablation.comparison import compare_runs
    from jaxformer.ablation.screening import Screening
    from jaxformer.ablation.study import Study
    from jaxformer.data.packing import Batch, make_batches
    from jaxformer.evaluation.generate import sample_text
    from jaxformer.evaluation.sampling import Sampling
    from jaxformer.experiment.experiment import Experiment, make_state
    from jaxformer.experiment.resolution import load_experiment
    from jaxformer.experiment.variant import Merge, Promoted, Variant
    from jaxformer.run.export import export_run
    from jaxformer.run.inputs import prepare_data
    from jaxformer.run.trained import load_trained
    from jaxformer.step import compile_step, train_step

    __version__: str

__all__ = [
    "Batch",
    "Chain",
    "Experiment",
    "Merge",
    "Promoted",
    "Sampling",
    "Screening",
    "Study",
    "Variant",
    "__version__",
    "compare_runs",
    "compile_step",
    "export_run",
    "load_experiment",
    "load_trained",
    "make_batches",
    "make_state",
    "prepare_data",
    "sample_text",
    "train_step",
]

_MODULES = {
    "Batch": "data.packing",
    "Experiment": "experiment.experiment",
    "Chain": "ablation.chain",
    "Merge": "experiment.variant",
    "Promoted": "experiment.variant",
    "Sampling": "evaluation.sampling",
    "Screening": "ablation.screening",
    "Study": "ablation.study",
    "Variant": "experiment.variant",
    "compare_runs": "ablation.comparison",
    "compile_step": "step",
    "export_run": "run.export",
    "load_experiment": "experiment.resolution",
    "load_trained": "run.trained",
    "make_batches": "data.packing",
    "make_state": "experiment.experiment",
    "prepare_data": "run.inputs",
    "sample_text": "evaluation.generate",
    "train_step": "step",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxformer")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxformer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
