"""Simulates projects that ask 36 questions one after another, and counts what the order of asking is worth.

    python tools/simulated_projects.py [--projects=300] [--out=tools/results/next_question]
    python tools/simulated_projects.py --expectations

Nothing is trained, and the truth is known. In units of the standard deviation of one seed's paired difference, of which
the margin of the rule is a half, as in the median of the questions in `tools/results`; hours are those of a run of the
parent. Questions are of 6 kinds, differ in what they cost, and what is kept lowers what later changes give: of the same
kind by a half, of others by a tenth, but for one law. The library's rule decides each after 3, 4, 5, 6 or 8 seeds.

The second command fits expectations and outcomes of the questions whose reports lie in `tools/results`.

Axes: P project; N question; K kind; S seed; T question by the order in which it was asked.
"""

import argparse
import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.next_question import COMPLEXITY
from jaxformer.ablation.past_expectations import kind_of
from jaxformer.ablation.tuning import RUNS_AT_BEST
from jaxformer.ablation.verdict import Rule
from jaxformer.host.console import wrap
from jaxformer.report.style import drawing, make_figure, save_png
from jaxformer.statistics.expectations import PRIOR, Calibration, Expectations, Prior, calibrate
from jaxformer.statistics.question_value import NEW, ParentRuns, RunCosts, follow, question_value
from jaxformer.statistics.significance import INTERIM_SEEDS

KINDS, OF_A_KIND, SEEDS = 6, 6, 8
QUESTIONS = KINDS * OF_A_KIND
MARGIN = 0.5
PARENT = ParentRuns(1.0, MARGIN, MARGIN / math.log1p(Rule().equal_tokens))
# Hours of the runs to come, for the rule by which to stop.
TO_COME = (30.0, 100.0, 300.0, 1000.0)
COLOURS = {
    "recommended": "#0072B2",
    "recommended, without learning": "#56B4E9",
    "expected gain per hour": "#00795A",
    "expected gain": "#C24E00",
    "random": "#6B6E73",
}


class Law(NamedTuple):
    """Where true effects come from: half-width x (slope x midpoint / half-width + kind + spread x t)."""

    name: str
    slope: float = PRIOR.slope[0]
    spread: float = PRIOR.spread[0]
    kind_spread: float = PRIOR.kind_spread[0]
    tail: float = 3.0
    nothing: float = 0.0
    """Share of the changes that have no effect."""
    is_informed: bool = True
    """False where effects have nothing to do with what was expected of them."""
    all_worse: bool = False
    left: tuple[float, float] = (0.5, 0.9)
    """What is left of a gain after one of the same kind, or of another, was kept."""


LAWS = (
    Law("as the prior says"),
    Law("kinds decide", spread=1.0, kind_spread=3.0),
    Law("no kinds", kind_spread=0.0),
    Law("good expectations", slope=1.0, spread=0.7, kind_spread=0.3),
    Law("gains overstated 3 x", slope=1 / 3, spread=0.7, kind_spread=0.3),
    Law("worthless expectations", is_informed=False),
    Law("t with 1.5 df", tail=1.5),
    Law("70 % without effect", nothing=0.7),
    Law("gains do not overlap", left=(1.0, 1.0)),
    Law("nothing to gain", all_worse=True),
)


class Projects(NamedTuple):
    """Questions of simulated projects."""

    low_PN: np.ndarray
    high_PN: np.ndarray
    effect_PN: np.ndarray
    """True ones, before anything is kept."""
    noise_PNS: np.ndarray
    hours_PN: np.ndarray
    """Of one run of the variant."""
    runs_PN: np.ndarray
    """Runs of a seed: of 3 where it is compared at its best learning rate, the first seed takes 5; else 1."""

    def costs(self, parent_P: np.ndarray) -> RunCosts:
        """Returns what each question takes, where there are so many seeds of the parent."""
        first, parent_P1 = INTERIM_SEEDS[0], parent_P[:, None]
        until_first_PN = (first * self.runs_PN + 2 * (self.runs_PN > 1)) * self.hours_PN
        until_first_PN = until_first_PN + np.maximum(first - parent_P1, 0)
        return RunCosts(first, until_first_PN, self.runs_PN * self.hours_PN, 1.0, parent_P1, float(first))


