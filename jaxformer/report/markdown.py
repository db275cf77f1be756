"""A study as a Markdown file to keep; texts are escaped."""

import re
from collections.abc import Sequence

from jaxformer.ablation.outcome import Outcome
from jaxformer.experiment.lineage import describe_change
from jaxformer.host.console import plain
from jaxformer.report import findings
from jaxformer.report.figures import Picture
from jaxformer.report.findings import collect_findings, decision_columns, task_names, task_table
from jaxformer.report.formatting import MINUS
from jaxformer.report.graph import box_lines, study_graph
from jaxformer.report.leave_one_out import COMPOSITION_HEADINGS, HEADING, composition_rows, describe_composition
from jaxformer.report.style import COLOURS
from jaxformer.report.summary import count_verdicts, summarise_study


def make_markdown(outcome: Outcome, pictures: Sequence[Picture]) -> str:
    """Returns the file. Args: pictures: stored beside it as PNG."""
    parts = [f"# Study of {_escape(outcome.study.parent)}", _escape(count_verdicts(outcome))]
    parts.append("\n".join(f"- **{name}**: {_escape(value)}" for name, value in summarise_study(outcome)))
    if made_of := outcome.composition:
        table = _table([COMPOSITION_HEADINGS, *composition_rows(made_of)])
        parts += [f"## {HEADING}", table, *map(_escape, describe_composition(made_of))]
    parts += ["## Decisions", _decisions(outcome)]
    if tasks := task_table(outcome):
        parts += ["## Tasks", findings.TASKS, _table(tasks)]
    parts += ["## The graph of ablations", _mermaid(outcome)]
    for picture in pictures:
        if picture.name != "graph":
            parts += [f"## {picture.heading}", picture.caption, f"![{picture.heading}]({picture.name}.png)"]
    parts.append("## Question by question")
    for finding in collect_findings(outcome):
        parts += [f"### {_escape(finding.name)}", _escape(finding.question)]
        points = [f"{finding.word.value}: {findings.reason_beside_numbers(finding)}", *findings.points(finding)]
        points.insert(0, findings.describe_expectation(finding))
        points += [f"{name}: {difference}" for name, difference, _ in findings.corpus_rows(finding)]
        parts.append(_list(points))
    parts += ["## The rule", "The first that holds decides.", _list(outcome.study.rule.steps())]
    return "\n\n".join(parts) + "\n"


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {_escape(text)}" for text in texts)


def _decisions(outcome: Outcome) -> str:
    columns = decision_columns(outcome)
    rows = [("variant", "change", "verdict", *(column.heading for column in columns), "reason")]
    for finding in collect_findings(outcome):
        change = "; ".join(describe_change(finding.lineage["change"]))
        why = "; ".join([findings.reason_beside_numbers(finding), *findings.notes(finding)])
        rows.append((finding.name, change, finding.word.value, *(column.cell(finding) for column in columns), why))
    return _table(rows)


def _table(rows: Sequence[Sequence[str | tuple[str, ...]]]) -> str:
    """Returns a table whose first row is its heading; a cell is a text, or a tuple of lines."""
    lines = []
    for row in rows:
        cells = ([cell] if isinstance(cell, str) else cell for cell in row)
        lines.append("| " + " | ".join("<br>".join(map(_escape, cell)) for cell in cells) + " |")
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _escape(text: object) -> str:
    """Returns a text as Markdown that shows it literally, in a table too."""
    return re.sub(r"[\\`*_\[\]<>&|$~#@]", lambda match: f"&#{ord(match[0])};", plain(text))


def _mermaid(outcome: Outcome) -> str:
    """Returns the graph of ablations in Mermaid, which GitHub draws."""
    by_name = {finding.name: finding for finding in collect_findings(outcome)}
    tasks = task_names(outcome)
    identifiers = {one.name: f"n{i}" for i, one in enumerate(outcome.experiments)}
    lines = ["```mermaid", "flowchart LR"]
    for name, identifier in identifiers.items():
        finding = by_name.get(name)
        texts = [name, *box_lines(outcome, finding, tasks), finding.word.value if finding else ""]
        label = "<br/>".join(_quote(text) for text in texts if text)
        lines.append(f'  {identifier}["{label}"]:::{finding.word.name.lower() if finding else "parent"}')
    lines += [f"  {identifiers[parent]} --> {identifiers[child]}" for parent, child in study_graph(outcome).edges]
    for word, colour in COLOURS.items():
        lines.append(f"  classDef {word.name.lower()} fill:#ffffff,stroke:{colour},stroke-width:3px,color:#1a1a1a")
    lines.append("  classDef parent fill:#f2f3f5,stroke:#1a1a1a,stroke-width:3px,color:#1a1a1a")
    return "\n".join([*lines, "```"])


def _quote(text: str) -> str:
    """Returns a text for a quoted label: Mermaid writes a character's number between # and ;."""
    return re.sub(r"[^\w .,:+/±→·%()=" + MINUS + r"-]", lambda match: f"#{ord(match[0])};", plain(text, 80))
