"""baseline at depth 3.

`jaxformer ladder --experiment=baseline --sizes=2,3,4,5,7 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 3,
            "model.heads": 3,
            "model.width": 96,
            "training.rows_per_step": 3,
            "training.steps": 1180,
            "optimizer.warmup_steps": 74,
            "evaluation.every_steps": 296,
            "checkpoint.every_steps": 296,
            "optimizer.learning_rate": 0.0055,
        },
    ),
    question="What does baseline learn at depth 3?",
)
