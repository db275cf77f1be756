"""baseline at depth 5.

`jaxformer ladder --experiment=baseline --sizes=2,3,4,5,7 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 5,
            "model.heads": 5,
            "model.width": 160,
            "training.rows_per_step": 5,
            "training.steps": 2140,
            "optimizer.warmup_steps": 134,
            "evaluation.every_steps": 535,
            "checkpoint.every_steps": 535,
            "optimizer.learning_rate": 0.0058,
        },
    ),
    question="What does baseline learn at depth 5?",
)
