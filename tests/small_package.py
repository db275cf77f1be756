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
        "model.remat": "none",
        "corpus.tokens": 60_000,
        "corpus.validation_share": 0.2,
        "tokenizer.vocabulary_size": 512,
        "tokenizer.training_bytes": 200_000,
        "tokenizer.processes": 1,
        "packing.row_length": 64,
        "optimizer.warmup_steps": 2,
        "training.steps": 12,
        "training.log_every_steps": 2,
        "checkpoint.every_steps": 6,
        "evaluation.every_steps": 6,
        "evaluation.validation_bytes": 20_000,
        "evaluation.sample_tokens": 8,
    },
    "first": {
        "model.width": 16,
        "model.vocabulary_size": 512,
        "tokenizer.vocabulary_size": 512,
        "optimizer.warmup_steps": 2,
        "training.steps": 12,
        "training.startup_proof": False,
        "training.log_every_steps": 4,
        "checkpoint.every_steps": 12,
        "evaluation.every_steps": 12,
        "evaluation.validation_bytes": 20_000,
    },
}
# A study of such runs keeps nothing: here one change, which pages keep and go on from, is of a second thing that helps.
KEPT = "squared_relu"
CHANGE = ('"model.activation": "relu2"}', '"model.activation": "relu2", "optimizer.embedding_rate": 16.0}, bundle="two"')


def install(folder: Path) -> None:
    """Writes the package into a folder, with the experiments that come with it."""
    shutil.copytree(ROOT / "jaxformer", folder / "jaxformer")
    experiments = folder / "jaxformer" / "experiments"
    shutil.copytree(ROOT / "experiments", experiments)
    for name, values in SMALL.items():
        with (experiments / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write(f"\nfrom jaxformer.experiment import replace\n\nEXPERIMENT = replace(EXPERIMENT, {values!r})\n")
    path = experiments / f"{KEPT}.py"
    text = path.read_text(encoding="utf-8")
    assert CHANGE[0] in text
    path.write_text(text.replace(*CHANGE), encoding="utf-8")
