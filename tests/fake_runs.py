"""Finished runs that nothing trained: the files of training, written by its own functions, with planted effects.

What a run scores is drawn from a seeded model, so that what a comparison finds can be held against what was planted:

    bits per byte of a document = base + document + seed + effect x (1 + document's own) + run + residue

`document` and `residue` are of the document, `seed` is shared by all experiments of a seed, and `run` is the run's own.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import jax
import numpy as np

from jaxformer.ablation.clock import CLOCK, Clock
from jaxformer.ablation.clock import write_clock as write_clock_of
from jaxformer.ablation.comparability import DATA_FIELDS
from jaxformer.ablation.finished_runs import read_runs
from jaxformer.attention.dispatch import Implementation
from jaxformer.data.corpus import part_names
from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.loglikelihood import Encoded
from jaxformer.evaluation.result_files import write_scores, write_validation
from jaxformer.evaluation.scores import flatten_estimates, score_items
from jaxformer.evaluation.task_scores import EncodedTask, TaskScores
from jaxformer.evaluation.tasks import TASKS, TaskData
from jaxformer.evaluation.validation import DocumentLosses, validation_scalars
from jaxformer.experiment.experiment import science
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve
from jaxformer.host.files import write_json
from jaxformer.jobs.queue import STOPPED_EARLY
from jaxformer.run.folder import describe_environment, evaluations_folder, summarise, write_config
from jaxformer.run.identity import identify, identify_evaluation
from jaxformer.run.metrics import BATCH, Writer

# The first run is over then, and each later one a minute after the one before it.
FIRST_ENDS = 1_700_000_000

# A text that would break out of HTML, Markdown or Mermaid if it were not escaped.
HOSTILE = """<script>alert(1)</script> & "quotes" 'single' `ticks` $x^2$ a|b [link](x) --> *bold* _it_ \\ #1; é"""

HEADER = """
from jaxformer.config import replace
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, times
from jaxformer.data.corpus import CorpusConfig
from jaxformer.experiment import Merge, Promoted, Variant, load_experiment
"""


@dataclass(frozen=True)
class Noise:
    """Standard deviations, bits per byte."""

    seed: float = 0.02
    """Of what all experiments share that have a seed."""
    run: float = 0.002
    """Of each run alone."""
    document: float = 0.25
    """Between documents."""
    effect: float = 0.3
    """Of an effect between documents, as a share of it."""
    residue: float = 0.01
    """Between a run's documents, of nothing else."""
    batch: float = 0.12
    """Of the training loss between batches, nats per target; the same batch gives all runs the same."""
    step: float = 0.012
    """Of a run's own training loss at a step."""


