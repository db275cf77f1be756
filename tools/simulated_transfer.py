"""How often a verdict on transfer is wrong, over laws that are known: nothing is trained.

    python tools/simulated_transfer.py --out=tools/results/transfer
    python tools/simulated_transfer.py --designs

The first command asks questions of each law below, at 3 to 5 sizes a factor 4 of compute apart, about a target 4, 16 or
64 times as large as the largest, as far as it is within reach. It writes `transfer.json` and `transfer.png`: how often
each word comes out, how often it is wrong, how often the effect at the target lies in its interval. TRANSFERS and
REVERSES are wrong where the effect at the target has the other sign or is 0, FADES where it exceeds the margin.

Each question has 3, 5 or 8 seeds at each size, and also 3, then 5, then 8 until it is decided (`until decided`). Every
question is asked; or those alone that were kept at the smallest size after 3 seeds, which count as those seeds.

Laws are gradual, or break off: among the sizes, or between the largest and the target, where no size can show it. A
mixture has one question in twenty that breaks off somewhere, uniformly along the logarithm of the compute from the
smallest size to 1.5 times as far as the target.

The standard deviation of one seed's paired difference is drawn between 0.006 and 0.02 bits per byte at the smallest
size, and falls by 0.7 from size to size down to 0.003; effects at the smallest size are between 0.003 and 0.1 on either
side, documents have a standard error of 0.0015, correlated by 0.5 between sizes, or by `--correlation`.

The second command holds the power that is calculated for a design against this rule: of designs at random, and of such
as `cheapest_design` chooses.

Axes: Q question, N size, L size or target, S seed.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxformer.report.style import INK, drawing, make_figure, save_png
from jaxformer.statistics.paired_difference import t_quantile
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level
from jaxformer.statistics.transfer import (
    CONFIDENCE,
    DOCUMENT_CORRELATION,
    Effect,
    Prediction,
    TransferVerdict,
    decide,
    error_covariance,
    is_within_reach,
    predict_effect,
)
from jaxformer.statistics.transfer_design import SizeOption, cheapest_design, transfer_power

MARGIN, DOCUMENTS, VALIDATED = 0.005, 0.0015, 24
SIZES, TIMES, STEP = (3, 4, 5), (4, 16, 64), math.log(4)
SEEDS = (3, 5, 8)
LOOKS = "until decided"
# Where laws break off.
AMONG, BEYOND = "among the sizes", "beyond the sizes"
# Draws for each question of those that were kept.
TRIED = 20
# Of the mixture: the share of questions that break off, and how far beyond the smallest size they may, in distances of
# the target from that.
BREAKING, FARTHEST = 0.05, 1.5
WORDS = tuple(one.value for one in TransferVerdict)
COLUMNS = (*WORDS, "wrong", "covered", "questions")


class Truth(NamedTuple):
    """Questions whose answers are known."""

    effect_QL: np.ndarray
    """The target comes last."""
    sd_QN: np.ndarray
    """Of one seed's difference."""
    distance_N: np.ndarray


