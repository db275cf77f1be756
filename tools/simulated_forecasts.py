"""How often the intervals of forecasts hold, one size ahead of ladders whose laws are known: nothing is trained.

`python tools/simulated_forecasts.py` draws ladders of four sizes, each of four times the compute of the one before,
forecasts a run of the fifth, and writes `tools/results/forecasts/simulated.json` and `.png`.

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

from jaxformer.report.style import BEHIND, GREY, INK, drawing, make_figure, save_png
from jaxformer.run.forecast import INTERVAL
from jaxformer.statistics.scaling_law import predict_loss

PARAMETERS_S = 3.6e5 * 2.0 ** np.arange(5)
TOKENS_S = 1.25 * PARAMETERS_S

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


class Noise(NamedTuple):
    """Standard deviations as shares of the loss."""

    name: str
    deviation: float
    """Of a size from the law."""
    seeds_S: tuple[float, ...]
    """Of a run by its seed, from the smallest size to the one that is forecast."""


class Row(NamedTuple):
    """What is counted of one law and noise."""

    law: str
    noise: str
    inside: float
    """Share of the ladders in whose interval the next run lay."""
    low: float
    high: float
    """`low` and `high`: 95 % bounds of that share."""
    width: float
    """Median width of the interval, as a share of the loss."""
    error: float
    """Root of the mean squared error of the median, as a share of the loss."""


def simulate(law: Law, noise: Noise, seeds_S: tuple[int, ...], ladders: int) -> Row:
    """Returns what ladders of a law come to. Args: seeds_S: runs of each size."""
    random, inside, widths, errors = np.random.default_rng(0), 0, [], []
    for _ in range(ladders):
        of_size_S = law(PARAMETERS_S, TOKENS_S) * (1 + noise.deviation * random.standard_normal(len(PARAMETERS_S)))
        losses = [
            loss * (1 + noise.seeds_S[s] * random.standard_normal(seeds_S[s])) for s, loss in enumerate(of_size_S[:-1])
        ]
        truth = of_size_S[-1] * (1 + noise.seeds_S[-1] * random.standard_normal())
        found = predict_loss(PARAMETERS_S[:-1], TOKENS_S[:-1], losses, PARAMETERS_S[-1], TOKENS_S[-1])
        low, high = found.interval(INTERVAL)
        inside += low <= truth <= high
        widths.append((high - low) / truth)
        errors.append(found.median / truth - 1)
    bounds = stats.binomtest(inside, ladders).proportion_ci()
    error = float(np.sqrt(np.mean(np.square(errors))))
    return Row("", noise.name, inside / ladders, bounds.low, bounds.high, float(np.median(widths)), error)


# As measured on the ladder of the baseline (docs/ladder.md), and half and twice of that.
MEASURED = Noise("as measured", 0.003, (0.012, 0.006, 0.004, 0.003, 0.003))
NOISES = (
    Noise("half", MEASURED.deviation / 2, tuple(each / 2 for each in MEASURED.seeds_S)),
    MEASURED,
    Noise("twice", 2 * MEASURED.deviation, tuple(2 * each for each in MEASURED.seeds_S)),
)
SEEDS_S = (5, 4, 3, 3)


def draw(rows: list[Row]):
    """Returns the share of intervals that hold, by law and noise."""
    figure = make_figure(7.2, 0.6 + 0.34 * len(LAWS))
    axes = figure.subplots()
    axes.axvspan(0.85, 0.95, color=GREY, alpha=0.15, lw=0)
    for place, law in enumerate(reversed(LAWS)):
        for row, (mark, shift) in zip(
            [r for r in rows if r.law == law], (("<", 0.2), ("o", 0), (">", -0.2)), strict=True
        ):
            axes.plot([row.low, row.high], [place + shift] * 2, color=GREY, lw=1)
            axes.plot([row.inside], [place + shift], mark, color=INK, ms=4)
    axes.set_yticks(range(len(LAWS)), list(reversed(LAWS)))
    axes.set_xlabel(f"share of runs inside their {INTERVAL:.0%} interval; noise half (<), as measured (o), twice (>)")
    axes.text(0.9, len(LAWS) - 0.45, "85 to 95 %", ha="center", fontsize=7, color=GREY, bbox=BEHIND)
    return figure


def main() -> None:
    """Counts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ladders", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("tools/results/forecasts"))
    options = parser.parse_args()
    rows, began = [], time.perf_counter()
    for noise in NOISES:
        for name, law in LAWS.items():
            row = simulate(law, noise, SEEDS_S, options.ladders)._replace(law=name)
            rows.append(row)
            print(
                f"{noise.name:12} {name:52} inside {row.inside:.1%} [{row.low:.1%}, {row.high:.1%}] "
                f"width {row.width:.2%} error {row.error:.2%}",
                flush=True,
            )
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"ladders": options.ladders, "seeds": SEEDS_S, "noise": [noise._asdict() for noise in NOISES]}
    record |= {"rows": [row._asdict() for row in rows], "seconds": round(time.perf_counter() - began)}
    (options.output / "simulated.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with drawing():
        save_png(draw(rows), options.output / "simulated.png")


if __name__ == "__main__":
    main()
