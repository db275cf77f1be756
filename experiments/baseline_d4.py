"""baseline at depth 4.

`jaxformer ladder --experiment=baseline --sizes=2,3,4,5,7 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 4,
            "model.heads": 4,
            "model.width": 128,
            "training.rows_per_step": 4,
            "training.steps": 1600,
            "optimizer.warmup_steps": 100,
            "evaluation.every_steps": 400,
            "checkpoint.every_steps": 400,
            "optimizer.learning_rate": 0.0057,
        },
    ),
    question="What does baseline learn at depth 4?",
)
