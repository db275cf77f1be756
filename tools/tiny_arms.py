"""Small models that are trained in one process, on pieces of the standard library, in about a second each.

Axes: S seed, I validation document.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxformer.ablation.finished_runs import Documents, FinishedRun
from jaxformer.attention.dispatch import AttentionConfig
from jaxformer.checkpoint.train_state import CheckpointConfig
from jaxformer.config import replace
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.packing import PackingConfig, make_batches, plan_rows
from jaxformer.data.tokenizer import TokenizerConfig
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.validation import validate
from jaxformer.experiment.consequences import SolvedFeedForwardWidth
from jaxformer.experiment.experiment import Experiment, science
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.run.inputs import Data, prepare_data
from jaxformer.step import TrainingConfig, init_state, train_step

LEARNING_RATE, STEPS, ROWS = 2e-3, 150, 8
# Of the corpus: characters of a piece, lines of a document that are cut into pieces, pieces in all.
PIECE, LINES, PIECES = 300, 400, 13_000
# Effects of learning rates, in noise floors of the parent; negative is better.
PLANTED = (-4, -2, -1, 1, 2, 4)
# Natural logarithm of the factor at which the slope of the loss along the learning rate is measured, and on how many
# seeds.
PILOT_STEP, PILOT_SEEDS = 0.15, 6
ARCHITECTURES = {
    "swiglu": {"model.activation": "swiglu"},
    "qk_norm": {"model.qk_norm": True},
    "learned_positions": {"model.learned_positions": 64},
    "layernorm": {"model.norm": "layernorm"},
}


def write_corpus(path: Path) -> None:
    """Writes pieces of the standard library's documents: many short documents, as of a corpus of text."""
    left = PIECES
    with path.open("w", encoding="utf-8") as file:
        for document in load_documents(CorpusConfig(kind="pystdlib")):
            part, number = "", 0
            for line in document.text.splitlines(keepends=True)[:LINES]:
                part += line
                if len(part) >= PIECE and left:
                    file.write(json.dumps({"text": part, "key": f"{document.key} {number}"}) + "\n")
                    part, number, left = "", number + 1, left - 1


