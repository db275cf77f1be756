"""How often a verdict on transfer is wrong, over laws that are known: nothing is trained.

    python tools/simulated_transfer.py --out=tools/results/transfer
    python tools/simulated_transfer.py --designs

The first command asks, in each cell of sizes, seeds and distance to the target, 130 questions of each law below, and
writes `transfer.json` and `transfer.png`: how often each word comes out, how often it is wrong, how often the effect at
the target lies in its interval. TRANSFERS and REVERSES are wrong where the effect at the target has the other sign or
is 0, FADES where it exceeds the margin. That is counted of the laws that are gradual, and of a mixture in which one
question in twenty is of the three that break off somewhere, uniformly along the logarithm of the compute from the
smallest size to 1.5 times as far as the target. The second holds the closed form of a design's power against this rule.

Sizes are a factor 4 of compute apart. The standard deviation of one seed's paired difference is drawn between 0.006 and
0.02 bits per byte at the smallest size, and falls by 0.7 from size to size down to 0.003; effects at the smallest size
are between 0.003 and 0.1 on either side, documents have a standard error of 0.0015, half of it the same at all sizes.

Axes: Q question, N size, L size or target, S seed.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from jaxformer.report.style import INK, drawing, make_figure, save_png
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.transfer import CONFIDENCE, Effect, Transfer, Word, decide, error_covariance, predict_effect
from jaxformer.statistics.transfer_design import SizeOption, transfer_power

MARGIN, DOCUMENTS, VALIDATED = 0.005, 0.0015, 24
STEP = math.log(4)
# Laws whose change no size may show, since it can lie between the largest one and the target.
BREAKS, BREAKING = ("stops", "jumps", "flips"), 0.05


def laws(decades_L: np.ndarray, first_Q: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the effects (Q, L) by each law, of changes of an effect at the smallest size; the target comes last."""
    far, Q = decades_L[-1], len(first_Q)
    first_Q1 = first_Q[:, None]
    uniform = lambda low, high: random.uniform(low, high, Q)[:, None]  # noqa: E731
    steps = random.normal(size=(Q, len(decades_L) - 1)) * 0.3 * np.sqrt(np.diff(decades_L))
    walk = np.concatenate([np.zeros((Q, 1)), steps.cumsum(1)], 1)
    # What both arms lose at a rate that suits neither; at the target they are tuned.
    confound = uniform(-0.2, 0.2) * decades_L**2 * (decades_L < far)
    shares = {
        "constant": np.ones((Q, len(decades_L))),
        "halves per decade": 0.5 ** (decades_L + 0 * first_Q1),
        "power law to 0": 10 ** (-uniform(0.05, 0.5) * decades_L),
        "straight line through 0": 1 - decades_L / uniform(0.2 * far, 1.5 * far),
        "straight line to 0": np.maximum(0, 1 - decades_L / uniform(0.2 * far, 1.5 * far)),
        "random walk": 1 + walk,
        "untuned below the target": 1 + confound,
        "stops": decades_L < uniform(0, 1.5 * far),
        "jumps": np.where(decades_L < uniform(0, 1.5 * far), 1, uniform(-1, 1)),
        "flips": np.where(decades_L < uniform(0, 1.5 * far), 1, -1),
        "no effect": 0 * first_Q1 * decades_L,
    }
    return {law: first_Q1 * share_QL for law, share_QL in shares.items()}


def measure(true_QN: np.ndarray, sd_QN: np.ndarray, seeds_N: np.ndarray, random: np.random.Generator):
    """Returns differences (Q, N) and the covariances (Q, N, N) of their errors, as they would be estimated."""
    Q, N = true_QN.shape
    shared = random.normal(size=(Q, 1)) + random.normal(size=(Q, N))
    seed_QN = sd_QN**2 / seeds_N
    found_QN = true_QN + np.sqrt(seed_QN) * random.normal(size=(Q, N)) + DOCUMENTS * shared / math.sqrt(2)
    variance_QN = seed_QN * random.chisquare(seeds_N - 1, (Q, N)) / (seeds_N - 1)
    item_QN = DOCUMENTS**2 * random.chisquare(VALIDATED - 1, (Q, N)) / (VALIDATED - 1)

    def covariance(variance_N, item_N):
        known = zip(variance_N, seeds_N - 1.0, item_N, strict=True)
        differences = [Difference(0.0, variance, df, item, VALIDATED - 1.0) for variance, df, item in known]
        return error_covariance(differences, seeds_N)

    return found_QN, np.stack([covariance(*each) for each in zip(variance_QN, item_QN, strict=True)])


