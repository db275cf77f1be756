"""A study as a Markdown file to keep; whatever a text holds is shown as it is."""

import re
from collections.abc import Collection

from jaxformer.ablation.outcome import Outcome
from jaxformer.report import findings
from jaxformer.report.answers import answers, tasks_of
from jaxformer.report.figures import PICTURES
from jaxformer.report.formatting import MINUS, describe_change, expectation, plain, with_error
from jaxformer.report.graph import graph_edges, node_facts
from jaxformer.report.style import COLOURS


def make_markdown(outcome: Outcome, pictures: Collection[str]) -> str:
    """Returns the file. Args: pictures: the names of those that there are, beside it as PNG."""
    tasks, rule = tasks_of(outcome), outcome.study.rule
    parts = [f"# Study of {_m(outcome.study.parent)}", _m(findings.count_words(outcome))]
    parts.append("\n".join(f"- **{name}**: {_m(value)}" for name, value in findings.about(outcome)))
    heads = ["variant", "change", "verdict", "bits per byte", f"{1 - rule.alpha:.1%} interval", "p", "q", "seeds"]
    heads += [*(f"{task} %" for task in tasks), "time per token", "parameters", "device hours", "reason"]
    lines = ["| " + " | ".join(map(_m, heads)) + " |", "|" + " --- |" * len(heads)]
    for each in answers(outcome):
        change = "; ".join(describe_change(each.lineage["change"]))
        told = [each.name, change, each.word.value, *findings.difference(outcome, each), *findings.p_and_q(each)]
        told += [
            str(findings.seed_count(each)),
            *(findings.accuracy(each, task) for task in tasks),
            *findings.ratios(each),
            f"{each.hours:.2f}",
        ]
        told.append("; ".join([findings.reason(each), *findings.notes(each)]))
        lines.append("| " + " | ".join(map(_m, told)) + " |")
    parts += ["## Decisions", "\n".join(lines), "## Expectations"]
    lines = ["| variant | question | expected | source | found | outcome |", "|" + " --- |" * 6]
    for each in answers(outcome):
        told = [each.name, each.question, expectation(each.expected), each.lineage["source"]]
        told += [findings.difference(outcome, each)[0], findings.beside(outcome, each)]
        lines.append("| " + " | ".join(map(_m, told)) + " |")
    parts += ["\n".join(lines), "## The graph of ablations", _mermaid(outcome)]
    for one in PICTURES:
        if one.name in pictures and one.name != "graph":
            parts += [f"## {one.heading}", one.caption, f"![{one.heading}]({one.name}.png)"]
    parts.append("## Question by question")
    for each in answers(outcome):
        parts.append(f"### {_m(each.name)}")
        corpora = each.comparison.corpora if each.comparison else {}
        points = [f"{name}: {with_error(one)}" for name, one in corpora.items()] if len(corpora) > 1 else []
        points = [
            findings.reason(each),
            *findings.readings(each),
            findings.interaction(outcome, each),
            *findings.notes(each),
            *points,
        ]
        parts.append(_m(each.question) + "\n\n" + "\n".join(f"- {_m(point)}" for point in points if point))
    return "\n\n".join(parts) + "\n"


def _m(text: object) -> str:
    """Returns a text as Markdown that shows it literally, in a table too."""
    return re.sub(r"[\\`*_\[\]<>&|$~#@]", lambda found: f"&#{ord(found[0])};", plain(text))


def _mermaid(outcome: Outcome) -> str:
    """Returns the graph of ablations for what draws Mermaid, as GitHub does."""
    found = {each.name: each for each in answers(outcome)}
    tasks = tasks_of(outcome)
    numbers = {one.name: f"n{i}" for i, one in enumerate(outcome.experiments)}
    lines = ["```mermaid", "flowchart LR"]
    for name, number in numbers.items():
        each = found.get(name)
        lines_of_box = [name, *node_facts(outcome, name, each, tasks), each.word.value if each else ""]
        label = "<br/>".join(_quoted(line) for line in lines_of_box if line)
        lines.append(f'  {number}["{label}"]:::{each.word.name.lower() if each else "parent"}')
    lines += [f"  {numbers[parent]} --> {numbers[child]}" for parent, child in graph_edges(outcome)]
    for word, colour in COLOURS.items():
        lines.append(f"  classDef {word.name.lower()} fill:#ffffff,stroke:{colour},stroke-width:3px,color:#1a1a1a")
    lines.append("  classDef parent fill:#f2f3f5,stroke:#1a1a1a,stroke-width:3px,color:#1a1a1a")
    return "\n".join([*lines, "```"])


def _quoted(text: str) -> str:
    """Returns a text for a quoted label: Mermaid writes a character's number between # and ;."""
    return re.sub(r"[^\w .,:+/±→·%()=" + MINUS + r"-]", lambda found: f"#{ord(found[0])};", plain(text, 80))
