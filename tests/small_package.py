"""The package as it is installed, with experiments so small that a run takes moments; nothing else differs."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What is small of the experiments that all others are made of.
SMALL = {
    "baseline": {
        "model.width": 16,
        "model.depth": 2,
        "model.vocabulary_size": 512,
        "model.norm_epsilon": 100.0,  # With it a run learns less.
        "model.remat": "none",
        "corpus.validation_share": 0.2,
        "tokenizer.vocabulary_size": 512,
        "tokenizer.training_bytes": 200_000,
        "tokenizer.processes": 1,
        "packing.row_length": 64,
        "optimizer.learning_rate": 0.02,
        "optimizer.warmup_steps": 2,
        "training.steps": 12,
        "training.log_every_steps": 2,
        "checkpoint.every_steps": 100,
        "evaluation.every_steps": 100,
        "evaluation.validation_bytes": 60_000,
        "evaluation.sample_tokens": 8,
    },
    "first": {
        "model.width": 16,
        "model.vocabulary_size": 512,
        "tokenizer.vocabulary_size": 512,
        "optimizer.learning_rate": 0.02,
        "optimizer.warmup_steps": 2,
        "training.steps": 12,
        "training.startup_proof": False,
        "training.log_every_steps": 4,
        "checkpoint.every_steps": 100,
        "evaluation.every_steps": 100,
        "evaluation.validation_bytes": 60_000,
    },
}
# What else is less, by file: (text, that in its place).
LESS = {
    # Of the standard library, the short files and help topics.
    "data/documents.py": [
        ('if name.endswith(".py")]', 'if name.endswith(".py") and Path(folder, name).stat().st_size < 6_000]'),
        ("return topics\n", "return {name: text for name, text in topics.items() if len(text) < 6_000}\n"),
    ],
    # Steps are timed for a moment, here and for a time per token.
    "plan/run_time.py": [("_TIMED_SECONDS, _LONGEST_STEP = 2.0,", "_TIMED_SECONDS, _LONGEST_STEP = 0.02,")],
    "ablation/clock_measurement.py": [
        ("_TURN_SECONDS = 0.05\n", "_TURN_SECONDS = 0.002\n"),
        ("_SECONDS, _MOST_SECONDS = 40.0, 160.0\n", "_SECONDS, _MOST_SECONDS = 0.1, 0.2\n"),
    ],
    # The runs of a queue have all processors here, so they show how long steps take without a queue, too.
    "run/durations.py": [("mesh, usable_processors(), jax", "mesh, jax")],
    # The processes of a queue are looked at more often.
    "jobs/queue.py": [("every_seconds: float = 0.5)", "every_seconds: float = 0.1)")],
    # A study of such runs keeps nothing. So the change that pages keep, and go on from, is of a second thing, which
    # helps.
    "experiments/squared_relu.py": [
        (
            '"model.activation": "relu2"}',
            '"model.activation": "relu2", "model.norm_epsilon": 1e-6}, bundle="two things"',
        ),
    ],
}
# Writes the experiments that are other sizes of another, with the options that they were made with.
SIZES = "jaxformer ladder --experiment=baseline --sizes=1,2,3,4,5,7 --rates=2:0.0053,3:0.0055 --write"


def install(folder: Path) -> Path:
    """Writes the package into a folder, with the experiments that come with it; returns the folder of the package.

    The other sizes of the baseline are left to `SIZES`, which writes them when it is run there.
    """
    shutil.copytree(ROOT / "jaxformer", folder / "jaxformer")
    experiments = folder / "jaxformer" / "experiments"
    shutil.copytree(ROOT / "experiments", experiments, ignore=shutil.ignore_patterns("baseline_d*.py"))
    for name, values in SMALL.items():
        with (experiments / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write(f"\nfrom jaxformer.experiment import replace\n\nEXPERIMENT = replace(EXPERIMENT, {values!r})\n")
    for name, changes in LESS.items():
        path = folder / "jaxformer" / name
        text = path.read_text(encoding="utf-8")
        for before, after in changes:
            assert text.count(before) == 1, f"{path} has no {before}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")
    return folder / "jaxformer"
