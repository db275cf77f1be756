"""Screening against one change at a time, at equal device hours, on simulated studies of which the truth is known.

    python tools/simulated_screening.py --studies=1000 --out=tools/results/screening

Nothing is trained. The standard deviation of one run over its seeds is 1, and every run costs the same. The budget is
what three or five seeds of each change, and of the parent that they share, cost. Six ways of spending it:

- `one at a time`: all of them, judged once, by the rule of `jaxformer ablate` at its level for so many seeds, without
  the interim analyses at fewer;
- `one seed first`: one seed of each, then those that look best by the rule on fresh seeds;
- `screening on one seed`: the smallest design, then those that look best by the rule on fresh seeds;
- `screening on two seeds`: the same with errors, then those that survive by them;
- `folded on one seed`: the first of these by the smallest design that is folded over;
- `screening alone`: all runs in the smallest design, its effects judged at the level of the rule, nothing confirmed.

What is confirmed one by one are the best looking, at most so many that each has 5, 8 or 11 seeds, whichever of these
finds most in the cell, for each way that confirms. An improvement is found when it is kept; what is kept and is none at
the parent is false.

Axes: X study, R row, N change, M the other change of a pair, S seed.
"""

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxformer.ablation.verdict import Rule
from jaxformer.report.style import INK, drawing, make_figure, save_png
from jaxformer.statistics.paired_difference import OWN_LEVEL
from jaxformer.statistics.screening import (
    EXPECTED_FALSE,
    ROWS,
    Design,
    estimate_effects,
    estimate_errors,
    make_design,
    smallest_rows,
)
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level

# The most seeds that a confirmation takes, and the fewest by which it is decided how many are confirmed.
MOST_SEEDS, CONFIRMED_ON = 16, (5, 8, 11)
PAIRINGS = ("0.8", "0.2", "falling")


class Law(NamedTuple):
    """How the studies of a cell come about."""

    changes: int = 11
    effect: float = 1.0
    """Size of a real effect; half of them are improvements, the others as large to the worse."""
    real: float = 0.25
    """Share of the changes that have one, which is one change at least."""
    pairing: str = "0.8"
    """Correlation of two runs of a seed; 'falling' is 0.8 to the power of the changes in which they differ."""
    interactions: float = 0.0
    """Standard deviation of what two changes together give beyond the sum of both, as a share of a real effect."""
    between: str = "real"
    """Which pairs interact: those of 'real' effects, or 'all'."""
    ruin: str = ""
    """What one change without a real effect does: 'diverges', or 'scatters', 10 worse with 3 x the noise."""
    seeds: int = 5
    """Seeds of each change and of the parent that the budget pays."""

    @property
    def budget(self) -> int:
        """Runs that it pays."""
        return self.seeds * (self.changes + 1)


class Truth(NamedTuple):
    """What is true of the studies of a cell."""

    effects_XN: np.ndarray
    interactions_XNM: np.ndarray
    """Of each pair once, where N < M."""
    ruined_XN: np.ndarray

    def values(self, on_RN: np.ndarray) -> np.ndarray:
        """Returns the losses of rows (X, R) without noise."""
        on_RN = on_RN.astype(float)
        pairs_RP = np.einsum("RN,RM->RNM", on_RN, on_RN).reshape(len(on_RN), -1)
        return self.effects_XN @ on_RN.T + self.interactions_XNM.reshape(len(self.effects_XN), -1) @ pairs_RP.T


def draw_truth(random: np.random.Generator, law: Law, studies: int) -> Truth:
    """Returns what is true of so many studies."""
    N = law.changes
    order_XN = random.permuted(np.tile(np.arange(N), (studies, 1)), axis=1)
    is_real_XN = order_XN < max(1, round(law.real * N))
    effects_XN = law.effect * is_real_XN * random.choice([-1.0, 1.0], (studies, N))
    interactions_XNM = law.interactions * law.effect * random.standard_normal((studies, N, N))
    if law.between == "real":
        interactions_XNM *= is_real_XN[:, :, None] & is_real_XN[:, None, :]
    ruined_XN = (order_XN == N - 1) & bool(law.ruin)
    return Truth(effects_XN + 10.0 * ruined_XN, np.triu(interactions_XNM, 1), ruined_XN)


