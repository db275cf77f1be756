"""What a study decided, as a table of text for a terminal."""

import math
import re
import textwrap

from jaxformer.ablation.outcome import Outcome
from jaxformer.report import findings
from jaxformer.report.answers import Answer, answers
from jaxformer.report.formatting import MINUS, NOTHING, number, plain

# Columns of a terminal; and the fewest for a reason beside its numbers, which stands below them otherwise.
_WIDE, _LEAST = 150, 40


def decision_table(outcome: Outcome) -> str:
    """Returns the rule, the noise floor, and a table with one variant a line, in the order of the study."""
    head = ("variant", "verdict", "difference", "interval", "q", "seeds", "tokens", "time")
    found = answers(outcome)
    lines = [head, *(_cells(outcome, each) for each in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = sum(widths) + 2 * len(widths)
    indent = left if left + _LEAST <= _WIDE else 4
    table = []
    for cells, why in zip(lines, ["", *map(_reason, found)], strict=True):
        padded = (x.ljust(n) if i < 2 else x.rjust(n) for i, (x, n) in enumerate(zip(cells, widths, strict=True)))
        told = textwrap.wrap(why, _WIDE - indent, break_long_words=False, break_on_hyphens=False)
        beside = told.pop(0) if told and indent == left else ""
        table.append(("  ".join(padded) + "  " + beside).rstrip())
        table += [" " * indent + line for line in told]
    notes = [
        findings.rule(outcome),
        f"Noise floor of {plain(outcome.study.parent)}: {findings.noise(outcome)}.",
        "Tokens: times the variant's that the parent needs for the same loss. Time: of a token, beside the parent's.",
    ]
    text = "\n".join(["", *(textwrap.fill(note, 120) for note in notes), "", *table])
    return text.replace(MINUS, "-").replace(NOTHING, "-")


def _cells(outcome: Outcome, each: Answer) -> tuple[str, ...]:
    cost = each.comparison.cost if each.comparison else None
    return (
        plain(each.name),
        each.word.value,
        *findings.difference(outcome, each),
        findings.p_and_q(each)[1],
        str(findings.seed_count(each)),
        _times(each.comparison.worth) if cost else NOTHING,
        _times(cost.time_per_token) if cost else NOTHING,
    )


def _times(ratio: float) -> str:
    return f"{number(ratio, 2)} x" if math.isfinite(ratio) else NOTHING


def _reason(each: Answer) -> str:
    """Returns why it is decided so, without the numbers that the table has already."""
    why = findings.reason(each)
    if each.difference is not None:
        why = re.sub(r"^[-+]\S*( \[\S+ \S+\])?[:,;]* *", "", why)
    return plain("; ".join([why, *findings.notes(each)] if why else findings.notes(each)))
