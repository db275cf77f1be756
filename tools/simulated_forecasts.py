"""How often the intervals of forecasts hold, one size ahead of ladders whose laws are known: nothing is trained.

`python tools/simulated_forecasts.py` draws ladders of each case and law, forecasts a run of the last size from those
before it, and writes `tools/results/forecasts/simulated.json` and `.png`.

Axes: S size.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxformer.report.style import GREY, INK, drawing, make_figure, save_png
from jaxformer.run.forecast import BAND, INTERVAL
from jaxformer.statistics.scaling_law import predict_loss

# Of the smallest size of the baseline's ladder.
SMALLEST, TOKENS_PER_PARAMETER = 3.6e5, 1.25

Law = Callable[[np.ndarray, np.ndarray], np.ndarray]


def floor_and_powers(floor: float, of_parameters: float, alpha: float, of_tokens: float, beta: float) -> Law:
    """Returns a law of the form of Hoffmann et al. 2022, by millions of parameters and tokens."""
    return lambda N, D: floor + of_parameters * (N / 1e6) ** -alpha + of_tokens * (D / 1e6) ** -beta


# Bits per byte of the order that models of this size reach. The first five have an irreducible term, the others none.
LAWS: dict[str, Law] = {
    "floor 0.6, exponents 0.34 and 0.28 (Hoffmann)": floor_and_powers(0.6, 0.6, 0.34, 0.8, 0.28),
    "floor 1.0, exponents 0.35 and 0.37 (Besiroglu)": floor_and_powers(1.0, 0.5, 0.35, 0.5, 0.37),
    "floor 1.4, exponents 0.5 and 0.5": floor_and_powers(1.4, 0.3, 0.5, 0.3, 0.5),
    "floor 0.8, compute to the power of -0.15": lambda N, D: 0.8 + 1.2 * (N * D / 1e12) ** -0.15,
    "floor 0.3, compute to the power of -0.05": lambda N, D: 0.3 + 1.7 * (N * D / 1e12) ** -0.05,
    "no floor, exponents 0.076 and 0.095 (Kaplan, added)": floor_and_powers(0.0, 1.0, 0.076, 1.0, 0.095),
    "no floor, exponents 0.2 and 0.15": floor_and_powers(0.0, 1.0, 0.2, 1.0, 0.15),
    "no floor, as Kaplan joins them": lambda N, D: 2 * ((1e6 / N) ** (0.076 / 0.095) + 1e6 / D) ** 0.095,
}


class Case(NamedTuple):
    """A ladder, and how its runs scatter about their law; shares of the loss."""

    name: str
    compute_S: tuple[float, ...]
    """Of each size as a multiple of the one before it; of the first, 1. The last one is forecast."""
    seeds_S: tuple[int, ...]
    """Runs of each size but the last."""
    deviation: float
    """Standard deviation of a size from the law."""
    deviation_by_seed_S: tuple[float, ...]
    """Standard deviation of a run by its seed."""
    is_bent: bool = False
    """Whether sizes deviate together, by a parabola through the middle of the ladder, as where a rule for the learning
    rate suits the middle alone, instead of each by itself.
    """


class Row(NamedTuple):
    """What is counted of a law in a case."""

    law: str
    case: str
    ladders: int
    inside: float
    """Share of the ladders in whose interval the next run lay."""
    low: float
    high: float
    """`low` and `high`: 95 % bounds of that share."""
    warned: float
    """Share of the ladders of which the last validation of the next run lay outside of its band."""
    width: float
    """Median width of the interval, as a share of the loss."""
    error: float
    """Root of the mean squared error of the median, as a share of the loss."""


def draw_ladder(law: Law, case: Case, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns parameters and tokens (S,), and the losses of the runs of each size: of the last one, of a single run."""
    compute_S = np.cumprod(case.compute_S)
    parameters_S = SMALLEST * np.sqrt(compute_S)
    tokens_S = TOKENS_PER_PARAMETER * parameters_S
    place_S = 2 * np.log(compute_S) / np.log(compute_S[-2]) - 1
    deviation_S = random.standard_normal() * place_S**2 if case.is_bent else random.standard_normal(len(compute_S))
    size_S = law(parameters_S, tokens_S) * (1 + case.deviation * deviation_S)
    runs_S = (*case.seeds_S, 1)
    scattered = zip(size_S, case.deviation_by_seed_S[-len(size_S) :], runs_S, strict=True)
    return parameters_S, tokens_S, [loss * (1 + sd * random.standard_normal(runs)) for loss, sd, runs in scattered]