def words_of(found_QN: np.ndarray, errors_QNN: np.ndarray, distance_N: np.ndarray) -> tuple[np.ndarray, Effect]:
    """Returns the word on each question (Q,), and the effect at the target."""
    effect = predict_effect(found_QN, errors_QNN, distance_N, np.array([distance_N[0], distance_N[-1], 0.0]))
    words = []
    for q in range(len(found_QN)):
        smallest, largest, target = (_place(effect, (q, i)) for i in range(3))
        words.append(decide(Transfer(tuple(distance_N), smallest, largest, target, MARGIN))[0].value)
    return np.array(words), _place(effect, (slice(None), 2))


def _place(effect: Effect, index: tuple) -> Effect:
    return Effect._make(values[index] for values in effect)


def simulate(sizes: int, times: float, seeds: int, questions: int, random: np.random.Generator) -> dict[str, dict]:
    """Returns what becomes of questions of each law, whose target has so many times the compute of the largest size."""
    distance_N = STEP * np.arange(1 - sizes, 1) - math.log(times)
    decades_L = np.append(distance_N - distance_N[0], -distance_N[0]) / math.log(10)
    first_Q = np.exp(random.uniform(math.log(0.003), math.log(0.1), questions)) * random.choice([-1, 1], questions)
    found = {}
    for law, true_QL in laws(decades_L, first_Q, random).items():
        sd_Q1 = np.exp(random.uniform(math.log(0.006), math.log(0.02), (questions, 1)))
        sd_QN = np.maximum(sd_Q1 * 0.7 ** np.arange(sizes), 0.003)
        word_Q, target = words_of(*measure(true_QL[:, :-1], sd_QN, np.full(sizes, seeds), random), distance_N)
        true_Q, side_Q = true_QL[:, -1], np.sign(true_QL[:, 0])
        is_wrong_Q = (word_Q == "TRANSFERS") & (true_Q * side_Q <= 0)
        is_wrong_Q |= (word_Q == "REVERSES") & (true_Q * side_Q >= 0)
        is_wrong_Q |= (word_Q == "FADES") & (abs(true_Q) > MARGIN)
        found[law] = {word.value: int((word_Q == word.value).sum()) for word in Word} | {
            "questions": questions,
            "wrong": int(is_wrong_Q.sum()),
            "covered": int(((target.low <= true_Q) & (true_Q <= target.high)).sum()),
        }
    return found


def add(found: list[dict]) -> dict:
    """Returns sums, and of them the shares that are decided, and wrong among these."""
    return _with_shares({key: sum(one[key] for one in found) for key in found[0]})


def _with_shares(total: dict) -> dict:
    decided = total["questions"] - total["UNKNOWN"]
    shares = {"decided": decided / total["questions"], "wrong_of_decided": total["wrong"] / max(1e-9, decided)}
    return total | shares | {"coverage": total["covered"] / total["questions"]}