class Course(NamedTuple):
    """What became of projects after each question."""

    hours_PT: np.ndarray
    """Spent so far."""
    gain_PT: np.ndarray
    """True improvement of what is kept."""
    ratio_PT: np.ndarray
    """What the question was expected to save for each of its hours, of each hour that was to come at first.

    Of those hours as many are left as the changes kept before leave by what was measured of them. NaN if nobody
    reckoned.
    """


KIND_N = np.repeat(np.arange(KINDS), OF_A_KIND)


def draw_projects(law: Law, projects: int, random: np.random.Generator) -> Projects:
    """Returns projects of a law."""
    shape = projects, QUESTIONS
    half_PN = random.lognormal(0.0, 0.6, shape)
    relative_PN = random.uniform(-2.0, 1.0, shape)
    kind_PN = law.kind_spread * random.standard_normal((projects, KINDS))[:, KIND_N]
    own_PN = law.spread * random.standard_t(law.tail, shape)
    effect_PN = half_PN * (law.slope * relative_PN + PRIOR.shift[0] + kind_PN + own_PN)
    effect_PN = np.clip(effect_PN, -PARENT.slope, PARENT.slope) * (random.random(shape) >= law.nothing)
    effect_PN = effect_PN if law.is_informed else random.permuted(effect_PN, axis=1)
    effect_PN = np.abs(effect_PN) if law.all_worse else effect_PN
    midpoint_PN = half_PN * relative_PN
    return Projects(
        midpoint_PN - half_PN,
        midpoint_PN + half_PN,
        effect_PN,
        random.standard_normal((*shape, SEEDS)),
        random.lognormal(0.0, 0.3, shape),
        np.where(random.random(shape) < 0.25, RUNS_AT_BEST, 1),
    )


class State(NamedTuple):
    """What is known of projects."""

    measured_PN: np.ndarray
    """NaN where nothing is."""
    error_PN: np.ndarray
    kept_PN: np.ndarray
    parent_P: np.ndarray
    """Seeds of the parent that there are."""


# (projects, state) -> (score of each question, expected ratio); the lowest score is asked.
Policy = Callable[[Projects, State], tuple[np.ndarray, np.ndarray]]


