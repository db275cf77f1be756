"""What a study decided, as a table of text for a terminal."""

import re
import textwrap

from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.outcome import Outcome
from jaxformer.host.console import format_rows, format_table, name_cells, wrap
from jaxformer.report.findings import Finding, collect_findings, decision_columns, notes, reason
from jaxformer.report.formatting import MINUS, NOTHING, number, plain
from jaxformer.report.leave_one_out import COMPOSITION_HEADINGS, HEADING, composition_rows, describe_composition
from jaxformer.report.summary import describe_margin

# Columns of a line where it is no terminal's; and the fewest for a reason beside its numbers, which stands below them
# otherwise.
_WIDTH, _REASON_WIDTH = 150, 60


def decision_table(outcome: Outcome, columns: int | None = None) -> str:
    """Returns the margin, the noise floor, and a table with one variant a line, in the order of the study.

    Args:
        outcome: of the study.
        columns: of the terminal, None for a file. Where the table does not fit, a variant is a paragraph.
    """
    findings, width = collect_findings(outcome), columns or _WIDTH
    floor = noise_floor(outcome.runs[outcome.study.parent])
    introduction = [
        f"Bits per byte, variant minus parent: negative is better. Margin: {describe_margin(outcome)}. docs/studies.md "
        "and `jaxformer report` have the rule.",
        f"Noise floor of {plain(outcome.study.parent)}: {number(floor.standard_deviation, 4)}, over its "
        f"{len(floor.seeds)} seed{'s' * (len(floor.seeds) > 1)}.",
        "Tokens: times the variant's that the parent needs for the same loss. Time: of a token, beside the parent's.",
        *(f"Not read, and left out: {plain(line)}" for line in outcome.unread),
    ]
    paragraphs = [textwrap.fill(paragraph, min(120, width)) for paragraph in introduction]
    table = [*_table(_rows(outcome, findings), findings, columns), *_composition(outcome, min(120, width))]
    text = "\n".join(["", *paragraphs, "", *table])
    return text.replace(MINUS, "-").replace(NOTHING, "-")


def _composition(outcome: Outcome, width: int) -> list[str]:
    """Returns the lines on what the gain of the parent is made of, where the study leaves its changes out."""
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


def _table(rows: list[list[str]], findings: list[Finding], columns: int | None) -> list[str]:
    """Returns the lines of the table, with the reasons of what was found."""
    heading, *lines = format_table(rows, left=(0, 1))
    width, is_wide = columns or _WIDTH, columns is not None and len(heading) > columns
    table = [] if is_wide else [heading]
    is_beside = len(heading) + 2 + _REASON_WIDTH <= width
    for row, line, finding in zip(rows[1:], lines, findings, strict=True):
        first, indent = (f"{line}  ", " " * (len(line) + 2)) if is_beside else ("    ", "    ")
        options = {"initial_indent": first, "subsequent_indent": indent, "break_on_hyphens": False}
        reason = textwrap.wrap(_reason(finding), width, break_long_words=False, **options)
        known = ["" if cell == NOTHING else cell for cell in row]
        numbers = wrap(name_cells(rows[0], known), width, indent=4) if is_wide else [line]
        table += reason if is_beside and reason else [*numbers, *reason]
    return table


def _reason(finding: Finding) -> str:
    """Returns why it is decided so, without the numbers that the table has already."""
    why = reason(finding)
    if finding.difference is not None:
        why = re.sub(r"^[-+]\S*( \[\S+ \S+\])?[:,;]* *", "", why)
    return plain("; ".join([why, *notes(finding)] if why else notes(finding)))
