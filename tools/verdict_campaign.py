"""Puts verdicts to the proof: `python tools/verdict_campaign.py [--seeds=24] [--pairs=20] [--equals=2000]`.

With `--simulated` nothing is trained: differences are drawn from models of which the truth is known, and a table shows
what the rule promises and what was counted (`simulated_rule.py`; ten minutes on a core). With `--clock` the paired
clock times small models beside themselves, one of them compiled and run first, and beside some that take longer, each
pair in a process of its own: it also is to be run on a busy machine. Otherwise small models are
trained on pieces of the standard library, hundreds of runs of about a second, and their comparisons go through the
whole rule:

1. Equals: arms that differ by their seeds alone, really trained, redrawn and simulated, at each analysis and up to the
   first decision; and arms whose mean is moved to the parent's, with the prior that other arms give, among them such as
   scatter far more than those. The rule is to keep at most 2.5 % of them, and to revert at most 2.5 %.
2. Planted effects: the parent at learning rates that make it worse or better by about 1, 2 and 4 noise floors, and how
   often the interval finds them.
3. Pairing: how much less the differences scatter for the same seeds and documents.

An effect is the mean over all seeds of an arm; a draw takes K of them without replacement, and documents with. Drawn
means therefore spread by sqrt(1 - K / seeds) of what the rule counts on, and errors of rates that are redrawn from the
same runs are larger than binomial ones. Exit status 1 if equals are kept or reverted in more than 2.5 % for certain,
but for those of one arm that are redrawn: its few seeds are reported as what they are.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from bench_step import in_a_process
from noise_model import judge_equals, measure, redraw
from scipy import stats
from simulated_rule import simulate
from tiny_arms import PILOT_SEEDS, PLANTED, STEPS, Arm, make_parent, train_arms, write_corpus
from tqdm import tqdm
from versions import versions

from jaxformer.ablation.clock import Clock
from jaxformer.ablation.clock_measurement import make_timed_steps, time_in_turns
from jaxformer.ablation.cost import Cost
from jaxformer.ablation.records import to_json
from jaxformer.ablation.verdict import Measured, Rule, Word, decide
from jaxformer.config import replace
from jaxformer.experiment.experiment import Experiment
from jaxformer.run.inputs import Data
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level

RESULTS = Path(__file__).parent / "results" / "verdicts_cpu.json"
# Share of equals that may be kept, and that may be reverted.
MOST = 0.025
# Seeds at which it is shown how often effects are found.
SHOWN = (3, 5, 8)
# Changes that take longer.
SLOWER = {"3 blocks for 2": {"model.depth": 3}, "LayerNorm": {"model.norm": "layernorm"}}


class Found(NamedTuple):
    """How often an effect is found, of all draws."""

    arm: str
    effect_in_floors: float
    seeds: int
    moderated: bool
    """With the prior that the other arms give."""
    seen: float
    wrong: float
    """`seen` and `wrong`: that the interval excludes 0 on the right side, and on the other."""


def find_effect(arms: dict[str, Arm], name: str, draws: int, random: np.random.Generator) -> list[Found]:
    """Returns how often an arm's effect is found at some analyses, without the prior and with it."""
    truth, found = measure(arms["parent"], arms[name]), []
    for seeds, moderated in [(seeds, moderated) for moderated in (False, True) for seeds in SHOWN]:
        drawn = [redraw(arms, name, seeds, random, moderated=moderated) for _ in range(draws)]
        ends = np.array([one.difference(seeds).interval(1 - interim_level(seeds)) for one in drawn]) + truth.effect
        above, below = float((ends[:, 0] > 0).mean()), float((ends[:, 1] < 0).mean())
        seen, wrong = (above, below) if truth.effect > 0 else (below, above)
        found.append(Found(name, truth.effect / arms["parent"].noise, seeds, moderated, seen, wrong))
    return found


class Pairing(NamedTuple):
    """What the same seeds save."""

    arm: str
    effect_in_floors: float
    """The arm's own."""
    correlation: float
    """Correlation of the arm's and the parent's bits per byte over seeds."""
    noise_ratio: float
    """Standard deviation of paired differences, divided by that of differences of unpaired runs."""
    runs_ratio: float
    """Runs that find the same effect without pairing by seed, divided by those that do with it: its inverse square."""