def make_parent(corpus: Path, steps: int) -> Experiment:
    """Returns the experiment of which all arms are changes."""
    return Experiment(
        question="Can a verdict be trusted?",
        name="parent",
        model=ModelConfig(vocabulary_size=512, width=32, depth=2, heads=2),
        corpus=CorpusConfig(kind="jsonl", path=str(corpus), key_field="key", validation_share=0.05),
        tokenizer=TokenizerConfig(vocabulary_size=512, processes=1),
        packing=PackingConfig(row_length=64, reader_threads=0, minimum_fill=0.5),
        attention=AttentionConfig(),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=min(20, steps // 2)),
        training=TrainingConfig(steps=steps, rows_per_step=ROWS),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(validation_bytes=120_000, rows_per_batch=64),
    )


class Arm(NamedTuple):
    """The runs of an experiment, by seed from 0 on."""

    experiment: Experiment
    bits_SI: np.ndarray
    """Bits that each validation document takes."""
    bytes_I: np.ndarray
    """UTF-8 bytes of each document."""

    @property
    def bits_per_byte(self) -> np.ndarray:
        """Validation bits per byte of each seed, (S,)."""
        return self.bits_SI.sum(1) / self.bytes_I.sum()

    @property
    def noise(self) -> float:
        """The standard deviation of a run's bits per byte."""
        return float(self.bits_per_byte.std(ddof=1))


class Laboratory:
    """Where arms are trained: the data, which are prepared once, and the progress."""

    def __init__(self, parent: Experiment, bar: tqdm, jobs: int):
        self.data, self.bar, self.jobs = prepare_data(parent, 0), bar, jobs
        self._step = jax.jit(train_step, donate_argnums=0)

    def train(self, experiment: Experiment, seeds: int) -> Arm:
        """Returns the runs of an experiment with seeds from 0 on."""
        optimizer = make_optimizer(experiment.optimizer, experiment.training.steps, experiment.model)
        # A key stands in for the seed, which a trace cannot hold: compiled once, and the same values.
        init = jax.jit(lambda key: init_state(experiment.model, optimizer, seed=key))

        def run(seed: int):
            state = init(jax.random.key(seed))
            plan = plan_rows(self.data.shards[0].tokens, experiment.packing, seed=seed)
            batches = make_batches(self.data.shards, [plan], [1.0], experiment.packing, rows_per_step=ROWS, seed=seed)
            for _ in range(experiment.training.steps):
                state, _ = self._step(state, next(batches))
            # What does not change the loss is taken off, for arms to share the compiled evaluation.
            losses = validate(
                state.replace(opt_state=None, optimizer=None), self.data.validation, experiment.evaluation
            )[0]
            self.bar.update()
            return losses.nats / math.log(2), losses.text_bytes

        with ThreadPoolExecutor(self.jobs) as executor:
            bits, text_bytes = zip(*executor.map(run, range(seeds)), strict=True)
        return Arm(experiment, np.stack(bits), text_bytes[0].astype(np.float64))


def change(parent: Experiment, name: str, values: dict) -> Experiment:
    """Returns the parent with a change, of equal parameters if it is one of the feed-forward."""
    child = replace(parent, values)
    if "model.activation" in values:
        child = replace(child, SolvedFeedForwardWidth()(parent, child))
    return dataclasses.replace(child, name=name)


def plant(parent: Arm, low: Arm, high: Arm, floors: Sequence[float]) -> list[float]:
    """Returns the learning rates that move the parent's loss by so many noise floors.

    On the parabola through the losses of the pilot's rates, below, at and above the parent's.
    """
    middle = parent.bits_per_byte[:PILOT_SEEDS].mean()
    below, above = low.bits_per_byte.mean() - middle, high.bits_per_byte.mean() - middle
    slope, curvature = (above - below) / (2 * PILOT_STEP), (above + below) / (2 * PILOT_STEP**2)
    floor, rates = parent.noise, []
    for number in floors:
        roots = np.roots([curvature, slope, -number * floor])
        real = roots[np.isreal(roots)].real
        if not len(real):
            raise RuntimeError(f"no learning rate moves the loss by {number} floors of {floor:.4f} bits per byte")
        rates.append(LEARNING_RATE * math.exp(real[np.abs(real).argmin()]))
    return rates


def make_evidence(arm: Arm, data: Data, seeds: Iterable[int]) -> list[FinishedRun]:
    """Returns runs of an arm as a comparison reads them from their folders.

    The seeds are called 0, 1, ..., so that runs of other seeds are paired; their batches are not recorded.
    """
    steps, corpus = arm.experiment.training.steps, data.validation[0]
    evidence = []
    for label, seed in enumerate(seeds):
        record = {
            "experiment": arm.experiment.name,
            "question": arm.experiment.question,
            "seed": label,
            "lineage": {"change": {}, "consequences": {}, "overrides": {}},
            "identity": science(arm.experiment),
            "starts": [{"code": "", "versions": {}, "device": ""}],
            "versions": {},
            "digests": {"tokenizer": data.tokenizer.digest},
            "device": "",
            "cores": 1,
        }
        digest = corpus.shards.manifest.corpus_digest
        documents = Documents(
            corpus.documents, arm.bits_SI[seed], arm.bytes_I, digest, identity={}, sources=corpus.documents
        )
        evidence.append(
            FinishedRun(
                workdir=Path(f"seed_{label}"),
                experiment=arm.experiment,
                record=record,
                summary={"steps": steps, "tokens": steps * ROWS * 64, "device_hours": 0.0},
                validation={corpus.name: documents},
                tasks={},
                losses=np.zeros(0),
                batches=np.zeros(0),
                curve=np.array([[steps, arm.bits_per_byte[seed]]]),
            )
        )
    return evidence


def train_arms(parent: Experiment, *, seeds: int, runs: int, jobs: int) -> tuple[Data, dict[str, Arm]]:
    """Returns the data and the arms by name: the parent with `runs` seeds, and its changes with `seeds`."""
    changes = len(PLANTED) + len(ARCHITECTURES)
    with tqdm(total=runs + changes * seeds + 2 * PILOT_SEEDS, desc="training", unit="run", disable=None) as bar:
        laboratory = Laboratory(parent, bar, jobs)
        arms = {"parent": laboratory.train(parent, runs)}
        pilots = [
            laboratory.train(
                replace(parent, {"optimizer.learning_rate": LEARNING_RATE * math.exp(sign * PILOT_STEP)}), PILOT_SEEDS
            )
            for sign in (-1, 1)
        ]
        planted = {
            f"planted {number:+d}": {"optimizer.learning_rate": rate}
            for number, rate in zip(PLANTED, plant(arms["parent"], *pilots, floors=PLANTED), strict=True)
        }
        for name, values in {**planted, **ARCHITECTURES}.items():
            arms[name] = laboratory.train(change(parent, name, values), seeds)
    return laboratory.data, arms
