"""The baseline at 500 million parameters: 42 blocks of 960 features; `baseline_27m` says what the sizes share."""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline_27m"),
        {
            "model.width": 960,  # features
            "model.depth": 42,  # blocks
            "model.heads": 15,  # heads of 64
            "optimizer.learning_rate": 5e-4,  # per step, at its peak
        },
    ),
    question="How well does a plain decoder of 500 million parameters learn from 2.5 billion tokens of FineWeb-EDU?",
)