def draw_runs(random: np.random.Generator, law: Law, truth: Truth, on_RN: np.ndarray, seeds: int) -> np.ndarray:
    """Returns the losses of rows (X, R, S), without what all runs of a seed share alike, which cancels everywhere."""
    noise_XRS = random.standard_normal((len(truth.effects_XN), len(on_RN), seeds))
    if law.pairing == "falling":
        apart_RR = (on_RN[:, None, :] != on_RN[None, :, :]).sum(-1)
        noise_XRS = np.linalg.cholesky(0.8**apart_RR + 1e-9 * np.eye(len(on_RN))) @ noise_XRS
    else:
        noise_XRS *= math.sqrt(1 - float(law.pairing))
    if law.ruin == "scatters":
        noise_XRS *= 1 + 2 * (truth.ruined_XN @ on_RN.T.astype(float))[..., None]
    return truth.values(on_RN)[..., None] + noise_XRS


def draw_differences(random: np.random.Generator, law: Law, truth: Truth, seeds: int) -> np.ndarray:
    """Returns the difference of each change from the parent (X, N, S)."""
    on_RN = np.vstack([np.zeros(law.changes, bool), np.eye(law.changes, dtype=bool)])
    values_XRS = draw_runs(random, law, truth, on_RN, seeds)
    return values_XRS[:, 1:] - values_XRS[:, :1]


# The rule of `jaxformer ablate`, of many studies at once; a test holds it against the library's own.


def keeps(differences_XNS: np.ndarray, tested_XN: np.ndarray) -> np.ndarray:
    """Returns which changes (X, N) are kept of those that are tested, by interval and q-value; the margin is 0."""
    level = interim_level(differences_XNS.shape[-1])
    is_below_XN, p_XN = differences_XNS.mean(-1) < 0, p_values(differences_XNS, tested_XN)
    one_sided_XN = np.where(is_below_XN, p_XN / 2, 1 - p_XN / 2)
    scaled_XN = np.where(tested_XN, np.minimum(1.0, 0.05 / level * one_sided_XN), np.inf)
    order_XN = np.argsort(scaled_XN, -1)
    steps_XN = np.take_along_axis(scaled_XN, order_XN, -1) * tested_XN.sum(-1, keepdims=True)
    steps_XN /= np.arange(1, steps_XN.shape[-1] + 1)
    q_XN = np.empty_like(steps_XN)
    np.put_along_axis(q_XN, order_XN, np.minimum.accumulate(steps_XN[:, ::-1], -1)[:, ::-1], -1)
    return tested_XN & is_below_XN & (p_XN < level) & (q_XN <= Rule().q)


def p_values(differences_XNS: np.ndarray, tested_XN: np.ndarray) -> np.ndarray:
    """Returns two-sided p-values (X, N), as of `paired_difference` with the prior of the other comparisons."""
    S = differences_XNS.shape[-1]
    mean_XN, own_XN, df = np.abs(differences_XNS.mean(-1)), differences_XNS.var(-1, ddof=1), S - 1
    own_p_XN = 2 * special.stdtr(df, -mean_XN / np.sqrt(own_XN / S))
    others_XN = tested_XN.sum(-1, keepdims=True) - tested_XN
    n_XN = np.maximum(others_XN, 3)
    logs_XN = np.where(tested_XN, np.log(own_XN) - special.digamma(df / 2) + math.log(df / 2), 0.0)
    level_XN = (logs_XN.sum(-1, keepdims=True) - logs_XN) / n_XN
    squares_XN = np.square(logs_XN).sum(-1, keepdims=True) - np.square(logs_XN)
    spread_XN = np.maximum(squares_XN - n_XN * level_XN**2, 0) / (n_XN - 1)
    excess_XN = np.maximum(spread_XN - special.polygamma(1, df / 2), 0)
    prior_df_XN = 2 * _inverse_trigamma(np.maximum(excess_XN + spread_XN / n_XN, 1e-8))
    prior_XN = np.exp(level_XN + special.digamma(prior_df_XN / 2)) / (prior_df_XN / 2)
    fits_XN = (others_XN >= 3) & (special.fdtrc(df, prior_df_XN, own_XN / prior_XN) >= 0.05)
    variance_XN = (df * own_XN + prior_df_XN * prior_XN) / (df + prior_df_XN)
    df_XN = np.minimum(df + prior_df_XN, df * n_XN)
    p_XN = 2 * special.stdtr(df_XN, -mean_XN / np.sqrt(variance_XN / S))
    return np.where(fits_XN, np.maximum(p_XN, np.minimum(own_p_XN / OWN_LEVEL, 1)), own_p_XN)


