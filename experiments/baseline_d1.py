"""baseline at depth 1.

`jaxformer ladder --experiment=baseline --sizes=1 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 1,
            "model.heads": 1,
            "model.width": 32,
            "training.rows_per_step": 2,
            "training.steps": 350,
            "optimizer.warmup_steps": 22,
            "evaluation.every_steps": 88,
            "checkpoint.every_steps": 88,
            "optimizer.learning_rate": 0.005,
        },
    ),
    question="What does baseline learn at depth 1?",
)
