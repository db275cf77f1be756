"""The baseline at 100 million parameters: 16 blocks of 640 features; `baseline_27m` says what the sizes share."""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline_27m"),
        {
            "model.width": 640,  # features
            "model.depth": 16,  # blocks
            "model.heads": 10,  # heads of 64
            "optimizer.learning_rate": 8e-4,  # per step, at its peak
        },
    ),
    question="How well does a plain decoder of 100 million parameters learn from 2.5 billion tokens of FineWeb-EDU?",
)
