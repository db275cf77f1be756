"""The baseline at a size for a first study: 0.3 million parameters, the embedded corpus, less than a minute a run.

Its learning rate is tuned: on three seeds, `jaxformer tune` found 2.252 bits per byte at 6e-3, 2.220 at 1.2e-2, 2.623
at 2.4e-2, and the best for most runs at 8.8e-3.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "tokenizer.vocabulary_size": 2048,
            "model.vocabulary_size": 2048,
            "model.width": 64,
            "model.heads": 2,
            "optimizer.learning_rate": 9e-3,
            "optimizer.warmup_steps": 60,
            "training.steps": 600,
            "training.log_every_steps": 50,
            "evaluation.every_steps": 200,
            "evaluation.validation_bytes": 0,
            "evaluation.rows_per_batch": 16,
            "evaluation.sample_tokens": 0,
            "checkpoint.every_steps": 300,
            "checkpoint.keep": 1,
            "checkpoint.keep_best": False,
        },
    ),
    question="What does the baseline learn of Python in less than a minute?",
)
