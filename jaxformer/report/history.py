"""All studies of a folder of runs: every question of its ledger, what became of it, and what they amount to together.

The ledger keeps what was decided; nothing here reads a run's results again.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation import ledger
from jaxformer.ablation.verdict import Word
from jaxformer.config import require
from jaxformer.experiment.variant import OF
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.queue import STOPPED_EARLY
from jaxformer.report.formatting import NOTHING, expectation, number, plain, probability, signed
from jaxformer.report.graph import Box, draw_boxes
from jaxformer.report.style import COLOURS, GREY, INK, make_figure

HEADINGS = (
    "generation",
    "question",
    "verdict",
    "bits per byte ± error",
    "shrunken",
    "expected",
    "outcome",
    "q",
    "seeds",
    "device hours",
    "became",
)

# Keys of a verdict without which it cannot be shown.
_NEEDED = ("parents", "generation", "question", "expected", "source", "verdict", "reason", "seeds", "device_hours")


class Asked(NamedTuple):
    """A question, its last verdict, and what became of it."""

    line: ledger.Line
    """Of the ledger."""
    shrunken: float
    """Difference shrunken by what all comparisons owe to chance; NaN where that is not known."""
    promoted: tuple[str, ...]
    """Names of the experiments that it became."""
    confirmation: str
    """What was answered when it was confirmed; '' where it was not."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.line["variant"]

    @property
    def word(self) -> Word:
        """What was decided."""
        return Word(self.line["verdict"])

    @property
    def is_unconfirmed(self) -> bool:
        """Whether it was kept or promoted, and not confirmed."""
        return (self.word is Word.KEEP or bool(self.promoted)) and self.confirmation != ledger.CONFIRMED


class History(NamedTuple):
    """All studies of a folder of runs."""

    questions: list[Asked]
    """In the order in which they were first asked."""
    account: ledger.Account
    spread: float
    """Spread of the true differences of all questions, bits per byte; NaN where they are too few to tell."""
    device_hours: float
    """Of all runs in the folder that are finished or were stopped early."""


def collect_history(runs: Path) -> History:
    """Returns what the ledger of a folder of runs holds.

    Raises:
        UserError: it holds no verdict.
    """
    lines = []
    for line in ledger.read_ledger(runs):
        if line["kind"] == ledger.VERDICT and not _is_whole(line):
            print_notice(f"{runs / ledger.LEDGER}: a verdict on {line['variant']} is not whole, and left out")
        else:
            lines.append(line)
    verdicts, spread = ledger.latest_verdicts(lines), ledger.spread_of_gains(lines)
    advice = "`jaxformer ablate`, and `jaxformer report` of a study, record one"
    require(bool(verdicts), f"{runs / ledger.LEDGER}: no verdict is recorded; {advice}")
    questions = []
    for (parent, variant), line in verdicts.items():
        ours = [each for each in lines if (each["parent"], each["variant"]) == (parent, variant)]
        names = dict.fromkeys(each["name"] for each in ours if each["kind"] == ledger.PROMOTION)
        answers = [each["answer"] for each in ours if each["kind"] == ledger.CONFIRMATION]
        shrunken = ledger.shrunken_gain(line, spread)
        questions.append(Asked(line, shrunken, tuple(names), answers[-1] if answers else ""))
    return History(questions, ledger.account(lines), spread, _device_hours(runs))


def _is_whole(line: Mapping[str, Any]) -> bool:
    words, expected = {word.value for word in Word}, line.get("expected")
    has_keys = all(name in line for name in _NEEDED) and line["verdict"] in words
    return has_keys and isinstance(expected, list) and len(expected) == 2 and isinstance(line["seeds"], list)


def _device_hours(runs: Path) -> float:
    """Returns the device hours of all runs in a folder that are finished or were stopped early."""
    paths = [*runs.glob("*/seed_*/summary.json"), *runs.glob(f"*/seed_*/{STOPPED_EARLY}")]
    found = [read_json_or_empty(path).get("device_hours", 0.0) for path in sorted(paths)]
    return math.fsum(hours for hours in found if isinstance(hours, int | float) and 0 <= hours < math.inf)


def summarise_history(history: History) -> list[tuple[str, str]]:
    """Returns what all questions amount to, as (name, value)."""
    found, questions = history.account, history.questions
    words = [one.word for one in questions]
    generations = len({one.line["generation"] for one in questions})
    counts = ", ".join(f"{words.count(word)} {word.value}" for word in Word if word in words)
    shrunken = "not known with so few comparisons"
    if math.isfinite(history.spread):
        shrunken = f"true differences scatter by {history.spread:.4f} bits per byte, by what was measured of all"
    times = [str(one.line["time"]) for one in questions]
    unconfirmed = [one.name for one in questions if one.is_unconfirmed]
    words_of = {"inside": "as expected", "better": "better than expected", "worse": "worse than expected"}
    return [
        ("Questions", f"{len(questions)} in {generations} generation{'s' * (generations > 1)}: {counts}"),
        (
            "Chance",
            f"a change without effect is kept with at most {ledger.FALSE_KEEP:.1%}: {found.false_keeps:.2g} of the "
            f"{found.asked} questions that have enough seeds, if all were without; kept: {found.kept}",
        ),
        ("Expectations", ", ".join(f"{count} {words_of[word]}" for word, count in found.expectations.items())),
        ("Shrinking", shrunken),
        ("Not confirmed", ", ".join(unconfirmed) or "none"),
        ("Device hours", f"{history.device_hours:.2f} of all runs in the folder"),
        ("Time", f"{min(times)} to {max(times)}"),
    ]