def write_experiment(folder: Path, name: str, expression: str) -> Path:
    """Writes the file of an experiment; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(f"{HEADER}EXPERIMENT = {expression}\n")
    return path


def write_root(folder: Path, name: str = "root", *, steps: int = 40, **fields) -> Path:
    """Writes an experiment that stands alone: the baseline of so many steps, evaluated five times.

    Args:
        fields: further values, with `__` for the dots of their paths.
    """
    values = {path.replace("__", "."): value for path, value in fields.items()}
    values |= {"training.steps": steps, "optimizer.warmup_steps": steps // 10, "evaluation.every_steps": steps // 5}
    return write_experiment(folder, name, f"replace(load_experiment('baseline'), {values!r})")


def write_variant(
    folder: Path,
    name: str,
    change: Mapping,
    *,
    parent: str = "root",
    question: str = "Does it help?",
    expected: tuple[float, float] = (-0.02, 0.0),
    source: str = "a guess",
    **more,
) -> Path:
    """Writes an experiment that is one change of a parent."""
    options = {"parent": parent, "question": question, "change": change, "expected": expected, "source": source}
    options |= {"retune": "off", **more}
    return write_experiment(folder, name, f"Variant({', '.join(f'{key}={value!r}' for key, value in options.items())})")


def write_merge(folder: Path, name: str, parents: tuple[str, ...], *, question: str = "Do they add up?") -> Path:
    """Writes an experiment that joins variants."""
    options = {"parents": parents, "question": question, "expected": (-0.02, 0.02), "source": "a guess"}
    return write_experiment(folder, name, f"Merge({', '.join(f'{key}={value!r}' for key, value in options.items())})")


def write_run(
    runs: Path,
    resolved: Resolved,
    seed: int,
    *,
    effect: float = 0.0,
    speed: float = 1.0,
    noise: Noise | None = None,
    documents: int = 30,
    tasks: Sequence[str] = ("hellaswag", "arc_easy", "winogrande"),
    items: int = 60,
    device: str = "",
    ends: int = FIRST_ENDS,
) -> Path:
    """Writes the folder of a finished run; returns it.

    Args:
        effect: bits per byte by which it differs from an experiment without effect.
        speed: relative to a thousand tokens per second.
        documents: for each corpus.
        tasks: names; what they ask is made up.
        items: of each task.
        device: by default the one here.
        ends: when it is over, seconds of Unix time.
    """
    noise = noise or Noise()
    workdir, experiment = _begin(runs, resolved, seed, tasks, items, device)
    about = identify_evaluation(experiment, seed, experiment.training.steps, _tokenizer(experiment))
    folder = evaluations_folder(workdir, experiment.training.steps)
    own = _rng("run", resolved.name, seed)
    shift = noise.seed * _rng("seed", seed).standard_normal() + noise.run * own.standard_normal()
    losses = [
        _document_losses(name, documents, shift, effect, noise, resolved.name, own)
        for name in part_names(experiment.corpus)
    ]
    write_validation(folder, losses, about)
    scalars = {f"validation/{name}": value for name, value in validation_scalars(losses).items()}
    for name in tasks:
        scores = _scores(name, items, shift + effect, own)
        write_scores(folder, scores, about)
        scalars |= flatten_estimates({f"{name}/{key}": value for key, value in scores.estimates().items()})
    _write_metrics(workdir, experiment, seed, effect, speed, noise, own, scalars)
    tokens = experiment.training.steps * experiment.training.rows_per_step * experiment.packing.row_length
    seconds = tokens / (1000.0 * speed)
    summary = summarise(experiment, seed, workdir, seconds, seconds, scalars, None)
    write_json(workdir / "summary.json", summary)
    os.utime(workdir / "summary.json", (ends, ends))
    return workdir


def write_diverged(runs: Path, resolved: Resolved, seed: int, *, step: int = 8) -> Path:
    """Writes the folder of a run that ended by steps that were not finite; returns it."""
    workdir, experiment = _begin(runs, resolved, seed, (), 0, "")
    _write_metrics(workdir, experiment, seed, 0.0, 1.0, Noise(), _rng("run", resolved.name, seed), {}, steps=step)
    (workdir / "faults").mkdir()
    np.savez(workdir / "faults" / f"step_{step}.npz", step=step)
    return workdir


def write_stopped_early(runs: Path, resolved: Resolved, seed: int, *, step: int = 8, reason: str = "hopeless") -> Path:
    """Writes the folder of a run that a queue stopped; returns it."""
    workdir, experiment = _begin(runs, resolved, seed, (), 0, "")
    _write_metrics(workdir, experiment, seed, 0.5, 1.0, Noise(), _rng("run", resolved.name, seed), {}, steps=step)
    write_json(workdir / STOPPED_EARLY, {"step": step, "reason": reason, "device_hours": 0.01})
    return workdir


def write_clock(runs: Path, parent: str, variant: str, ratio: float, *, error: float = 0.004) -> Path:
    """Writes what the clock would have measured of two experiments; returns the file."""
    arms = [read_runs(runs, name).finished[0] for name in (parent, variant)]
    log_ratios = math.log(ratio) + error * np.linspace(-1, 1, 24)
    write_clock_of(Clock(tuple(log_ratios)), *arms)
    return runs / variant / CLOCK


def write_study(
    runs: Path,
    names: Sequence[str],
    *,
    effects: Mapping[str, float] | None = None,
    speeds: Mapping[str, float] | None = None,
    seeds: int | Mapping[str, int] = 3,
    **options,
) -> list[Resolved]:
    """Writes the runs of experiments that are found by name, for seeds from 0 on; returns the experiments.

    Args:
        effects: bits per byte by name, 0 where there is none: against nothing, so that a variant of a variant has the
            sum of both.
        speeds: by name, 1 where there is none.
        seeds: of all, or by name.
        options: of `write_run`.
    """
    ends, found = FIRST_ENDS, []
    for name in names:
        resolved = resolve(name)
        found.append(resolved)
        for seed in range(seeds if isinstance(seeds, int) else seeds[name]):
            effect, speed = (effects or {}).get(name, 0.0), (speeds or {}).get(name, 1.0)
            write_run(runs, resolved, seed, effect=effect, speed=speed, ends=ends, **options)
            ends += 60
    return found


def _begin(runs: Path, resolved: Resolved, seed: int, tasks: Sequence[str], items: int, device: str):
    """Writes `config.json` and the tokenizer; returns the folder and the experiment."""
    experiment = resolved.experiment
    workdir = runs / resolved.name / f"seed_{seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(experiment)
    digests = {"tokenizer": tokenizer.digest}
    for i, name in enumerate(part_names(experiment.corpus)):
        packed = {path: value for path, value in _data(experiment).items() if not path.startswith("training.")}
        digests |= {f"corpus.{i}": _digest("corpus", name), f"plan.{i}": _digest("plan", name, packed, seed)}
    tasks = {name: _task(name, items).items_digest(np.arange(items)) for name in tasks}
    initial = {"path": experiment.init_from, "params": _digest("params", experiment.init_from)}
    initial = initial if experiment.init_from else None
    identity = identify(experiment, seed, initial["params"] if initial else "")
    corpora = {name: {"training_tokens": 10**9} for name in part_names(experiment.corpus)}
    belongs_to = {"identity": identity, "digests": digests, "tasks": tasks, "corpora": corpora}
    environment = describe_environment(Implementation("xla"), device or jax.devices()[0].device_kind, 1)
    lineage = dataclasses.replace(resolved.lineage, init_from=initial)
    write_config(workdir, experiment, lineage, belongs_to, environment, tokenizer, 0)
    return workdir, experiment


def _write_metrics(workdir, experiment, seed, effect, speed, noise, own, scalars, *, steps=None) -> None:
    """Writes `metrics.jsonl`: the loss falls, and the effect grows with it."""
    training, every = experiment.training, experiment.evaluation.every_steps
    wobble, data = 0.003 * own.standard_normal(), _data(experiment)
    final = scalars.get("validation/bits_per_byte", 2.0)
    with Writer(workdir, 0) as writer:
        for step in range(1, (steps or training.steps) + 1):
            batch = int(_digest("batch", seed, step, data)[:12], 16)
            share = (1 - step / training.steps) ** 2
            loss = 2.5 + 5 * (1 + 20 * step / training.steps) ** -0.8 + 1.7 * effect * (1 - share)
            loss += noise.batch * np.random.default_rng(batch).standard_normal() + noise.step * own.standard_normal()
            line = {"train/loss": loss, "train/gradient_norm": 1.0, "train/learning_rate": 1e-3, BATCH: batch}
            line |= {"train/spike_score": 0.0, "train/skipped_steps": 0}
            if step % training.log_every_steps == 0:
                tokens_per_second = 1000 * speed * (1 + wobble + 0.001 * own.standard_normal())
                line |= {"train/tokens_per_second": tokens_per_second, "train/tflops": 0.01}
            writer.write(step, line)
            if step % every == 0 and step < training.steps:
                writer.write(
                    step, {"validation/bits_per_byte": final + 2.2 * share, "validation/loss": 3.0 + 3 * share}
                )
        if scalars:
            writer.write(training.steps, scalars)


def _document_losses(name, documents, shift, effect, noise, experiment, own) -> DocumentLosses:
    fixed, moved = _rng("documents", name), _rng("effect", experiment, name)
    text_bytes = np.maximum(fixed.lognormal(7, 0.8, documents).astype(np.int64), 50)
    bits = 2.0 + noise.document * fixed.standard_normal(documents) + shift
    bits += effect * (1 + noise.effect * moved.standard_normal(documents)) + noise.residue * own.standard_normal(
        documents
    )
    nats = np.maximum(bits, 0.01) * text_bytes * np.log(2)
    return DocumentLosses(
        name,
        np.arange(documents),
        nats,
        np.maximum(text_bytes // 4, 1),
        text_bytes,
        _digest("corpus", name),
        np.arange(documents),
    )


def _task(name: str, items: int) -> TaskData:
    """Returns made-up questions, of which two and two share a source where the task tells it."""
    task, rng = TASKS[name], _rng("task", name)
    found = []
    for i in range(items):
        options = tuple(Option(f"Question {i}:", f" answer {i} {j}") for j in range(task.options or 4))
        found.append(Item(options, int(rng.integers(len(options))), "" if name == "arc_easy" else f"source {i // 2}"))
    return TaskData(task, found, f"data/{name}.jsonl", _digest("task", name))


def _scores(name: str, items: int, shift: float, own: np.random.Generator) -> TaskScores:
    """Returns scores in which a right answer is the likelier, the lower the bits per byte."""
    data, rng = _task(name, items), _rng("answers", name)
    nats, greedy = [], []
    for item in data.items:
        lengths = np.array([len(option.text) for option in item.options])
        per_character = -1.2 - 0.25 * rng.standard_normal(len(item.options)) - 0.02 * own.standard_normal(len(lengths))
        per_character[item.gold] += 0.08 - 0.7 * shift
        nats.append(per_character * lengths)
        greedy.append(bool(per_character[item.gold] > -1.0))
    encoded = Encoded([], *(np.zeros(sum(map(len, nats)), bool) for _ in range(2)))
    return TaskScores(EncodedTask(data, encoded), np.arange(items), nats, score_items(data.items, nats, greedy))


def _tokenizer(experiment) -> SimpleNamespace:
    files = {"tokenizer.model": f"no model: {experiment.tokenizer}".encode()}
    digest = _digest("tokenizer", str(experiment.tokenizer))
    return SimpleNamespace(kind="sentencepiece", digest=digest, files=lambda: files)


def _data(experiment) -> dict:
    """Returns the fields that decide the order of the data."""
    return {path: value for path, value in science(experiment).items() if path.startswith(DATA_FIELDS)}


def _digest(*what) -> str:
    return f"{crc32(json.dumps(what).encode()):08x}" + f"{crc32(json.dumps(what[::-1]).encode()):08x}"


def _rng(*what) -> np.random.Generator:
    return np.random.default_rng([crc32(re.sub(r"@.*", "", str(each)).encode()) for each in what])
