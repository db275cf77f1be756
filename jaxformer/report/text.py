"""What a study decided, as a table of text for a terminal."""

import re
import textwrap

from jaxformer.ablation.outcome import Outcome
from jaxformer.host.console import format_table
from jaxformer.report.findings import Finding, collect_findings, decision_columns, notes, reason
from jaxformer.report.formatting import MINUS, NOTHING, plain
from jaxformer.report.summary import describe_noise_floor, describe_rule

# Columns of a terminal; and the fewest for a reason beside its numbers, which stands below them otherwise.
_WIDTH, _REASON_WIDTH = 150, 40


def decision_table(outcome: Outcome) -> str:
    """Returns the rule, the noise floor, and a table with one variant a line, in the order of the study."""
    findings, columns = collect_findings(outcome), decision_columns(outcome)
    rows = [["variant", "verdict", *(heading for column in columns for heading in column.terminal if heading)]]
    for finding in findings:
        lines = [pair for column in columns for pair in zip(column.terminal, column.cell(finding), strict=False)]
        rows.append([plain(finding.name), finding.word.value, *(text for heading, text in lines if heading)])
    heading, *lines = format_table(rows, left=(0, 1))
    table = [heading]
    is_beside = len(heading) + 2 + _REASON_WIDTH <= _WIDTH
    for line, finding in zip(lines, findings, strict=True):
        first, indent = (f"{line}  ", " " * (len(line) + 2)) if is_beside else ("    ", "    ")
        options = {"initial_indent": first, "subsequent_indent": indent, "break_on_hyphens": False}
        wrapped = textwrap.wrap(_reason(finding), _WIDTH, break_long_words=False, **options)
        table += wrapped if is_beside and wrapped else [line, *wrapped]
    introduction = [
        describe_rule(outcome),
        f"Noise floor of {plain(outcome.study.parent)}: {describe_noise_floor(outcome)}.",
        "Tokens: times the variant's that the parent needs for the same loss. Time: of a token, beside the parent's.",
        *(f"Not read, and left out: {plain(line)}" for line in outcome.unread),
    ]
    text = "\n".join(["", *(textwrap.fill(paragraph, 120) for paragraph in introduction), "", *table])
    return text.replace(MINUS, "-").replace(NOTHING, "-")


def _reason(finding: Finding) -> str:
    """Returns why it is decided so, without the numbers that the table has already."""
    why = reason(finding)
    if finding.difference is not None:
        why = re.sub(r"^[-+]\S*( \[\S+ \S+\])?[:,;]* *", "", why)
    return plain("; ".join([why, *notes(finding)] if why else notes(finding)))
