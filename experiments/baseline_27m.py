"""The baseline at 27 million parameters: 8 blocks of 384 features, on 2.5 billion tokens of FineWeb-EDU.

The three sizes, `baseline_27m`, `baseline_100m` and `baseline_500m`, differ by width, depth, heads and learning rate:
tokenizer, data, their order and the tokens of a step are the same. Any variant can be applied to them:
`--experiment=swiglu --parent=baseline_100m`.

- Length: 38,147 steps of 65,536 tokens are 2.5 billion tokens, each seen once. Ten times as long, 25 billion, is one
  override of the command line, of the parent of a question: `--experiment=full_length --parent=baseline_500m`.
  (`--training.steps=381_470` alone would read the same 2.5 billion tokens ten times.)
- Batch: below the optimum of DeepSeek-AI 2024 (arXiv 2401.02954, equation 3: 0.17, 0.27 and 0.47 million tokens here),
  because one device gains nothing from larger ones, and steps are what so short a run lacks.
- Learning rates: that paper's law for the run's compute, 0.3118 x C^-0.125, times the root of the batch over its
  optimum (Malladi et al. 2022, arXiv 2205.10287), rounded: 1.2e-3, 8e-4 and 5e-4. GPT-3 (Brown et al. 2020, arXiv
  2005.14165, table 2.1) took 6e-4 at 125 and 2.5e-4 at 760 million parameters, on 8 times the batch and far longer.
- Rows of 2,048 tokens at every size: as GPT-3's, and what the sizes are compared on.
- Tasks: their rows are read from `--evaluation.task_data=FOLDER` (or `tfds`); without it only the loss is validated.
"""

import dataclasses

from jaxformer.experiment import CorpusConfig, load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.vocabulary_size": 32_768,  # tokens
            "model.width": 384,  # features
            "model.depth": 8,  # blocks
            "model.heads": 6,  # heads of 64
            "corpus": CorpusConfig(
                kind="parquet",
                path="hf://datasets/HuggingFaceFW/fineweb-edu@87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/"
                "sample/10BT/*.parquet",
                key_field="id",
                licence="ODC-By 1.0",
                validation_share=0.002,  # share of the documents
                tokens=2_500_000_000,  # tokens
            ),
            "tokenizer.vocabulary_size": 32_768,  # tokens, trained on a sample of the corpus
            "tokenizer.training_bytes": 100_000_000,  # bytes of text
            "packing.row_length": 2048,  # tokens
            "optimizer.learning_rate": 1.2e-3,  # per step, at its peak
            "optimizer.warmup_steps": 1000,  # steps
            "training.steps": 38_147,  # updates: 2.5 billion tokens
            "training.rows_per_step": 32,  # rows: 65,536 tokens
            "training.micro_batches": 0,  # chosen for the device's memory
            "training.log_every_steps": 50,  # steps
            "checkpoint.every_steps": 1000,  # steps
            "checkpoint.keep": 2,  # newest checkpoints
            "evaluation.every_steps": 2000,  # steps
            "evaluation.validation_bytes": 20_000_000,  # bytes of text
            "evaluation.rows_per_batch": 32,  # rows
        },
    ),
    question="How well does a plain decoder of 27 million parameters learn from 2.5 billion tokens of FineWeb-EDU?",
)
