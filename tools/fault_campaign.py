"""Kills runs and flips bits at random: `python tools/fault_campaign.py [--kills=40] [--flips=200] [--seed=0]`.

For each of several configurations a small run is left alone, and others are killed at random moments, by SIGKILL,
SIGTERM or SIGINT, and started again by the same command until they are finished. Each must end as the one that was left
alone: parameters, optimizer state, guard, position in the data, every loss and validation, and the sample, bit by bit.
Then single bits of a checkpoint are flipped: whatever changes a restored value must be noticed, and a run that is
resumed must end the same. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxformer.attention.dispatch import implementation_from
from jaxformer.checkpoint.train_state import open_checkpoints, restore
from jaxformer.config import UserError
from jaxformer.experiment.experiment import make_state
from jaxformer.run.folder import load_run, run_tokenizer
from jaxformer.run.metrics import read_metrics
from jaxformer.run.progress import TIMES

EXPERIMENT = """
from jaxformer.attention.dispatch import AttentionConfig
from jaxformer.checkpoint.train_state import CheckpointConfig
from jaxformer.data.corpus import CorpusConfig
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.experiment.experiment import Experiment
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.data.packing import PackingConfig
from jaxformer.step import TrainingConfig
from jaxformer.data.tokenizer import TokenizerConfig