def question_rows(history: History) -> list[tuple[str, ...]]:
    """Returns a row for each question, in the order of `HEADINGS`."""
    rows = []
    for one in history.questions:
        line, difference = one.line, one.line["difference"] or {}
        q = line.get("q")
        rows.append(
            (
                str(line["generation"]),
                f"{one.name} of {line['parent']}: {line['question']}",
                one.word.value,
                _with_error(difference),
                signed(one.shrunken),
                expectation(line["expected"]),
                ledger.beside_expectation(line) or NOTHING,
                NOTHING if q is None else probability(q),
                str(len(line["seeds"])),
                number(line["device_hours"], 2),
                _became(one),
            )
        )
    return rows


def generation_rows(history: History) -> list[tuple[str, ...]]:
    """Returns (generation, questions, kept, device hours of the variants) for each generation."""
    rows = []
    for generation in sorted({one.line["generation"] for one in history.questions}):
        ours = [one for one in history.questions if one.line["generation"] == generation]
        kept = [one.name for one in ours if one.word is Word.KEEP]
        hours = math.fsum(one.line["device_hours"] for one in ours)
        rows.append((str(generation), str(len(ours)), ", ".join(kept) or NOTHING, number(hours, 2)))
    return rows


def _with_error(difference: Mapping[str, Any]) -> str:
    mean, error = (difference.get(name) for name in ("mean", "standard_error"))
    return NOTHING if mean is None else f"{signed(mean)} ± {number(math.nan if error is None else error, 4)}"


def _became(one: Asked) -> str:
    parts = [*one.promoted, one.confirmation or ("not confirmed yet" if one.is_unconfirmed else "")]
    return ", ".join(part for part in parts if part)


def history_graph(history: History):
    """Returns a `networkx.DiGraph`: each question behind what it changes, a promoted one before its own questions."""
    import networkx as nx

    graph, node_of = nx.DiGraph(), {}
    for one in history.questions:
        node_of |= dict.fromkeys(one.promoted, one.name)
    for one in history.questions:
        for parent in one.line["parents"]:
            graph.add_node(node_of.get(parent, parent))
        graph.add_node(one.name)
    for one in history.questions:
        for parent in one.line["parents"]:
            source = node_of.get(parent, parent)
            if not nx.has_path(graph, one.name, source):  # A ledger may be edited.
                graph.add_edge(source, one.name)
    return graph


def draw_history(history: History):
    """Returns the graph of all questions, coloured by verdict."""
    by_name, boxes = {one.name: one for one in history.questions}, {}
    graph = history_graph(history)
    for name in graph:
        one = by_name.get(name)
        if one is None:
            boxes[name] = Box(name, None, "where it began", _bits_of_root(history, name), "", "", is_parent=True)
            continue
        line = one.line
        scores = f"shrunken {signed(one.shrunken)}; expected {expectation(line['expected'])}"
        seeds = len(line["seeds"])
        cost = f"{line['device_hours']:.3g} device h, {seeds} seed{'s' * (seeds != 1)}"
        own = name.partition(OF)[0]  # The edge shows what it was asked of.
        title = f"{' and '.join(one.promoted)}: {own}" if one.promoted else own
        cost += f"; {one.confirmation or 'not confirmed yet'}" * bool(one.confirmation or one.is_unconfirmed)
        difference = _with_error(line["difference"] or {})
        texts = line["question"], difference, scores, cost
        boxes[name] = Box(title, one.word, *texts, is_flagged=one.is_unconfirmed, is_parent=bool(one.promoted))
    legend = (
        "Bits per byte against what is changed ± standard error; shrunken; expected; cost.",
        "Left: what is changed. Right: its changes. Thick: promoted. Broken: kept or promoted, not confirmed.",
    )
    return draw_boxes(graph, boxes, legend)


def _bits_of_root(history: History, name: str) -> str:
    """Returns the mean of an experiment that no question led to, as its last comparison had it; '' if unknown."""
    found = [one.line.get("bits_per_byte") for one in history.questions if one.line["parent"] == name]
    bits = (found[-1] or {}).get("parent") if found else None
    return "" if bits is None else f"{bits:.4f} bits per byte"


def draw_expectations(history: History):
    """Returns what was measured of each question beside what was expected, or None where nothing was measured."""
    measured = [one for one in history.questions if (one.line["difference"] or {}).get("mean") is not None]
    if not measured:
        return None
    figure = make_figure(9.5, 1.1 + 0.24 * len(measured))
    axes = figure.subplots()
    middle = sorted(abs(one.line["difference"]["mean"]) for one in measured)[(3 * len(measured)) // 4]
    reach = 2.5 * max(middle, *(max(map(abs, one.line["expected"])) for one in measured[:1]), 1e-4)
    for i, one in enumerate(measured):
        difference, (low, high) = one.line["difference"], one.line["expected"]
        axes.barh(i, high - low, left=low, height=0.62, fc="#EDEFF1", ec="#B4B8BC", lw=0.6, hatch="////", zorder=1)
        ends = [difference.get(name) for name in ("low", "high")]
        if None not in ends:
            axes.plot(ends, [i, i], color=COLOURS[one.word], lw=1.4, zorder=2)
        place = min(max(difference["mean"], -reach), reach)
        marker = "o" if place == difference["mean"] else ("<" if place < 0 else ">")
        axes.plot([place], [i], marker, color=COLOURS[one.word], ms=5, zorder=3, clip_on=False)
    axes.axvline(0, color=INK, lw=0.9)
    labels = [plain(f"{one.line['generation']}  {one.name}", 34) for one in measured]
    axes.set_yticks(range(len(measured)), labels, fontsize=7.5)
    axes.set(xlim=(-reach, reach), ylim=(len(measured) - 0.4, -0.6), xlabel="bits per byte, variant minus parent")
    axes.tick_params(axis="y", length=0, labelcolor=GREY)
    axes.grid(visible=False, axis="y")
    return figure