def laws(decades_L: np.ndarray, Q: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns by law the effects (Q, L) as shares of that at the smallest size; the target comes last."""
    largest, far = decades_L[-2:]

    def uniform(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, (Q, 1))

    steps = random.normal(size=(Q, len(decades_L) - 1)) * 0.3 * np.sqrt(np.diff(decades_L))
    # What both arms lose at a rate that suits neither; at the target they are tuned.
    confound = uniform(-0.2, 0.2) * decades_L**2 * (decades_L < far)
    found = {
        "constant": np.ones((Q, len(decades_L))),
        "halves per decade": np.tile(0.5**decades_L, (Q, 1)),
        "power law to 0": 10 ** (-uniform(0.05, 0.5) * decades_L),
        "straight line through 0": 1 - decades_L / uniform(0.2 * far, 1.5 * far),
        "straight line to 0": np.maximum(0, 1 - decades_L / uniform(0.2 * far, 1.5 * far)),
        "random walk": 1 + np.concatenate([np.zeros((Q, 1)), steps.cumsum(1)], 1),
        "untuned below the target": 1 + confound,
        "no effect": np.zeros((Q, len(decades_L))),
    }
    for where, ends in ((AMONG, (0.0, largest)), (BEYOND, (largest, far))):
        for law, share_Q1 in (("stops", 0.0), ("jumps", uniform(-1, 1)), ("flips", -1.0)):
            found[f"{law} {where}"] = np.where(decades_L <= uniform(*ends), 1.0, share_Q1)
    return found


def measure(
    truth: Truth, seeds: int, random: np.random.Generator, correlation: float = DOCUMENT_CORRELATION
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the differences of seeds (Q, N, S), and the variances (Q, N) by documents as they would be estimated.

    Args:
        correlation: of what documents do at two sizes.
    """
    Q, N = truth.sd_QN.shape
    shared = math.sqrt(correlation) * random.normal(size=(Q, 1))
    documents_QN = DOCUMENTS * (shared + math.sqrt(1 - correlation) * random.normal(size=(Q, N)))
    found_QN = truth.effect_QL[:, :N] + documents_QN
    found_QNS = found_QN[..., None] + truth.sd_QN[..., None] * random.normal(size=(Q, N, seeds))
    return found_QNS, DOCUMENTS**2 * random.chisquare(VALIDATED - 1, (Q, N)) / (VALIDATED - 1)


def are_kept(found_QS: np.ndarray, item_Q: np.ndarray) -> np.ndarray:
    """Returns whether an ordinary comparison keeps each change (Q,): it is better, and by more than the margin."""
    level, S = interim_level(found_QS.shape[1]), found_QS.shape[1]
    seed_Q = found_QS.var(1, ddof=1) / S
    width_Q = np.hypot(np.sqrt(seed_Q) * t_quantile(S - 1, level), np.sqrt(item_Q) * t_quantile(VALIDATED - 1, level))
    return found_QS.mean(1) < -np.maximum(width_Q, MARGIN)


def answer(
    found_QNS: np.ndarray, item_QN: np.ndarray, distance_N: np.ndarray, seeds_N: Sequence[int]
) -> tuple[np.ndarray, Effect]:
    """Returns the word on each question (Q,) by the first seeds of each size, and the effects at the target."""
    parts = [found_QNS[:, n, :seeds] for n, seeds in enumerate(seeds_N)]
    mean_QN = np.stack([part.mean(1) for part in parts], 1)
    seed_QN = np.stack([part.var(1, ddof=1) / part.shape[1] for part in parts], 1)
    df_N, item_df_N = np.array(seeds_N) - 1.0, np.full(len(parts), VALIDATED - 1.0)
    errors_QNN = error_covariance(seed_QN, df_N, item_QN, item_df_N)
    effect = predict_effect(mean_QN, errors_QNN, distance_N, np.array([distance_N[0], distance_N[-1], 0.0]))
    words = []
    for q in range(len(mean_QN)):
        smallest, largest, target = (_place(effect, (q, i)) for i in range(3))
        words.append(decide(Prediction(tuple(distance_N), smallest, largest, target, MARGIN))[0].value)
    return np.array(words, dtype=object), _place(effect, (slice(None), 2))


def _place(effect: Effect, index: tuple) -> Effect:
    return Effect._make(values[index] for values in effect)


def simulate(
    sizes: int,
    times: float,
    questions: int,
    random: np.random.Generator,
    *,
    selects: bool = False,
    correlation: float = DOCUMENT_CORRELATION,
) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    """Returns by law the share of the questions that are asked, and by seeds the numbers of `COLUMNS` of these.

    Args:
        times: the compute of the target, in that of the largest size.
        selects: whether those alone are asked that were kept at the smallest size.
    """
    distance_N = STEP * np.arange(1 - sizes, 1) - math.log(times)
    decades_L = np.append(distance_N - distance_N[0], -distance_N[0]) / math.log(10)
    Q, found = questions * (TRIED if selects else 1), {}
    for law, share_QL in laws(decades_L, Q, random).items():
        first_Q1 = np.exp(random.uniform(math.log(0.003), math.log(0.1), (Q, 1))) * random.choice([-1, 1], (Q, 1))
        sd_Q1 = np.exp(random.uniform(math.log(0.006), math.log(0.02), (Q, 1)))
        truth = Truth(first_Q1 * share_QL, np.maximum(sd_Q1 * 0.7 ** np.arange(sizes), 0.003), distance_N)
        data, asked = measure(truth, SEEDS[-1], random, correlation), 1.0
        if selects:
            kept_Q = are_kept(data[0][:, 0, : SEEDS[0]], data[1][:, 0])
            asked, chosen = float(kept_Q.mean()), np.flatnonzero(kept_Q)[:questions]
            truth = truth._replace(effect_QL=truth.effect_QL[chosen])
            data = data[0][chosen], data[1][chosen]
        found[law] = asked, _by_seeds(truth, *data)
    return found


def _by_seeds(truth: Truth, found_QNS: np.ndarray, item_QN: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the numbers of `COLUMNS` by seeds, and where they are added until it is decided."""
    sizes, counts, last = len(truth.distance_N), {}, None
    for seeds in SEEDS:
        words, target = answer(found_QNS, item_QN, truth.distance_N, [seeds] * sizes)
        counts[f"{seeds} seeds"] = count(truth.effect_QL, words, target)
        if last is not None:
            goes_on_Q = last[0] == "UNKNOWN"
            words = np.where(goes_on_Q, words, last[0])
            target = Effect._make(np.where(goes_on_Q, *each) for each in zip(target, last[1], strict=True))
        last = words, target
    return counts | ({LOOKS: count(truth.effect_QL, *last)} if last else {})


def count(effect_QL: np.ndarray, word_Q: np.ndarray, target: Effect) -> np.ndarray:
    """Returns the numbers of `COLUMNS`."""
    true_Q, first_Q = effect_QL[:, -1], effect_QL[:, 0]
    persists_Q = true_Q * first_Q
    is_wrong_Q = (word_Q == "TRANSFERS") & (persists_Q <= 0)
    is_wrong_Q |= (word_Q == "REVERSES") & (persists_Q >= 0)
    is_wrong_Q |= (word_Q == "FADES") & (abs(true_Q) > MARGIN)
    covered_Q = (target.low <= true_Q) & (true_Q <= target.high)
    return np.array([*((word_Q == word).sum() for word in WORDS), is_wrong_Q.sum(), covered_Q.sum(), len(word_Q)])


def summarise(counts: np.ndarray) -> dict[str, float]:
    """Returns of numbers of `COLUMNS` the share that is decided, and of these that is wrong, with its 95 % interval."""
    total = dict(zip(COLUMNS, counts.tolist(), strict=True))
    decided, questions = total["questions"] - total["UNKNOWN"], total["questions"]
    shares = {"questions": questions, "decided": decided / questions if questions else math.nan}
    shares |= {"wrong": total["wrong"] / decided if decided else math.nan}
    shares |= {"coverage": total["covered"] / questions if questions else math.nan}
    if float(decided).is_integer() and decided:
        interval = stats.binomtest(int(total["wrong"]), int(decided)).proportion_ci(method="exact")
        shares |= {"wrong_low": float(interval.low), "wrong_high": float(interval.high)}
    return {key: round(value, 4) for key, value in shares.items()}


def mixture(
    found: Mapping[str, tuple[float, Mapping[str, np.ndarray]]], seeds: str, decades_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of `COLUMNS`, as shares, of gradual laws alike often, and where one in twenty breaks off.

    Each counts as often as it is asked.
    """
    share = {law: asked * counts[seeds] / max(counts[seeds][-1], 1) for law, (asked, counts) in found.items()}
    largest, far = decades_L

    def mean(end: str) -> np.ndarray:
        return np.mean([one for law, one in share.items() if law.endswith(end)], 0)

    gradual = np.mean([one for law, one in share.items() if not law.endswith((AMONG, BEYOND))], 0)
    among, beyond = largest / (FARTHEST * far), (far - largest) / (FARTHEST * far)
    breaks = among * mean(AMONG) + beyond * mean(BEYOND)
    breaks = breaks + (1 - among - beyond) * share["constant"]
    return gradual, (1 - BREAKING) * gradual + BREAKING * breaks


def run(questions: int, out: Path, correlation: float) -> None:
    """Prints and writes what is found in each cell, and by each law."""
    random, cells, by_law = np.random.default_rng(0), {}, {}
    for selects, how in ((False, "all asked"), (True, "kept at the smallest")):
        for sizes in SIZES:
            for times in TIMES:
                far = (math.log(times) + STEP * (sizes - 1)) / math.log(10)
                largest = STEP * (sizes - 1) / math.log(10)
                if not is_within_reach(-far, largest - far):
                    continue
                found = simulate(sizes, times, questions, random, selects=selects, correlation=correlation)
                for law, (_, counts) in found.items():
                    for seeds, one in counts.items():
                        key = f"{how}, {seeds}", law
                        by_law[key] = by_law.get(key, 0) + one
                for seeds in found["constant"][1]:
                    gradual, mixed = mixture(found, seeds, np.array([largest, far]))
                    name = f"{how}, {seeds}, {sizes} sizes, {times} x"
                    cells[name] = {
                        "gradual": summarise(gradual),
                        "one in twenty breaks off": summarise(mixed),
                        "constant": summarise(found["constant"][1][seeds]),
                    }
                    print(f"{name}:", *(f"{kind} {_describe(one)};" for kind, one in cells[name].items()), flush=True)
    summaries = {}
    for (how, law), one in by_law.items():
        summaries.setdefault(how, {})[law] = {**dict(zip(COLUMNS, one.tolist(), strict=True)), **summarise(one)}
    for how, each in summaries.items():
        for law, one in each.items():
            print(f"{how}, {law}: {_describe(one)}")
    write(out, {"confidence": CONFIDENCE, "margin": MARGIN, "correlation": correlation}, cells, summaries)


def write(out: Path, about: dict, cells: dict, summaries: dict) -> None:
    """Writes `transfer.json`, with a line for each cell and each law, and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [f'"about": {json.dumps(about)}']
    lines += [f'"{name}": {json.dumps(one)}' for name, one in cells.items()]
    lines += [f'"{how}, {law}": {json.dumps(one)}' for how, each in summaries.items() for law, one in each.items()]
    text = "{\n" + ",\n".join(lines).replace("NaN", "null") + "\n}\n"
    (out / "transfer.json").write_text(text, encoding="utf-8")
    draw(summaries[f"kept at the smallest, {LOOKS}"], out / "transfer.png")


def _describe(one: dict) -> str:
    return ", ".join(f"{key} {one[key]:.1%}" for key in ("decided", "wrong", "coverage"))


def draw(by_law: dict[str, dict], path: Path) -> None:
    """Draws how often each word comes out by each law, and how often it is wrong."""
    colours = {"TRANSFERS": "#0072B2", "FADES": "#5F6368", "REVERSES": "#C24E00", "UNKNOWN": "#E3E5E8"}
    with drawing():
        figure = make_figure(9, 4.8)
        axes = figure.subplots()
        for y, one in enumerate(by_law.values()):
            left = 0.0
            for word, colour in colours.items():
                share = one[word] / max(one["questions"], 1)
                axes.barh(y, share, 0.7, left, color=colour, label=word if not y else None)
                left += share
            wrong = f"wrong {one['wrong']:.1%} of the decided" if one["decided"] else ""
            axes.text(1.01, y, wrong, va="center", color=INK, fontsize=7.5)
        axes.set(xlim=(0, 1), ylim=(len(by_law) - 0.4, -0.6), xlabel="share of the questions")
        axes.set_yticks(range(len(by_law)), [*by_law])
        axes.grid(False, axis="y")
        figure.legend(loc="outside upper center", ncols=4)
        save_png(figure, path)


def check_designs(designs: int = 24, questions: int = 200) -> None:
    """Prints the power of designs as calculated and as simulated, at random and as `cheapest_design` chooses."""
    for is_chosen in (False, True):
        random, errors = np.random.default_rng(1), []
        while len(errors) < designs:
            sizes = int(random.integers(3, 6))
            times = float(4 ** random.integers(1, sizes))  # Within reach.
            distance_N = STEP * np.arange(1 - sizes, 1) - math.log(times)
            sd_N = np.maximum(random.uniform(0.005, 0.02) * 0.7 ** np.arange(sizes), 0.003)
            effect, seeds_N = float(np.exp(random.uniform(-4.8, -3.2))), random.choice(INTERIM_SEEDS, sizes)
            pairs = zip(distance_N, sd_N, strict=True)
            options = [SizeOption(x, 4.0**n, sd, DOCUMENTS) for n, (x, sd) in enumerate(pairs)]
            calculated = float(transfer_power(options, seeds_N[None], effect)[0])
            if is_chosen:
                chosen = cheapest_design(options, effect).sizes
                if not chosen or chosen.power < 0.5:
                    continue
                calculated, seeds_N = chosen.power, np.array(chosen.seeds_N)
            simulated = simulated_power(effect, distance_N, sd_N, seeds_N, questions, random)
            errors.append(calculated - simulated)
            seeds = ", ".join(map(str, seeds_N))
            print(f"{effect:.4f}, {times:g} x, seeds {seeds}: {calculated:.2f} calculated, {simulated:.2f}", flush=True)
        kind = "chosen" if is_chosen else "random"
        print(f"{kind}: root mean square {np.sqrt(np.mean(np.square(errors))):.3f}, mean {np.mean(errors):+.3f}")


def simulated_power(
    effect: float,
    distance_N: np.ndarray,
    sd_N: np.ndarray,
    seeds_N: np.ndarray,
    questions: int,
    random: np.random.Generator,
) -> float:
    """Returns how often a design finds an effect to transfer that is the same at all sizes."""
    asked = seeds_N > 0
    distance_N, sd_N, seeds_N = distance_N[asked], sd_N[asked], seeds_N[asked]
    effect_QL = np.full((questions, len(sd_N) + 1), effect)
    data = measure(Truth(effect_QL, np.tile(sd_N, (questions, 1)), distance_N), int(seeds_N.max()), random)
    return float(np.mean(answer(*data, distance_N, seeds_N.tolist())[0] == "TRANSFERS"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=130, help="of each law in each cell")
    parser.add_argument("--out", type=Path, default=Path("transfer"), help="folder")
    text = "of what documents do at two sizes, which the rule takes to be 0.5"
    parser.add_argument("--correlation", type=float, default=DOCUMENT_CORRELATION, help=text)
    parser.add_argument("--designs", action="store_true", help="check the power of designs instead")
    options = parser.parse_args(arguments)
    check_designs() if options.designs else run(options.questions, options.out, options.correlation)


if __name__ == "__main__":
    main()