EXPERIMENT = Experiment(
    question="Does a run that was killed end as if it had not been?",
    model=ModelConfig(vocabulary_size=400, width=32, depth=2, heads=2),
    corpus={corpus},
    tokenizer=TokenizerConfig(vocabulary_size=400, processes=1),
    packing=PackingConfig(row_length=64, method={method!r}, reader_threads={reader_threads}, minimum_fill=0.5),
    attention=AttentionConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
    training=TrainingConfig(
        steps={steps}, rows_per_step=4, micro_batches={micro_batches}, log_every_steps=5, skip_spikes_above={spikes}
    ),
    checkpoint=CheckpointConfig(every_steps=8, keep=2, keep_every_steps=32),
    evaluation=EvaluationConfig(every_steps=20, validation_bytes=200, rows_per_batch=2, sample_tokens=5),
)
"""
# A folder whose name means something to a shell, a pattern, a format and a URL.
ODD = "x[1]*?\\'\"$%#~ é\n"
# Corpora, cache and run folders lie `below` a folder of this name.
PLAIN = {"corpus": "one", "method": "best_fit", "reader_threads": 1, "micro_batches": 1, "spikes": 0.0, "below": ""}
CONFIGURATIONS = {
    "best_fit": PLAIN,
    "concat_and_split": PLAIN | {"method": "concat_and_split"},
    "mixture_in_micro_batches": PLAIN | {"corpus": "two", "micro_batches": 2},
    "three_readers_skipping_spikes": PLAIN | {"reader_threads": 3, "spikes": 1.5},
    "mixture_split_without_readers": PLAIN | {"corpus": "two", "method": "concat_and_split", "reader_threads": 0},
    "mixture_below_an_odd_name": PLAIN | {"corpus": "two", "reader_threads": 3, "below": ODD},
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = 80
RESULTS = ("status", "steps", "tokens", "train/loss", "validation/loss", "validation/bits_per_byte", "best_checkpoint")


def write_experiments(folder: Path) -> dict[str, Path]:
    """Writes the experiment files, and two corpora of made-up words for each place; returns the files by name."""
    for place in {fields["below"] for fields in CONFIGURATIONS.values()}:
        (folder / place).mkdir(exist_ok=True)
        texts = write_corpora(folder / place)
        for name, fields in CONFIGURATIONS.items():
            if fields["below"] == place:
                text = EXPERIMENT.format(**fields | {"corpus": texts[fields["corpus"]], "steps": STEPS})
                (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.py" for name in CONFIGURATIONS}


def write_corpora(folder: Path) -> dict[str, str]:
    """Writes two corpora; returns the configuration of the first, and that of their mixture."""
    choices = random.Random(0)
    lexicon = ["".join(choices.choices("bdfgklmnprstaeiou", k=choices.randint(2, 9))) for _ in range(300)]
    corpora = []
    for part, documents in enumerate((900, 400)):
        path = folder / f"corpus_{part}.jsonl"
        texts = (" ".join(choices.choices(lexicon, k=choices.randint(2, 16))) for _ in range(documents))
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        corpora.append(f"CorpusConfig(kind='jsonl', path={str(path)!r}, validation_share=0.1, weight={1 + 2 * part})")
    return {"one": corpora[0], "two": f"CorpusConfig(kind='mixture', parts=({', '.join(corpora)}))"}


def place_of(folder: Path, name: str) -> Path:
    """Returns the folder for the runs of a configuration, in that of a campaign."""
    return folder / CONFIGURATIONS[name]["below"] / name


class Campaign:
    """Where the runs are, and what they share: token shards and compiled programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.experiments = write_experiments(folder)
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    @contextlib.contextmanager
    def start(self, name: str, workdir: Path):
        """Starts the command of a configuration in a run folder; what it prints is appended to `WORKDIR.log`."""
        command = [sys.executable, "-m", "jaxformer.train", f"--experiment={self.experiments[name]}", "--seed=3"]
        cache = {"JAXFORMER_CACHE": str(place_of(self.folder, name).with_name("cache"))}
        with (
            workdir.with_suffix(".log").open("a", encoding="utf-8") as log,
            subprocess.Popen(
                [*command, f"--workdir={workdir}"], env=self._environment | cache, stdout=log, stderr=log
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def leave_alone(self, name: str, attempts: Sequence[str]) -> tuple[Path, float]:
        """Returns the last folder of runs that nothing stopped, and its seconds; the first prepares what all share."""
        seconds = 0.0
        for attempt in attempts:
            workdir = place_of(self.folder, name) / attempt
            workdir.parent.mkdir(exist_ok=True)
            started = time.perf_counter()
            with self.start(name, workdir) as process:
                if process.wait() != 0:
                    raise RuntimeError(f"{workdir}.log: a run that nothing stopped ended with {process.returncode}")
            seconds = time.perf_counter() - started
        return workdir, seconds

    def kill(self, name: str, kills: int, seed: int, at_step: int | None, bar: tqdm) -> list[str]:
        """Kills runs of a configuration so many times; returns a line on each thing that differs."""
        expected, seconds = self.leave_alone(name, ("left_alone",) if at_step else ("prepared", "left_alone"))
        choices, problems, killed, number = random.Random(f"{name} {seed}"), [], 0, 0
        while killed < kills:
            number += 1
            workdir = place_of(self.folder, name) / f"killed_{number}"
            while not (workdir / "summary.json").exists():
                with self.start(name, workdir) as process:
                    written = steps_written(workdir)
                    at = at_step and max(at_step, written + 1)
                    moment = (at, 0.0) if at else random_moment(choices, written, seconds)
                    if killed < kills and wait_for(process, workdir, *moment):
                        sent = signal.SIGKILL if at_step else choices.choice(SIGNALS)
                        process.send_signal(sent)
                        killed += 1
                        bar.update()
                        problems += died_otherwise(process, sent, str(workdir))
                    elif process.wait() != 0:
                        problems.append(f"{workdir} ended with {process.returncode}; see its log")
                        break
            problems += [f"{workdir}: {difference}" for difference in differences(workdir, expected)]
        return problems


def random_moment(choices: random.Random, written: int, seconds: float) -> tuple[int, float]:
    """Returns when a run of so many seconds is killed that has written so many steps: a step, and seconds after it.

    One in four is at any time after its start, also before anything is trained; the others are soon after a step that
    it has not written yet, so that it does not matter how fast it is now.
    """
    if choices.random() < 0.25:
        return 0, choices.uniform(0, seconds)
    return choices.randint(min(written + 1, STEPS), STEPS), choices.uniform(0, seconds / STEPS)


def wait_for(process: subprocess.Popen, workdir: Path, step: int, seconds: float) -> bool:
    """Waits until a run has written a step, and some seconds more; returns whether it was still going on then."""
    while process.poll() is None and steps_written(workdir) < step:
        time.sleep(0.005)
    time.sleep(seconds)
    return process.poll() is None


def steps_written(workdir: Path) -> int:
    """Returns the last step in the metrics of a run; 0 for none."""
    return max((line["step"] for line in read_metrics(workdir)), default=0)


def times_resumed(folder: Path) -> int:
    """Returns how often the killed runs of a configuration went on from a checkpoint."""
    logs = [path.read_text(encoding="utf-8") for path in folder.glob("killed_*.log")]
    return sum(line.startswith("resumed from step") for log in logs for line in log.splitlines())


def died_otherwise(process: subprocess.Popen, sent: signal.Signals, what: str) -> list[str]:
    """Returns a line unless a process dies of a signal as it should: by it, or saying so with 128 + its number."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        return [f"{what}: {sent.name} did not end it within 60 s"]
    # A signal may come before the command has taken it over, or when there is nothing left to do.
    if process.returncode in (-sent, 128 + sent, 0):
        return []
    return [f"{what}: {sent.name} ended it with {process.returncode}"]


def differences(workdir: Path, expected: Path) -> list[str]:
    """Returns in what the last state, the metrics and the results of two finished runs differ."""
    try:
        ours, theirs = last_state(workdir), last_state(expected)
    except (UserError, FileNotFoundError) as error:
        return [str(error)]
    found = sorted(ours.keys() ^ theirs.keys())
    found += [name for name in ours if name in theirs and not np.array_equal(ours[name], theirs[name])]
    lines = [
        [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder)]
        for folder in (workdir, expected)
    ]
    if lines[0] != lines[1]:
        found.append("metrics.jsonl")
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (workdir, expected)]
    found += [f"summary's {name}" for name in RESULTS if summaries[0][name] != summaries[1][name]]
    for name in ("sample.txt", "samples.jsonl"):
        if (workdir / name).read_bytes() != (expected / name).read_bytes():
            found.append(name)
    return [f"{name} differs" for name in found]


def last_state(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of a run's last checkpoint by name, and the position in the data."""
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        restored = restore(checkpoints, empty_state(workdir))
    leaves = jax.tree_util.tree_leaves_with_path(restored.state)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    return arrays | {"data": np.array(json.dumps(restored.data_state))}


def empty_state(workdir: Path):
    """Returns the state of a run before its first step."""
    experiment, record = load_run(workdir)
    token_count = run_tokenizer(workdir, record).vocabulary_size
    return make_state(experiment, record["seed"], implementation_from(record["attention"]), token_count=token_count)


def flip_bits(workdir: Path, flips: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Flips single bits of a run's last checkpoint, each alone; returns how many were what, and what went unnoticed."""
    checkpoints_folder, choices = workdir / "checkpoints", random.Random(seed)
    state = empty_state(workdir)
    with open_checkpoints(checkpoints_folder) as checkpoints:
        *_, older, newest = checkpoints.steps()
        whole = {step: restore(checkpoints, state, step) for step in (older, newest)}
        files = [path for path in (checkpoints_folder / str(newest)).rglob("*") if path.is_file()]
        files = sorted(path for path in files if path.stat().st_size)
        sizes = [path.stat().st_size for path in files]
        counts, problems = {"noticed": 0, "without effect": 0, "unnoticed": 0}, []
        for number in tqdm(range(flips), desc="flipping bits", disable=None):
            # Every file once, then by size.
            path = files[number] if number < len(files) else choices.choices(files, sizes)[0]
            content = path.read_bytes()
            bit = choices.randrange(8 * len(content))
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            restored = restore(checkpoints, state)
            path.write_bytes(content)
            expected = whole[int(restored.state.step)]
            pairs = zip(jax.tree.leaves(restored[:3]), jax.tree.leaves(expected[:3]), strict=True)
            if not all(np.array_equal(x, y) for x, y in pairs):
                counts["unnoticed"] += 1
                problems.append(f"bit {bit} of {path}: restored other values")
            else:
                counts["noticed" if restored.damaged else "without effect"] += 1
    return counts, problems


def resume_damaged(campaign: Campaign, name: str, expected: Path, seed: int) -> list[str]:
    """Flips a bit in the arrays of a run's last checkpoint and runs the command; returns what differs in the end."""
    workdir = shutil.copytree(expected, place_of(campaign.folder, name) / f"damaged_{seed}")
    (workdir / "summary.json").unlink()
    newest = max((path for path in (workdir / "checkpoints").iterdir()), key=lambda path: int(path.name))
    path = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
    path.write_bytes(content)
    with campaign.start(name, workdir) as process:
        process.wait()
    log = workdir.with_suffix(".log").read_text(encoding="utf-8")
    if f"checkpoint {newest.name} in {workdir}/checkpoints is damaged" not in log:
        return [f"{workdir}: the damage was not reported"]
    return [f"{workdir}: {difference}" for difference in differences(workdir, expected)]


def run_campaign(
    folder: Path, *, kills: int, flips: int, seed: int, names: list[str], jobs: int, at_step: int | None = None
) -> list[str]:
    """Runs a campaign in an empty folder, prints what it did, and returns a line on each thing that differs.

    Args:
        folder: an empty one.
        kills: over all configurations.
        flips: of single bits of a checkpoint.
        seed: of moments, signals and bits.
        names: of configurations.
        jobs: configurations at once.
        at_step: kills by SIGKILL as soon as a run has written this step, in place of at random moments.
    """
    campaign = Campaign(folder)
    shares = [kills // len(names) + (number < kills % len(names)) for number in range(len(names))]
    with tqdm(total=kills, desc="killing", unit="kill", disable=None) as bar, ThreadPoolExecutor(jobs) as executor:
        tasks = {
            name: executor.submit(campaign.kill, name, share, seed, at_step, bar)
            for name, share in zip(names, shares, strict=True)
        }
        found = {name: task.result() for name, task in tasks.items()}
    for name, share in zip(names, shares, strict=True):
        place = place_of(folder, name)
        runs, resumed = len(list(place.glob("killed_*.log"))), times_resumed(place)
        print(f"{name:30} {share:3} kills, {runs} runs, {resumed:2} times resumed: {len(found[name])} differences")
    problems = [line for lines in found.values() for line in lines]
    if kills and not any(times_resumed(place_of(folder, name)) for name in names):
        problems.append("no run was resumed from a checkpoint, so that nothing was proved")
    if flips:
        expected = place_of(folder, names[0]) / "left_alone"
        counts, unnoticed = flip_bits(shutil.copytree(expected, folder / "flipped"), flips, seed)
        resumed = [line for number in range(3) for line in resume_damaged(campaign, names[0], expected, seed + number)]
        print(f"{flips} bits flipped, each alone: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        print(f"3 runs resumed from a checkpoint with a flipped bit: {len(resumed)} differences")
        problems += unnoticed + resumed
    print(f"{len(problems)} differences")
    return problems


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="over all configurations")
    parser.add_argument("--flips", type=int, default=200, help="of single bits of a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and bits")
    parser.add_argument("--jobs", type=int, default=2, help="configurations at once")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fault_campaign_") as folder:
        fields = vars(options)
        problems = run_campaign(Path(folder), names=list(CONFIGURATIONS), **fields)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