@functools.cache
def _trigammas() -> tuple[np.ndarray, np.ndarray]:
    logs = np.linspace(math.log(1e-4), math.log(1e9), 40000)
    return np.log(special.polygamma(1, np.exp(logs)))[::-1], logs[::-1]


def _inverse_trigamma(values: np.ndarray) -> np.ndarray:
    return np.exp(np.interp(np.log(values), *_trigammas()))


class Outcome(NamedTuple):
    """What came of the studies of a cell by one way of spending the budget."""

    kept_XN: np.ndarray
    runs_X: np.ndarray
    tested_XN: np.ndarray
    """Which changes were confirmed one by one."""
    survives_XN: np.ndarray
    """Which would have been, had the budget had room."""


def one_at_a_time(random: np.random.Generator, law: Law, truth: Truth) -> Outcome:
    """Tests each change on as many seeds as the budget has."""
    tested_XN = ~truth.ruined_XN | (law.ruin != "diverges")
    kept_XN = keeps(draw_differences(random, law, truth, law.seeds), tested_XN)
    return Outcome(kept_XN, np.full(len(kept_XN), law.budget), tested_XN, tested_XN)


def one_seed_first(random: np.random.Generator, law: Law, truth: Truth, fewest: int) -> Outcome:
    """Tests each change on one seed, and confirms those that look best."""
    estimates_XN = draw_differences(random, law, truth, 1)[..., 0]
    estimates_XN = np.where(truth.ruined_XN & (law.ruin == "diverges"), np.inf, estimates_XN)
    return confirm(random, law, truth, estimates_XN, estimates_XN < 0, law.changes + 1, fewest)