def measure_pairing(name: str, parent: Arm, arm: Arm) -> Pairing:
    """Returns what pairing saves."""
    truth, floor = measure(parent, arm), parent.noise
    ratio = truth.standard_deviation / math.hypot(truth.noise, floor)
    return Pairing(name, truth.effect / floor, truth.correlation, ratio, ratio**-2)


def rate(counts: Counter, word: Word) -> dict[str, float]:
    """Returns the share of a word with its 95 % bounds."""
    low, high = stats.binomtest(counts[word], counts.total()).proportion_ci()
    return {"rate": counts[word] / counts.total(), "low": float(low), "high": float(high)}


def print_table(title: str, names: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Prints a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for row in rows:
        print("| " + " | ".join("-" if value is None else str(value) for value in row) + " |")


def print_simulated(studies: int) -> int:
    """Prints what the rule promises beside what is counted, a line each; returns the exit status."""
    print("| of the rule | counted | |\n| --- | ---: | --- |", flush=True)
    broken = 0
    for line in simulate(studies):
        note = f"known: {line.why_not}" if line.why_not else "" if line.holds else "broken"
        broken += not line.holds and not line.why_not
        print(f"| {line.model} | {line.found} | {note} |", flush=True)
    return 1 if broken else 0


def report(arms: dict[str, Arm], data: Data, *, pairs: int, equals: int, draws: int) -> tuple[dict, list[str]]:
    """Prints the tables; returns all numbers, and a line on each rate of wrong decisions that is too high."""
    random, parent = np.random.default_rng(0), arms["parent"]
    names = [name for name in arms if name != "parent"]
    print(f"noise floor {parent.noise:.4f} bits per byte of {parent.bits_per_byte.mean():.4f}")

    judged, rows, problems = {}, [], []
    for name, counts in judge_equals(arms, data, pairs, equals, random).items():
        rates = {word.value: rate(counts, word) for word in (Word.KEEP, Word.REVERT)}
        words = {word.value: count for word, count in counts.items()}
        judged[name] = {"comparisons": counts.total(), "words": words, **rates}
        cells = [f"{one['rate']:.1%} ({one['low']:.1%} to {one['high']:.1%})" for one in rates.values()]
        rows.append((name, counts.total(), *cells))
        # A few real seeds of the widest arm are no normal distribution: with one that ends badly, an arm that is equal
        # in the mean is better in most draws without it. That is reported; what the rule promises is held to.
        is_of_one_arm = name.startswith("prior, redrawn, ") and name.count(", ") == 3
        if not is_of_one_arm:
            problems += [
                f"{name}: {word} of equals in {one['rate']:.1%}" for word, one in rates.items() if one["low"] > MOST
            ]
    print_table("Equals", ("arms", "comparisons", "KEEP", "REVERT"), rows)

    planted = [f"planted {number:+d}" for number in PLANTED]
    effects = {name: find_effect(arms, name, draws, random) for name in tqdm(planted, desc="effects", disable=None)}
    rows = [
        (
            name,
            f"{found[0].effect_in_floors:+.2f}",
            *(f"{one.seen:.0%}" for one in found),
            f"{max(one.wrong for one in found):.1%}",
        )
        for name, found in effects.items()
    ]
    analyses = [f"{seeds} seeds{', prior' * moderated}" for moderated in (False, True) for seeds in SHOWN]
    print_table("Effects: found", ("arm", "floors", *analyses, "wrong side"), rows)

    pairing = [measure_pairing(name, parent, arms[name]) for name in names]
    columns = ("arm", "floors", "correlation", "noise of pairs / of others", "runs of others / of pairs")
    print_table("Pairing", columns, [(one.arm, *(f"{value:.3f}" for value in one[1:])) for one in pairing])
    numbers = {
        "noise_floor": parent.noise,
        "bits_per_byte": float(parent.bits_per_byte.mean()),
        "learning_rates": {name: arm.experiment.optimizer.learning_rate for name, arm in arms.items()},
        "arms": {name: measure(parent, arms[name])._asdict() for name in names},
        "equals": judged,
        "effects": [one._asdict() for found in effects.values() for one in found],
        "pairing": [one._asdict() for one in pairing],
    }
    return numbers, problems


class Timed(NamedTuple):
    """What the paired clock found of a pair."""

    ratio: float
    low: float
    high: float
    rounds: int
    seconds: float
    word: Word
    """What is decided where the losses are equal."""


def time_pair(parent: Experiment, variant: Experiment) -> Timed:
    """Returns what the paired clock finds; the parent's steps are compiled, and run for a while, before the other's."""
    first = make_timed_steps(parent, 0)
    first.take(200)
    arms, started = (first, make_timed_steps(variant, 0)), time.perf_counter()
    clock = Clock(tuple(time_in_turns(arms)))
    seconds = time.perf_counter() - started
    cost = Cost(clock.ratio, clock.interval, 1.0, 1.0, 1.0)
    equal = Measured(Difference(0.0, 1e-8, math.inf), INTERIM_SEEDS[0], 0.01, cost, 1.0)
    return Timed(clock.ratio, *clock.interval, len(clock.log_ratios), seconds, decide(equal, Rule()).word)


def print_clock(trials: int) -> int:
    """Prints what the paired clock finds, a line a trial; returns the exit status: 1 where equals are not equal."""
    columns, wrong = ("arm", "ratio", "99 % interval", "rounds", "seconds", "at equal losses"), 0
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="verdict_campaign_") as folder:
        os.environ["JAXFORMER_CACHE"] = folder
        corpus = Path(folder) / "pieces.jsonl"
        write_corpus(corpus)
        parent = make_parent(corpus, STEPS)
        for name, values in [("itself", {})] * trials + [*SLOWER.items()]:
            found = in_a_process(time_pair, parent, replace(parent, values))
            interval = f"[{found.low:.3f}, {found.high:.3f}]"
            cells = (name, f"{found.ratio:.3f}", interval, str(found.rounds), f"{found.seconds:.0f}", found.word.value)
            print(f"| {' | '.join(cells)} |", flush=True)
            wrong += not values and (abs(found.ratio - 1) > 0.03 or found.word is Word.CHEAPER)
    print(f"{wrong} of {trials} pairs of equals are not within 3 %, or called cheaper; load {os.getloadavg()[1]:.1f}")
    return 1 if wrong else 0


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help="of each arm; at least 24")
    parser.add_argument("--pairs", type=int, default=20, help="of equal arms of 3 trained runs each")
    parser.add_argument("--equals", type=int, default=2000, help="comparisons of equals of each kind")
    parser.add_argument(
        "--simulated", type=int, nargs="?", const=6000, metavar="STUDIES", help="train nothing: of each model"
    )
    parser.add_argument("--clock", type=int, nargs="?", const=20, metavar="TRIALS", help="train nothing: time steps")
    parser.add_argument("--draws", type=int, default=500, help="of seeds and documents for each rate of effects found")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.clock:
        return print_clock(options.clock)
    if options.simulated:
        return print_simulated(options.simulated)
    if options.seeds < INTERIM_SEEDS[-1]:
        parser.error(f"--seeds ({options.seeds}) must be at least {INTERIM_SEEDS[-1]}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="verdict_campaign_") as folder:
        os.environ["JAXFORMER_CACHE"] = folder
        corpus = Path(folder) / "pieces.jsonl"
        write_corpus(corpus)
        runs = max(2 * INTERIM_SEEDS[0] * options.pairs, options.seeds, 2 * INTERIM_SEEDS[-1])
        parent = make_parent(corpus, options.steps)
        data, arms = train_arms(parent, seeds=options.seeds, runs=runs, jobs=options.jobs)
        trained = time.perf_counter() - started
        numbers, problems = report(arms, data, pairs=options.pairs, equals=options.equals, draws=options.draws)
    record = {
        "device": jax.default_backend(),
        "versions": versions("jax", "flax", "optax", "numpy", "scipy"),
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "runs": sum(len(arm.bits_SI) for arm in arms.values()) + 2 * PILOT_SEEDS,
        "training_seconds": trained,
        "seconds": time.perf_counter() - started,
        **numbers,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(to_json(record), indent=2) + "\n", encoding="utf-8")
    print(f"\n{record['runs']} runs, {record['seconds']:.0f} s, {trained:.0f} of them training")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
