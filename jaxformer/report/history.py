"""All studies of a folder of runs: every question of its ledger, its outcome, and the totals.

The ledger holds the decisions; nothing here reads a run's results again.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation import ledger
from jaxformer.ablation.verdict import Word
from jaxformer.config import require
from jaxformer.experiment.variant import OF
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.queue import STOPPED_EARLY
from jaxformer.report.findings import NOT_KNOWN
from jaxformer.report.forest_plot import Row, draw_rows
from jaxformer.report.formatting import NOTHING, expectation, number, probability, signed
from jaxformer.report.graph import Box, describe_cost, draw_boxes

# The lines of each column's heading, and of the cells below it.
HEADINGS = (
    ("generation",),
    ("variant", "question"),
    ("verdict",),
    ("bits per byte ± error", "shrunken"),
    ("expected", "outcome"),
    ("q",),
    ("seeds", "device hours"),
    ("became",),
)

# Keys of a verdict without which it cannot be shown.
_NEEDED = ("parents", "generation", "question", "expected", "source", "verdict", "reason", "seeds", "device_hours")

_OF_PARENT = ("bits_per_byte", "learning_rates")


class Question(NamedTuple):
    """A question, its last verdict, and its outcome."""

    line: ledger.Line
    """Of the ledger."""
    shrunken: float
    """Difference shrunken by the share of chance in all comparisons; NaN if unknown."""
    promoted: tuple[str, ...]
    """Names of the experiments that it became."""
    confirmation: str
    """The answer of its confirmation; '' without one."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.line["variant"]

    @property
    def word(self) -> Word:
        """The decision."""
        return Word(self.line["verdict"])

    @property
    def difference(self) -> ledger.Line:
        """As of `ledger.describe_difference`; empty if it was not compared."""
        return self.line["difference"] or {}

    @property
    def outcome(self) -> str:
        """How the difference compares with its expectation."""
        return ledger.beside_expectation(self.difference, self.line["expected"]) or NOT_KNOWN

    @property
    def is_removal(self) -> bool:
        """Whether it leaves out a kept change instead of making a new one."""
        return bool(self.line.get("leaves_out"))

    @property
    def is_unconfirmed(self) -> bool:
        """Whether it was kept or promoted, but not confirmed."""
        return (self.word is Word.KEEP or bool(self.promoted)) and self.confirmation != ledger.CONFIRMED


class History(NamedTuple):
    """All studies of a folder of runs."""

    questions: list[Question]
    """In the order of their first verdicts."""
    account: ledger.Account
    spread: float
    """Spread of the true differences of all questions, bits per byte; NaN if they are too few."""
    device_hours: float
    """Of all runs in the folder that are finished or were stopped early."""


def collect_history(runs: Path) -> History:
    """Returns the contents of the ledger of a folder of runs.

    Raises:
        UserError: it holds no verdict.
    """
    lines = []
    for line in ledger.read_ledger(runs):
        if line["kind"] == ledger.VERDICT and not _is_whole(line):
            print_notice(f"{runs / ledger.LEDGER}: a verdict on {line['variant']} is incomplete, and left out")
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
        questions.append(Question(line, shrunken, tuple(names), answers[-1] if answers else ""))
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
    """Returns the totals over all questions, as (name, value)."""
    found, questions = history.account, history.questions
    new, removals = ([one for one in questions if one.is_removal is each] for each in (False, True))
    generations = len({one.line["generation"] for one in new})
    spread = "unknown with so few comparisons, so that no difference is shrunken"
    if math.isfinite(history.spread):
        spread = f"{history.spread:.4f} bits per byte (standard deviation of the true differences, estimated from all)"
    times = sorted(str(one.line["time"])[:16].replace("T", " ") for one in questions)
    promoted = [f"{_own_name(one)} as {_became(one)}" for one in questions if one.promoted]
    others = [one.name for one in questions if one.word is Word.KEEP and not one.promoted]
    return [
        ("Questions", f"{len(new)} in {generations} generation{'s' * (generations != 1)}: {_count(new)}"),
        ("Left out again", f"{len(removals)}: {_count(removals)}" if removals else "none"),
        (
            "Chance",
            f"{found.kept} of the {found.asked} questions with enough seeds are kept; if no change had any effect, "
            f"about {found.false_keeps:.1f} would be ({ledger.FALSE_KEEP:.1%} of them)",
        ),
        ("Expectations", ", ".join(f"{count} {word}" for word, count in found.expectations.items()) or NOT_KNOWN),
        ("Spread", spread),
        ("Promoted", "; ".join(promoted) or "none"),
        ("Kept, not promoted", ", ".join(others) or "none"),
        ("Device hours", f"{history.device_hours:.2f} of all runs in the folder"),
        ("Verdicts", f"{times[0]} to {times[-1]} UTC"),
    ]