def run(questions: int, out: Path) -> None:
    """Prints and writes what is found in each cell, and by each law."""
    random, cells = np.random.default_rng(0), {}
    for sizes in (3, 4, 5):
        for times in (4, 16, 100):
            for seeds in (3, 5):
                found = simulate(sizes, times, seeds, questions, random)
                gradual, breaks = (
                    add([one for law, one in found.items() if (law in BREAKS) is is_one]) for is_one in (False, True)
                )
                weights = (1 - BREAKING) / gradual["questions"], BREAKING / breaks["questions"]
                mixed = _with_shares(
                    {key: weights[0] * gradual[key] + weights[1] * breaks[key] for key in found["constant"]}
                )
                name = f"{sizes} sizes, {seeds} seeds, {times} x"
                cells[name] = {"gradual": gradual, "breaks": breaks, "one in twenty breaks": mixed, "laws": found}
                print(
                    f"{name}:",
                    *(f"{kind} {_describe(cells[name][kind])};" for kind in ("gradual", "one in twenty breaks")),
                    flush=True,
                )
    names = next(iter(cells.values()))["laws"]
    by_law = {law: add([cell["laws"][law] for cell in cells.values()]) for law in names}
    for law, one in by_law.items():
        counts = ", ".join(f"{word.value} {one[word.value] / one['questions']:.1%}" for word in Word)
        print(f"{law}: {counts}; {_describe(one)}")
    out.mkdir(parents=True, exist_ok=True)
    record = {"confidence": CONFIDENCE, "margin": MARGIN, "breaks": BREAKS, "cells": cells, "laws": by_law}
    (out / "transfer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(by_law, out / "transfer.png")


def _describe(one: dict) -> str:
    return ", ".join(f"{key} {one[key]:.1%}" for key in ("decided", "wrong_of_decided", "coverage"))


def draw(by_law: dict[str, dict], path: Path) -> None:
    """Draws how often each word comes out by each law, and how often it is wrong."""
    colours = {"TRANSFERS": "#0072B2", "FADES": "#5F6368", "REVERSES": "#C24E00", "UNKNOWN": "#E3E5E8"}
    with drawing():
        figure = make_figure(9, 4.2)
        axes = figure.subplots()
        for y, one in enumerate(by_law.values()):
            left = 0.0
            for word, colour in colours.items():
                share = one[word] / one["questions"]
                axes.barh(y, share, 0.7, left, color=colour, label=word if not y else None)
                left += share
            wrong = f"wrong {one['wrong_of_decided']:.1%} of the decided" if one["decided"] else ""
            axes.text(1.01, y, wrong, va="center", color=INK, fontsize=7.5)
        axes.set(xlim=(0, 1), ylim=(len(by_law) - 0.4, -0.6), xlabel="share of the questions")
        axes.set_yticks(range(len(by_law)), [*by_law])
        axes.grid(False, axis="y")
        figure.legend(loc="outside upper center", ncols=4)
        save_png(figure, path)


def check_designs(designs: int = 24, questions: int = 200) -> None:
    """Prints the power of designs by the closed form, and as simulated with the whole rule."""
    random, errors = np.random.default_rng(1), []
    for _ in range(designs):
        sizes = int(random.integers(3, 6))
        times = float(4 ** random.integers(1, sizes))  # Within reach.
        distance_N = STEP * np.arange(1 - sizes, 1) - math.log(times)
        sd_N = np.maximum(random.uniform(0.005, 0.02) * 0.7 ** np.arange(sizes), 0.003)
        effect, seeds_N = float(np.exp(random.uniform(-4.8, -3.2))), random.choice(INTERIM_SEEDS, sizes)
        options = [SizeOption(x, 1.0, sd, DOCUMENTS) for x, sd in zip(distance_N, sd_N, strict=True)]
        closed = float(transfer_power(options, seeds_N[None], effect)[0])
        true_QN = np.full((questions, sizes), effect)
        word_Q, _ = words_of(*measure(true_QN, np.tile(sd_N, (questions, 1)), seeds_N, random), distance_N)
        simulated = float(np.mean(word_Q == "TRANSFERS"))
        errors.append(closed - simulated)
        seeds = ", ".join(map(str, seeds_N))
        print(f"{effect:.4f}, {times:g} x, seeds {seeds}: {closed:.2f} by the closed form, {simulated:.2f}", flush=True)
    print(f"root mean square {np.sqrt(np.mean(np.square(errors))):.3f}, mean {np.mean(errors):+.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=130, help="of each law in each cell")
    parser.add_argument("--out", type=Path, default=Path("transfer"), help="folder")
    parser.add_argument("--designs", action="store_true", help="check the power of designs instead")
    options = parser.parse_args()
    check_designs() if options.designs else run(options.questions, options.out)
