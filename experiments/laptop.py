"""The baseline at a size for studies on a laptop: 0.3 million parameters, two corpora of prose, a minute a run.

The data are yours, below the folder in which you work: `data/first.jsonl` and `data/second.jsonl` with a field `text`,
and `data/tasks/` with the rows of HellaSwag, ARC easy and WinoGrande. The published study used textbooks of OpenStax,
novels of Standard Ebooks, and 300, 500 and 1,267 rows. Without data, `first` is as large and trains on the embedded
corpus: `jaxformer ablate --study=first`.

Its learning rate is tuned: on three seeds, `jaxformer tune` found 2.350 bits per byte at 4e-3, 2.328 at 5.7e-3, 2.321
at 8e-3 and 2.442 at 1.1e-2, and the best for most runs at 6.7e-3.
"""

import dataclasses

from jaxformer.experiment import CorpusConfig, load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "corpus": CorpusConfig(
                kind="mixture",
                parts=(
                    CorpusConfig(kind="jsonl", path="data/first.jsonl", validation_share=0.05, weight=3.0),
                    CorpusConfig(kind="jsonl", path="data/second.jsonl", validation_share=0.05, weight=1.0),
                ),
            ),
            "tokenizer.vocabulary_size": 2048,
            "model.vocabulary_size": 2048,
            "model.width": 64,
            "model.heads": 2,
            "optimizer.learning_rate": 6.7e-3,
            "training.steps": 600,
            "training.log_every_steps": 50,
            "optimizer.warmup_steps": 50,
            "evaluation.every_steps": 150,
            "evaluation.validation_bytes": 200_000,
            "evaluation.rows_per_batch": 16,
            "evaluation.task_data": "data/tasks",
            "evaluation.task_items": 0,
            "evaluation.sample_tokens": 0,
            "checkpoint.every_steps": 300,
            "checkpoint.keep": 1,
            "checkpoint.keep_best": False,
        },
    ),
    question="What does the baseline learn from textbooks and novels in a minute?",
)