def _count(questions: Sequence[Question]) -> str:
    words = [one.word for one in questions]
    return ", ".join(f"{words.count(word)} {word.value}" for word in Word if word in words) or "none"


def question_rows(history: History) -> list[tuple[tuple[str, ...], ...]]:
    """Returns a row for each question: the lines of each cell, as of `HEADINGS`."""
    rows = []
    for one in history.questions:
        line, q = one.line, one.line.get("q")
        rows.append(
            (
                (str(line["generation"]),),
                (f"{_own_name(one)} of {line['parent']}", line["question"]),
                (one.word.value,),
                (_with_error(one.difference), signed(one.shrunken)),
                (expectation(line["expected"]), one.outcome),
                (NOTHING if q is None else probability(q),),
                (str(len(line["seeds"])), number(line["device_hours"], 2)),
                (_became(one),),
            )
        )
    return rows


def _own_name(one: Question) -> str:
    """Returns the name of a variant without the parent's, which is shown beside it."""
    return one.name.removesuffix(f"{OF}{one.line['parent']}")


def generation_rows(history: History) -> list[tuple[str, ...]]:
    """Returns (generation, questions, kept, device hours of the variants) for each generation."""
    rows = []
    questions = [one for one in history.questions if not one.is_removal]
    for generation in sorted({one.line["generation"] for one in questions}):
        ours = [one for one in questions if one.line["generation"] == generation]
        kept = [one.name for one in ours if one.word is Word.KEEP]
        hours = math.fsum(one.line["device_hours"] for one in ours)
        rows.append((str(generation), str(len(ours)), ", ".join(kept) or NOTHING, number(hours, 2)))
    return rows


def _with_error(difference: Mapping[str, Any]) -> str:
    mean, error = (difference.get(name) for name in ("mean", "standard_error"))
    return NOTHING if mean is None else f"{signed(mean)} ± {number(math.nan if error is None else error, 4)}"


def _confirmed(one: Question) -> str:
    return one.confirmation or ("not confirmed yet" if one.is_unconfirmed else "")


def _became(one: Question) -> str:
    return ", ".join(part for part in (*one.promoted, _confirmed(one)) if part)


def history_graph(history: History):
    """Returns a `networkx.DiGraph`: each question follows what it changes, and precedes its own questions."""
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
            boxes[name] = Box(name, None, "the first parent", _bits_of_root(history, name), "", "", is_parent=True)
            continue
        line = one.line
        details = f"expected {expectation(line['expected'])}"
        details += f"; shrunken {signed(one.shrunken)}" * math.isfinite(one.shrunken)
        cost = describe_cost(line["device_hours"], len(line["seeds"]))
        title = ": ".join(part for part in (" and ".join(one.promoted), _own_name(one)) if part)
        cost += f"; {_confirmed(one)}" * bool(_confirmed(one))
        texts = line["question"], _with_error(one.difference), details, cost
        boxes[name] = Box(title, one.word, *texts, is_flagged=one.is_unconfirmed, is_parent=bool(one.promoted))
    legend = "In each box: the question; bits per byte, minus its parent's, ± standard error; expectation. "
    legend += "A thick frame: promoted, and the parent of the next generation. A broken frame: not confirmed."
    return draw_boxes(graph, boxes, legend)


def _bits_of_root(history: History, name: str) -> str:
    """Returns the mean of an experiment that no question led to, from its last comparison; '' if unknown."""
    found = [one.line for one in history.questions if one.line["parent"] == name]
    bits, rate = (((found[-1].get(key) or {}).get("parent") if found else None) for key in _OF_PARENT)
    return "" if bits is None else f"{bits:.4f} bits per byte" + (f" at rate {rate:.2g}" if rate else "")


def draw_expectations(history: History):
    """Returns the plot of each question's measurement and expectation, or None if nothing was measured."""
    measured = [one for one in history.questions if one.difference.get("mean") is not None]
    return draw_rows([_row(one) for one in measured]) if measured else None


def _row(one: Question) -> Row:
    unknown = {"mean": math.nan, "low": -math.inf, "high": math.inf, "standard_error": math.nan}
    known = unknown | {name: value for name, value in one.difference.items() if value is not None}
    name, summary = f"{one.line['generation']}  {one.name}", f"{_with_error(one.difference)}  {one.outcome}"
    about = name, one.line["question"], one.word, summary, tuple(one.line["expected"])
    return Row(*about, known["mean"], known["standard_error"], (known["low"], known["high"]))