def confirm(
    random: np.random.Generator,
    law: Law,
    truth: Truth,
    estimates_XN: np.ndarray,
    survives_XN: np.ndarray,
    spent: int,
    fewest: int,
) -> Outcome:
    """Tests the best looking survivors one by one on fresh seeds, on as many as the budget leaves, at least so many."""
    left = law.budget - spent
    most = max(left // min(fewest, max(left // 2, 1)) - 1, 0)
    rank_XN = np.argsort(np.argsort(np.where(survives_XN, estimates_XN, np.inf), -1), -1)
    tested_XN = survives_XN & (rank_XN < most)
    arms_X = tested_XN.sum(-1) + 1
    seeds_X = np.max([np.where(arms_X * n <= left, n, 0) for n in INTERIM_SEEDS if n <= MOST_SEEDS], 0)
    seeds_X = np.where(arms_X > 1, seeds_X, 0)
    differences_XNS = draw_differences(random, law, truth, MOST_SEEDS)
    kept_XN = np.zeros_like(tested_XN)
    for seeds in np.unique(seeds_X[seeds_X > 0]):
        ours_X = seeds_X == seeds
        kept_XN[ours_X] = keeps(differences_XNS[ours_X, :, :seeds], tested_XN[ours_X])
    return Outcome(kept_XN, spent + arms_X * seeds_X, tested_XN, survives_XN)


def screening(random: np.random.Generator, law: Law, truth: Truth, fewest: int, *, rows: int, seeds: int) -> Outcome:
    """Screens all changes in a design, and confirms the survivors; of one seed, which has no error, what looks better.

    Where a change diverges, half of the rows do on their first seed. Those are run again without it.
    """
    rerun = rows // 2 if law.ruin == "diverges" else 0
    effects_XN, half_X = _estimate(random, law, truth, rows, seeds, EXPECTED_FALSE / law.changes)
    survives_XN = effects_XN < -half_X[:, None]
    if law.ruin == "diverges":
        survives_XN &= ~truth.ruined_XN
    return confirm(random, law, truth, effects_XN, survives_XN, rerun + rows * seeds, fewest)


def screening_alone(random: np.random.Generator, law: Law, truth: Truth, *, rows: int) -> Outcome:
    """Screens all changes on as many seeds as the budget has, and keeps what survives at the level of the rule."""
    rerun = rows // 2 if law.ruin == "diverges" else 0
    seeds = (law.budget - rerun) // rows
    effects_XN, half_X = _estimate(random, law, truth, rows, seeds, interim_level(law.seeds) / 2)
    kept_XN = effects_XN < -half_X[:, None]
    return Outcome(kept_XN, np.full(len(kept_XN), rerun + rows * seeds), np.zeros_like(kept_XN), kept_XN)


def _estimate(
    random: np.random.Generator, law: Law, truth: Truth, rows: int, seeds: int, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (effects_XN, half of their interval (X,)) of a design, which is 0 for one seed."""
    design = make_design(law.changes, rows)
    values_XRS = draw_runs(random, law, truth, design.on_RN, seeds)
    if law.ruin == "diverges":
        values_XRS -= 10.0 * (truth.ruined_XN @ design.on_RN.T.astype(float))[..., None]
    half_X = half_widths(design, values_XRS, level) if seeds > 1 else np.zeros(len(values_XRS))
    return estimate_effects(design, values_XRS), half_X


def half_widths(design: Design, values_XRS: np.ndarray, level: float) -> np.ndarray:
    """Returns half the interval of an effect (X,) whose lower end is missed with a level, as of `screen`."""
    errors = estimate_errors(design, values_XRS)
    chance_X, interactions_X = errors.of_effects(values_XRS[0].size)
    t_interactions = special.stdtrit(errors.df_residual, level) if errors.df_residual else 0.0
    return np.hypot(np.sqrt(chance_X) * special.stdtrit(errors.df_between_seeds, level),
                    np.sqrt(interactions_X) * t_interactions)  # fmt: skip


def folded_rows(changes: int) -> int:
    """Returns the rows of the smallest design of resolution IV."""
    return next(2 * half for half in (4, *ROWS) if half >= changes)


def simulate(law: Law, studies: int) -> dict[str, dict[str, float]]:
    """Returns what each way of spending the budget finds."""
    random = np.random.default_rng(17)
    truth, smallest = draw_truth(random, law, studies), smallest_rows(law.changes)
    confirming = {"one seed first": one_seed_first}
    designs = {
        "screening on two seeds": (smallest, 2),
        "screening on one seed": (smallest, 1),
        "folded on one seed": (folded_rows(law.changes), 1),
    }
    for name, (rows, seeds) in designs.items():
        rerun = rows // 2 if law.ruin == "diverges" else 0
        if rows * seeds + rerun + 2 * CONFIRMED_ON[0] <= law.budget:
            confirming[name] = functools.partial(screening, rows=rows, seeds=seeds)
    found = {"one at a time": count(truth, one_at_a_time(random, law, truth))}
    for name, way in confirming.items():
        of = {fewest: count(truth, way(random, law, truth, fewest)) for fewest in CONFIRMED_ON}
        best = max(of, key=lambda fewest: of[fewest]["found"])
        found[name] = of[best] | {"seeds": best}
    if 2 * smallest + smallest // 2 <= law.budget:
        found["screening alone"] = count(truth, screening_alone(random, law, truth, rows=smallest))
    return found


def count(truth: Truth, outcome: Outcome) -> dict[str, float]:
    """Returns what is found, by share of the improvements, and what is false, by study."""
    gains_XN = truth.effects_XN < 0
    shares = {
        "found": (outcome.kept_XN & gains_XN).sum() / gains_XN.sum(),
        "false": (outcome.kept_XN & ~gains_XN).sum(-1).mean(),
        "survivors": (outcome.survives_XN & gains_XN).sum() / gains_XN.sum(),
        "false_survivors": (outcome.survives_XN & ~gains_XN).sum(-1).mean(),
        "confirmed": outcome.tested_XN.sum(-1).mean(),
        "runs": outcome.runs_X.mean(),
    }
    return {name: round(float(value), 4) for name, value in shares.items()}


def laws() -> Iterator[Law]:
    """Yields the laws of all cells."""
    for seeds, pairing in itertools.product((3, 5), PAIRINGS):
        of = functools.partial(Law, pairing=pairing, seeds=seeds)
        for changes, effect, share in itertools.product((4, 8, 11, 15, 20), (0.5, 1.0, 2.0, 4.0), (0.0, 0.5)):
            yield of(changes, effect, interactions=share)
        for effect, real in itertools.product((0.5, 1.0, 2.0), (0.1, 0.25, 0.5)):
            yield from (of(effect=effect, real=real, interactions=share) for share in (0.0, 0.25, 0.5, 1.0))
            yield from (of(effect=effect, real=real, interactions=share, between="all") for share in (0.25, 0.5, 1.0))
        for effect, ruin in itertools.product((0.5, 1.0, 2.0), ("diverges", "scatters")):
            yield of(effect=effect, ruin=ruin)


def draw(cells: dict[Law, dict], path: Path) -> None:
    """Draws what is found, by size of effect, pairing and interactions, of 11 changes at a budget of five seeds."""
    colours = {
        "one at a time": "#5F6368",
        "one seed first": "#8F6400",
        "screening on two seeds": "#7FB7D8",
        "screening on one seed": "#0072B2",
    }
    rows = [
        ("changes add up", 0.0, "real"),
        ("real pairs interact, by half", 0.5, "real"),
        ("all pairs, by a quarter", 0.25, "all"),
        ("all pairs, by half", 0.5, "all"),
    ]
    pairings = {"0.8": "runs of a seed correlate by 0.8", "0.2": "by 0.2", "falling": "by 0.8 a change, falling"}
    with drawing():
        figure = make_figure(8.6, 9.2)
        axes = figure.subplots(len(rows), len(PAIRINGS), sharex=True, sharey=True)
        for (i, (title, share, between)), (j, pairing) in itertools.product(enumerate(rows), enumerate(PAIRINGS)):
            axis, effects = axes[i, j], (0.5, 1.0, 2.0)
            for name, colour in colours.items():
                of = [Law(11, effect, 0.25, pairing, share, between) for effect in effects]
                axis.plot(effects, [100 * cells[law][name]["found"] for law in of], "o-", color=colour, label=name)
            axis.set(xscale="log", ylim=(0, 104), xticks=effects, xticklabels=["0.5", "1", "2"])
            axis.minorticks_off()
            axis.set_title(pairings[pairing] if i == 0 else "", fontsize=8.5, fontweight="normal")
            if j == 0:
                axis.set_ylabel(f"{title}\nimprovements found, %", fontsize=8)
        axes[0, 1].legend(fontsize=7.5, loc="upper left")
        figure.supxlabel("size of a real effect, in standard deviations of one run over its seeds", fontsize=8.5)
        figure.suptitle(
            "11 changes, a quarter real, hours of five seeds each", x=0.01, ha="left", color=INK, fontsize=10
        )
        save_png(figure, path)


def write(cells: dict[Law, dict], studies: int, path: Path) -> None:
    """Writes what was counted: a line for each cell, with its law where that differs from the default, and columns.

    Of these `seeds` is the member of `CONFIRMED_ON` that found most, and 0 where nothing is confirmed after others.
    """
    columns, lines = ["found", "false", "survivors", "false_survivors", "confirmed", "runs", "seeds"], []
    for law, found in cells.items():
        given = {name: value for name, value in law._asdict().items() if value != Law._field_defaults[name]}
        counts = {name: [round(one.get(column, 0), 3) for column in columns] for name, one in found.items()}
        lines.append(json.dumps({"law": given} | counts, separators=(",", ":")))
    heading = f'{{"studies": {studies}, "columns": {json.dumps(columns)}, "law": {json.dumps(Law()._asdict())},'
    path.write_text(heading + ' "cells": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def main() -> None:
    """Simulates all cells, and prints, draws and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of each cell")
    parser.add_argument("--out", type=Path, default=Path("tools/results/screening"), help="folder of the results")
    options = parser.parse_args()
    started, cells = time.monotonic(), {}
    for law in dict.fromkeys(laws()):
        cells[law] = simulate(law, options.studies)
        found = ", ".join(f"{name} {one['found']:.0%} / {one['false']:.3f} / {one['runs']:.0f}"
                          for name, one in cells[law].items())  # fmt: skip
        print(f"{law}: found / false / runs: {found}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "simulated.json"
    write(cells, options.studies, path)
    draw(cells, options.out / "found.png")
    print(f"{len(cells)} cells of {options.studies} studies in {time.monotonic() - started:.0f} s: {path}")


if __name__ == "__main__":
    main()