def simulate(law: Law, case: Case, ladders: int) -> Row:
    """Returns what ladders of a law come to."""
    random, inside, warned, widths, errors = np.random.default_rng(0), 0, 0, [], []
    for _ in range(ladders):
        parameters_S, tokens_S, losses = draw_ladder(law, case, random)
        truth = float(losses[-1][0])
        found = predict_loss(parameters_S[:-1], tokens_S[:-1], losses[:-1], parameters_S[-1], tokens_S[-1])
        low, high = found.interval(INTERVAL)
        inside += low <= truth <= high
        band = found.interval(BAND)
        warned += not band[0] <= truth <= band[1]
        widths.append((high - low) / truth)
        errors.append(found.median / truth - 1)
    bounds = stats.binomtest(inside, ladders).proportion_ci()
    error = float(np.sqrt(np.mean(np.square(errors))))
    shares = inside / ladders, bounds.low, bounds.high, warned / ladders
    return Row("", case.name, ladders, *shares, float(np.median(widths)), error)


# As measured on the ladder of the baseline (docs/how_to/ladder.md).
MEASURED = Case("as measured, 4 x ahead", (1, 4, 4, 4, 4), (5, 4, 3, 3), 0.0025, (0.0047, 0.0033, 0.004, 0.003, 0.003))


def _scattered(name: str, times: float) -> Case:
    seeds = tuple(times * each for each in MEASURED.deviation_by_seed_S)
    return MEASURED._replace(name=name, deviation=times * MEASURED.deviation, deviation_by_seed_S=seeds)


CASES = (
    MEASURED,
    _scattered("half the noise", 0.5),
    _scattered("twice the noise", 2),
    MEASURED._replace(name="from three sizes", compute_S=(1, 4, 4, 4), seeds_S=(5, 4, 3)),
    MEASURED._replace(name="sizes as shipped, 5.5 x ahead", compute_S=(1, 4.1, 3.3, 2.8, 5.5)),
    MEASURED._replace(name="bent", is_bent=True),
)


def draw(rows: list[Row]):
    """Returns the share of intervals that hold, by law and case."""
    figure = make_figure(7.6, 0.9 + 0.5 * len(LAWS))
    axes = figure.subplots()
    axes.axvspan(0.85, 0.95, color=GREY, alpha=0.15, lw=0)
    for number, case in enumerate(CASES):
        ours = [row for row in rows if row.case == case.name]
        places = [list(LAWS).index(row.law) + 0.12 * (number - (len(CASES) - 1) / 2) for row in ours]
        for row, place in zip(ours, places, strict=True):
            axes.plot([row.low, row.high], [place] * 2, color=GREY, lw=1)
        axes.plot([row.inside for row in ours], places, MARKS[number], color=INK, ms=4, lw=0, label=case.name)
    axes.invert_yaxis()
    axes.set_yticks(range(len(LAWS)), list(LAWS))
    axes.set_xlabel(f"share of runs inside their {INTERVAL:.0%} interval; the band is 85 to 95 %")
    figure.legend(loc="outside upper center", ncols=3, fontsize=7.5)
    return figure


MARKS = "o<>sDx"


def main() -> None:
    """Counts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    text = "of each law as measured; a quarter of them in each other case"
    parser.add_argument("--ladders", type=int, default=1000, help=text)
    parser.add_argument("--output", type=Path, default=Path("tools/results/forecasts"))
    options = parser.parse_args()
    rows, began = [], time.perf_counter()
    for case in CASES:
        for name, law in LAWS.items():
            ladders = options.ladders if case is MEASURED else options.ladders // 4
            rows.append(row := simulate(law, case, ladders)._replace(law=name))
            print(
                f"{case.name:30} {name:52} inside {row.inside:.1%} [{row.low:.1%}, {row.high:.1%}] "
                f"warned {row.warned:.1%} width {row.width:.2%} error {row.error:.2%}",
                flush=True,
            )
        inside, warned = np.mean([(row.inside, row.warned) for row in rows[-len(LAWS) :]], axis=0)
        print(f"{case.name:30} {'all laws':52} inside {inside:.1%} warned {warned:.1%}", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"seconds": round(time.perf_counter() - began), "interval": INTERVAL}
    lines = [f" {name!r}: {json.dumps(value)}".replace("'", '"') for name, value in about.items()]
    for name, each in (("cases", CASES), ("rows", rows)):
        lines.append(f' "{name}": [\n' + ",\n".join(f"  {json.dumps(one._asdict())}" for one in each) + "\n ]")
    (options.output / "simulated.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    with drawing():
        save_png(draw(rows), options.output / "simulated.png")


if __name__ == "__main__":
    main()
