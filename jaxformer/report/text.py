"""The decisions of a study, as a text table for a terminal."""

import collections
import textwrap
from collections.abc import Collection

from jaxformer.ablation.outcome import Outcome
from jaxformer.host.console import format_rows, format_table, plain, wrap
from jaxformer.report.findings import Finding, collect_findings, decision_columns, notes, reason_beside_numbers
from jaxformer.report.formatting import MINUS, NOTHING
from jaxformer.report.leave_one_out import COMPOSITION_HEADINGS, HEADING, composition_rows, describe_composition
from jaxformer.report.summary import describe_margin, describe_noise_floor

# The most columns of a line of words.
_WIDTH = 120

# A note that at least so many variants share is printed once, below the table.
_SHARED = 3


def decision_table(outcome: Outcome, columns: int | None = None) -> str:
    """Returns what the numbers mean, and a table with one variant per line, in the order of the study.

    Args:
        outcome: of the study.
        columns: of the terminal, None for a file. If the table does not fit, each variant is a paragraph.
    """
    findings, width = collect_findings(outcome), min(columns or _WIDTH, _WIDTH)
    introduction = [
        "Validation bits per byte, variant minus parent: negative is better. `jaxformer report` writes the whole rule.",
        f"Margin: {plain(describe_margin(outcome))}.",
        f"Noise floor of {plain(outcome.study.parent)}: {plain(describe_noise_floor(outcome))}.",
        "q: q-value of an improvement, over all questions about the parent. Tokens: the parent needs so many times the "
        "variant's for the same loss. Time: per token, relative to the parent's.",
        *(f"Left out, since it cannot be read: {plain(line)}" for line in outcome.unread),
    ]
    paragraphs = ["\n".join(wrap(each, width)) for each in introduction]
    shared = _shared_notes(findings)
    table = _table(_rows(outcome, findings), [_reason(finding, shared) for finding in findings], columns, width)
    below = [textwrap.fill(f"{', '.join(names)}: {plain(note)}.", width) for note, names in shared.items()]
    below = ["", *below] if below else []
    text = "\n".join(["", *paragraphs, "", *table, *below, *_composition(outcome, width)])
    return text.replace(MINUS, "-").replace(NOTHING, "-")


def _shared_notes(findings: list[Finding]) -> dict[str, list[str]]:
    """Returns the notes that several variants share, with their names."""
    names = collections.defaultdict(list)
    for finding in findings:
        for note in notes(finding):
            names[note].append(plain(finding.name))
    return {note: ours for note, ours in names.items() if len(ours) >= _SHARED}


def _composition(outcome: Outcome, width: int) -> list[str]:
    """Returns the lines on the contributions to the parent's gain, if the study leaves its changes out."""
    if outcome.composition is None:
        return []
    rows = [[*COMPOSITION_HEADINGS], *([plain(cell) for cell in row] for row in composition_rows(outcome.composition))]
    sentences = (textwrap.fill(each, width) for each in describe_composition(outcome.composition))
    return ["", f"{HEADING}:", "", *format_rows(rows, width, left=(0, 4)), "", *sentences]


def _rows(outcome: Outcome, findings: list[Finding]) -> list[list[str]]:
    """Returns the heading and the cells of each variant."""
    columns = decision_columns(outcome)
    rows = [["variant", "verdict", *(heading for column in columns for heading in column.terminal if heading)]]
    for finding in findings:
        lines = [pair for column in columns for pair in zip(column.terminal, column.cell(finding), strict=False)]
        rows.append([plain(finding.name), finding.word.value, *(text for heading, text in lines if heading)])
    return rows


def _table(rows: list[list[str]], reasons: list[str], columns: int | None, width: int) -> list[str]:
    """Returns the lines of the table, each with the reason of its finding below it in lines of a width."""
    heading, *lines = format_table(rows, left=(0, 1))
    is_wide = columns is not None and len(heading) > columns
    options = {"initial_indent": "    ", "subsequent_indent": "    ", "break_on_hyphens": False}
    table = [] if is_wide else [heading]
    for row, line, why in zip(rows[1:], lines, reasons, strict=True):
        table += wrap(_paragraph(rows[0], row), columns, indent=4) if is_wide else [line]
        table += textwrap.wrap(why, width, break_long_words=False, **options)
    return table


def _paragraph(heading: list[str], row: list[str]) -> str:
    """Returns a row in one line: the name, the verdict, the difference and its interval, and the others by heading."""
    name, word, difference, interval, *others = row
    known = [f"{text} {cell}" for text, cell in zip(heading[4:], others, strict=True) if cell != NOTHING]
    found = [] if difference == NOTHING else [f"{difference} {interval}"]
    return f"{name}: {', '.join([word, *found, *known])}"


def _reason(finding: Finding, shared: Collection[str]) -> str:
    """Returns the reason of a decision, and its reservations without notes shared with others."""
    own = [note for note in notes(finding) if note not in shared]
    return plain("; ".join(text for text in (reason_beside_numbers(finding), *own) if text))
