"""baseline at depth 2.

`jaxformer ladder --experiment=baseline --sizes=2,3,4,5,7 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 2,
            "model.heads": 2,
            "model.width": 64,
            "training.rows_per_step": 2,
            "training.steps": 880,
            "optimizer.warmup_steps": 55,
            "evaluation.every_steps": 221,
            "checkpoint.every_steps": 221,
            "optimizer.learning_rate": 0.0053,
        },
    ),
    question="What does baseline learn at depth 2?",
)
