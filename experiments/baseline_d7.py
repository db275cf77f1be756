"""baseline at depth 7.

`jaxformer ladder --experiment=baseline --sizes=2,3,4,5,7 --rates=2:0.0053,3:0.0055` made it.
"""

import dataclasses

from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("baseline"),
        {
            "model.depth": 7,
            "model.heads": 7,
            "model.width": 224,
            "training.rows_per_step": 7,
            "training.steps": 3579,
            "optimizer.warmup_steps": 224,
            "evaluation.every_steps": 895,
            "checkpoint.every_steps": 895,
            "optimizer.learning_rate": 0.0061,
        },
    ),
    question="What does baseline learn at depth 7?",
)