def recommended(projects: Projects, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Scores by the expected saving for each hour, by all that was measured so far."""
    kind_PN = np.broadcast_to(KIND_N, state.measured_PN.shape)
    expectations = Expectations(projects.low_PN, projects.high_PN, kind_PN, state.measured_PN, state.error_PN)
    return score(projects, state, calibrate(expectations, KINDS))


def without_learning(projects: Projects, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Scores likewise, but by the prior alone, whatever came out."""
    nothing = np.zeros((1, 0))
    return score(projects, state, calibrate(Expectations(*[nothing] * 5), KINDS))


def score(projects: Projects, state: State, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of questions, by expectations as they are calibrated."""
    kept_PN = (state.kept_PN @ (KIND_N[:, None] == np.arange(KINDS)))[:, KIND_N]
    kind_PN = np.broadcast_to(KIND_N, state.kept_PN.shape)
    belief = calibration.belief(projects.low_PN, projects.high_PN, kind_PN, kept_PN)
    found = question_value(belief, PARENT, NEW, SEEDS, COMPLEXITY)
    ratio_PN = found.saved / projects.costs(state.parent_P).expected_hours(found.ends_NA, found.kept)
    return -ratio_PN, ratio_PN


def fixed(score_PN: np.ndarray) -> Policy:
    """Returns a policy that was settled before."""
    return lambda *_: (score_PN, np.full_like(score_PN, math.nan))


def play(projects: Projects, policy: Policy, left: tuple[float, float]) -> Course:
    """Returns what becomes of projects by a policy."""
    number, rows_P = len(projects.low_PN), np.arange(len(projects.low_PN))
    measured_PN = np.full(projects.low_PN.shape, math.nan)
    error_PN, left_PN = np.ones_like(measured_PN), np.ones_like(measured_PN)
    parent_P, hours_P, gain_P, asked_PN = np.zeros(number), np.zeros(number), np.zeros(number), measured_PN > 0
    known_P, kept_PN, courses = np.zeros(number), np.zeros_like(measured_PN), ([], [], [])
    for _ in range(QUESTIONS):
        score_PN, ratio_PN = policy(projects, State(measured_PN, error_PN, kept_PN, parent_P))
        n_P = np.where(asked_PN, np.inf, score_PN).argmin(1)
        ratio_P = ratio_PN[rows_P, n_P] * np.exp(known_P / PARENT.slope)
        effect_P = projects.effect_PN[rows_P, n_P]
        effect_P = np.where(effect_P < 0, effect_P * left_PN[rows_P, n_P], effect_P)
        found = follow(effect_P[:, None] + projects.noise_PNS[rows_P, n_P], PARENT)
        hours_P = hours_P + projects.costs(parent_P).hours(found.seeds_P[:, None])[rows_P, n_P]
        gain_P, known_P = gain_P - found.kept_P * effect_P, known_P + found.kept_P * found.mean_P
        kept_PN[rows_P, n_P] = found.kept_P
        parent_P = np.where(found.kept_P, 0, np.maximum(parent_P, found.seeds_P))
        asked_PN[rows_P, n_P] = True
        measured_PN[rows_P, n_P], error_PN[rows_P, n_P] = found.mean_P, found.error_P
        is_same_PN = KIND_N[n_P][:, None] == KIND_N
        left_PN *= np.where(found.kept_P[:, None], np.where(is_same_PN, *left), 1.0)
        for values, value_P in zip(courses, (hours_P, gain_P, ratio_P), strict=True):
            values.append(value_P)
    return Course(*(np.stack(values, 1) for values in courses))


def attainable(projects: Projects, left: tuple[float, float]) -> np.ndarray:
    """Returns the improvement (P,) of who knows the truth and keeps what exceeds the margin, the largest gain first."""
    rows_P, gain_P = np.arange(len(projects.low_PN)), np.zeros(len(projects.low_PN))
    left_PN, effect_PN = np.ones_like(projects.low_PN), np.minimum(projects.effect_PN, 0.0)
    for _ in range(QUESTIONS):
        n_P = (effect_PN * left_PN).argmin(1)
        now_P = -(effect_PN * left_PN)[rows_P, n_P]
        now_P = np.where(now_P > MARGIN, now_P, 0.0)
        gain_P += now_P
        left_PN *= np.where(now_P[:, None] > 0, np.where(KIND_N[n_P][:, None] == KIND_N, *left), 1.0)
        effect_PN[rows_P, n_P] = 0.0
    return gain_P


def policies(projects: Projects, random: np.random.Generator) -> dict[str, Policy]:
    """Returns the orders that are compared, by name."""
    midpoint_PN = (projects.low_PN + projects.high_PN) / 2
    costs_PN = projects.costs(np.full(len(midpoint_PN), INTERIM_SEEDS[0])).hours(np.array(INTERIM_SEEDS[0]))
    return {
        "random": fixed(random.random(midpoint_PN.shape)),
        "expected gain": fixed(midpoint_PN),
        "expected gain per hour": fixed(np.where(midpoint_PN < 0, midpoint_PN / costs_PN, midpoint_PN * costs_PN)),
        "recommended, without learning": without_learning,
        "recommended": recommended,
    }


def hours_to(course: Course, wanted_P: np.ndarray) -> np.ndarray:
    """Returns the hours until an improvement is reached; those of all questions where it never is."""
    is_there_PT = course.gain_PT >= wanted_P[:, None]
    first_P = np.where(is_there_PT.any(1), is_there_PT.argmax(1), QUESTIONS - 1)
    return course.hours_PT[np.arange(len(first_P)), first_P]


def gain_at(course: Course, hours: float) -> np.ndarray:
    """Returns the improvement of each project once so many hours are spent."""
    number_P = (course.hours_PT <= hours).sum(1)
    return np.where(number_P, course.gain_PT[np.arange(len(number_P)), np.maximum(number_P - 1, 0)], 0.0)


def median_of(values_P: np.ndarray, random: np.random.Generator) -> list[float]:
    """Returns a median and its 95 % bootstrap interval."""
    drawn = np.median(values_P[random.integers(0, len(values_P), (1000, len(values_P)))], 1)
    return [round(float(each), 3) for each in (np.median(values_P), *np.quantile(drawn, (0.025, 0.975)))]


def worth(course: Course, hours_to_come: float) -> np.ndarray:
    """Returns the hours saved of those to come, less those that were spent, after each question (P, T + 1).

    Of what one kept change leaves, the next saves its share.
    """
    net_PT = hours_to_come * (1 - np.exp(-course.gain_PT / PARENT.slope)) - course.hours_PT
    return np.concatenate([np.zeros((len(net_PT), 1)), net_PT], 1)


def count_stopping(course: Course, random: np.random.Generator) -> dict[str, dict]:
    """Returns what it saves to stop where the best question is expected to save less than it costs."""
    found = {}
    for hours in TO_COME:
        net_PT, pays_PT = worth(course, hours), hours * course.ratio_PT > 1
        asked_P = np.where(pays_PT.all(1), QUESTIONS, (~pays_PT).argmax(1))
        stopped_P = net_PT[np.arange(len(net_PT)), asked_P]
        spent_PT = np.concatenate([np.zeros((len(net_PT), 1)), course.hours_PT], 1)
        found[f"{hours:g}"] = {
            "questions asked": median_of(asked_P, random),
            "hours spent": median_of(spent_PT[np.arange(len(net_PT)), asked_P], random),
            "mean net saving, stopped": round(float(stopped_P.mean()), 2),
            "mean net saving, all asked": round(float(net_PT[:, -1].mean()), 2),
            "mean net saving, the best number for this law": round(float(net_PT.mean(0).max()), 2),
            "the best number": int(net_PT.mean(0).argmax()),
            "mean net saving, stopped with hindsight": round(float(net_PT.max(1).mean()), 2),
        }
    return found


def count(law: Law, projects: int) -> tuple[dict, dict[str, Course]]:
    """Returns what a law gives, and the courses by policy."""
    random = np.random.default_rng(0)
    drawn = draw_projects(law, projects, random)
    courses = {name: play(drawn, policy, law.left) for name, policy in policies(drawn, random).items()}
    wanted_P = attainable(drawn, law.left) / 2
    hours = {name: hours_to(course, wanted_P) for name, course in courses.items()}
    found: dict = {"law": law._asdict(), "projects": projects}
    if not law.all_worse:
        found["hours to half of what is attainable"] = {name: median_of(each, random) for name, each in hours.items()}
        found["never reached"] = {
            name: round(float((course.gain_PT.max(1) < wanted_P).mean()), 3) for name, course in courses.items()
        }
        ratio = {name: median_of(hours["recommended"] / each, random) for name, each in hours.items()}
        found["recommended beside it, hours of the same project"] = ratio
        found["improvement at hours"] = {
            f"{spent:g}": {name: median_of(gain_at(course, spent), random) for name, course in courses.items()}
            for spent in (25.0, 50.0, 100.0)
        }
    found["stopping, by the hours to come"] = count_stopping(courses["recommended"], random)
    found["stopping, without learning"] = count_stopping(courses["recommended, without learning"], random)
    return found, courses


def draw(found: dict[str, tuple[dict, dict[str, Course]]]):
    """Returns the improvement by the hours spent, a panel for each law, and the hours to half of it."""
    shown = {name: each for name, each in found.items() if "never reached" in each[0]}
    figure = make_figure(14.5, 6.4)
    panels = figure.subplots(2, 5, sharex=True).ravel()
    for axes, (name, (counted, courses)) in zip(panels, shown.items(), strict=False):
        grid = np.linspace(0, 150, 76)
        for policy, colour in COLOURS.items():
            gains = np.stack([gain_at(courses[policy], hours) for hours in grid])
            hours = counted["hours to half of what is attainable"][policy][0]
            style = {"lw": 2.0 if policy == "recommended" else 1.2, "color": colour}
            axes.plot(grid, np.median(gains, 1), label=f"{policy}: {hours:.0f} h", **style)
            if policy == "recommended":
                axes.fill_between(grid, *np.quantile(gains, (0.25, 0.75), axis=1), color=colour, alpha=0.12, lw=0)
        top = axes.get_ylim()[1]
        axes.set(title=name, ylim=(-0.45 * top, top), yticks=[tick for tick in axes.get_yticks() if 0 <= tick <= top])
        axes.legend(fontsize=6, loc="lower right")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    note = (
        "Median improvement of what is kept, in standard deviations of one seed's difference, by device hours (a run "
        "of the parent takes 1). The band holds half of the projects whose questions were asked as recommended. Behind "
        "each order stand the hours to half of what is attainable by who knows the truth, median of the projects."
    )
    note = "\n".join(wrap(note, 44))
    panels[-1].text(0.0, 0.9, note, transform=panels[-1].transAxes, va="top", fontsize=8)
    return figure


def reported_expectations(folder: Path) -> list[tuple[str, float, float, float, float]]:
    """Returns (path of what changes, low, high, difference, error) of each question in the reports of a folder."""
    number, rows = r"[-+.\d]+", []
    for path in sorted(folder.glob("**/report.md")):
        text = html.unescape(path.read_text(encoding="utf-8")).replace("\N{MINUS SIGN}", "-")
        for line in text.partition("## Decisions")[2].partition("\n## ")[0].splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            measured = re.match(rf"({number}) ± ({number})<br>", cells[3]) if len(cells) > 4 else None
            expected = re.match(rf"\[({number}), ({number})\]", cells[4]) if measured else None
            if measured and expected:
                rows.append((cells[1].partition(":")[0], *map(float, (*expected.groups(), *measured.groups()))))
    return rows


def print_expectations() -> None:
    """Prints how the expectations in `tools/results` came out, and the model fitted to them alone."""
    rows = reported_expectations(Path(__file__).with_name("results"))
    low_N, high_N, effect_N, error_N = np.array([row[1:] for row in rows]).T
    names = sorted({kind_of([row[0]]) for row in rows})
    kind_N = np.array([names.index(kind_of([row[0]])) for row in rows])
    fitted = calibrate(
        Expectations(low_N, high_N, kind_N, effect_N, error_N), len(names), Prior((1, 1.5), (0, 3), (2, 0.5), (0.5, 3))
    )
    errors = np.sqrt(np.diagonal(fitted.covariance_CC))
    better, worse = (effect_N < low_N).sum(), (effect_N > high_N).sum()
    print(f"{len(rows)} questions: {len(rows) - better - worse} as expected, {better} better, {worse} worse")
    print(f"slope {fitted.mean_C[0]:.2f} ± {errors[0]:.2f}, shift {fitted.mean_C[1]:.2f} ± {errors[1]:.2f}")
    print(f"spread {fitted.spread:.2f} half-widths, of kinds {fitted.kind_spread:.2f}")
    for name, value in zip(names, fitted.mean_C[2:], strict=True):
        print(f"  {name}: {value:+.2f}")


def main() -> None:
    """Simulates, prints, and writes the numbers and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--projects", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "next_question")
    parser.add_argument("--expectations", action="store_true", help="fit those of the reports in tools/results instead")
    options = parser.parse_args()
    if options.expectations:
        return print_expectations()
    found = {}
    for law in LAWS:
        found[law.name] = count(law, options.projects)
        counted = found[law.name][0]
        print(law.name)
        for name, each in counted.items():
            if isinstance(each, dict) and name != "law":
                print(f"  {name}: {json.dumps(each)}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {name: counted for name, (counted, _) in found.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(counted)}" for name, counted in results.items())
    (options.out / "simulated.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    with drawing():
        save_png(draw(found), options.out / "simulated.png")


if __name__ == "__main__":
    main()
