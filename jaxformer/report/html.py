"""A study as one HTML page that loads nothing and runs nothing; whatever a text holds is shown as it is."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from jaxformer.ablation.comparison import TaskDifference
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report import findings
from jaxformer.report.answers import Answer, answers, hours_of, scores_of, tasks_of
from jaxformer.report.figures import PICTURES
from jaxformer.report.formatting import (
    NOTHING,
    describe_change,
    expectation,
    interval_of,
    number,
    percent,
    plain,
    signed,
    with_error,
)
from jaxformer.report.style import COLOURS
from jaxformer.report.stylesheet import STYLES


def make_page(outcome: Outcome, pictures: Mapping[str, str]) -> str:
    """Returns the page. Args: pictures: the SVG element of each that there is, by its name."""
    title = _e(f"Study of {outcome.study.parent}")
    sections = [
        ("decisions", "Decisions", _decisions(outcome)),
        ("expectations", "Expectations", _expectations(outcome)),
    ]
    for one in PICTURES:
        if one.name in pictures:
            sections.append((one.name, one.heading, _picture(pictures[one.name], one.heading, one.caption)))
    sections.append(
        ("questions", "Question by question", "\n".join(_article(outcome, each) for each in answers(outcome)))
    )
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    known = "\n".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in findings.about(outcome))
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}">\n<h2 id="h-{name}">{heading}</h2>\n{content}\n</section>'
        for name, heading, content in sections
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{STYLES}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{_e(findings.count_words(outcome))}</p>
<dl class="facts">
{known}
</dl>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _e(text: object) -> str:
    """Returns a text as HTML that shows it literally."""
    return escape(plain(text))


def _word(word: Word) -> str:
    if word is Word.NOT_COMPARED:
        return f'<span class="word open">{word.value}</span>'
    return f'<span class="word" style="background:{COLOURS[word]}">{word.value}</span>'


def _change(each: Answer) -> str:
    """Returns the one change, and in grey what followed from it."""
    told = "<br>".join(f"<code>{_e(text)}</code>" for text in describe_change(each.lineage["change"]))
    if len(each.resolved.parents) > 1:
        told = f"{_e('joins ' + ' and '.join(parent.name for parent in each.resolved.parents))}<br>{told}"
    solved = describe_change(each.lineage["consequences"])
    return told + "".join(f'<br><code class="quiet">{_e(text)}</code>' for text in solved)


def _decisions(outcome: Outcome) -> str:
    """Returns the table of decisions."""
    tasks, rule = tasks_of(outcome), outcome.study.rule
    parents = outcome.evidence[outcome.study.parent]
    heads = [
        ("variant and its change", ""),
        ("verdict", ""),
        (f"bits per byte ± error<br>{1 - rule.alpha:.1%} interval", "number"),
        ("p<br>q", "number"),
        ("seeds", "number"),
        *((_e(task), "number") for task in tasks),
        ("time per<br>token", "number"),
        ("para-<br>meters", "number"),
        ("device<br>hours", "number"),
    ]
    head = "".join(f'<th scope="col" class="{kind}">{text}</th>' for text, kind in heads)
    scores = scores_of(parents)
    bits = float(np.mean([run.bits_per_byte for run in parents]))
    own = [f"{bits:.4f}", "", str(len(parents)), *(percent(scores.get(task, math.nan)) for task in tasks)]
    own += ["1", "1", f"{hours_of(outcome, outcome.study.parent):.2f}"]
    cells = "".join(f'<td class="number">{text}</td>' for text in own)
    name = f'<td class="name" style="border-color:#1a1a1a"><strong>{_e(outcome.study.parent)}</strong>'
    bodies = [f'<tbody>\n<tr>{name}</td><td class="quiet">parent</td>{cells}</tr>\n</tbody>']
    for each in answers(outcome):
        told, interval = findings.difference(outcome, each)
        p, q = map(_e, findings.p_and_q(each))
        numbers = [
            f'<strong>{_e(told)}</strong><br><span class="quiet">{_e(interval)}</span>',
            f'{p}<br><span class="quiet">{q}</span>',
            str(findings.seed_count(each)),
            *(_task_cell(each, task) for task in tasks),
            *map(_e, findings.ratios(each)),
            f"{each.hours:.2f}",
        ]
        cells = "".join(f'<td class="number">{text}</td>' for text in numbers)
        of = f' <span class="quiet">of {_e(each.parent)}</span>' if each.parent != outcome.study.parent else ""
        edge = f'style="border-color:{COLOURS[each.word]}"'
        notes = "".join(f"<br>Note: {_e(note)}" for note in findings.notes(each))
        bodies.append(
            f'<tbody>\n<tr><td class="name" {edge}><strong>{_e(each.name)}</strong>{of}<br>{_change(each)}</td>'
            f"<td>{_word(each.word)}</td>{cells}</tr>\n"
            f'<tr class="why"><td class="rule" {edge} colspan="{len(heads)}">'
            f"{_e(findings.reason(each))}{notes}</td></tr>\n"
            "</tbody>"
        )
    about = (
        "Differences are of a variant from its own parent, over the seeds that both have; negative is better. "
        f"q is p adjusted for all questions of the study ({rule.q:g} is accepted). Ratios are to the parent; device "
        "hours are of all finished runs and of those that were stopped early. Of a task: its accuracy in %, the "
        "difference ± error of it, and that of the right answers' bits per byte."
    )
    table = "\n".join(['<table class="decisions">', f"<thead><tr>{head}</tr></thead>", *bodies, "</table>"])
    return f'<p class="about">{about}</p>\n<div class="scroll">{table}</div>'


def _task_cell(each: Answer, task: str) -> str:
    scores: TaskDifference | None = each.comparison.tasks.get(task) if each.comparison else None
    if scores is None:
        return NOTHING
    accuracy = f"{signed(100 * scores.accuracy.mean, 1)} ± {number(100 * scores.accuracy.standard_error, 1)}"
    gold = with_error(scores.gold_bits_per_byte, 3)
    return f'{percent(scores.variant)}<br>{accuracy}<br><span class="quiet">{gold}</span>'


def _expectations(outcome: Outcome) -> str:
    """Returns the table of what was expected beside what came out."""
    rows = []
    for each in answers(outcome):
        told, _ = findings.difference(outcome, each)
        rows.append(
            f"<tr><td><strong>{_e(each.name)}</strong></td><td>{_e(each.question)}</td>"
            f'<td class="number">{_e(expectation(each.expected))}</td>'
            f'<td class="quiet">{_e(each.lineage["source"])}</td>'
            f'<td class="number">{_e(told)}</td><td>{_e(findings.beside(outcome, each))}</td></tr>'
        )
    return _table(
        {
            "variant": "",
            "question": "text",
            "expected": "number",
            "source": "text",
            "found": "number",
            "outcome": "text",
        },
        rows,
    )


def _table(heads: dict[str, str], rows: Sequence[str]) -> str:
    """Returns a table. Args: heads: the class of each column by its name."""
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in heads.items())
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _picture(svg: str, heading: str, caption: str) -> str:
    """Returns a picture with its caption and, for who cannot see it, its title; wide enough to be read."""
    inches = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) / 72
    size = f'style="min-width:{inches * 92:.0f}px;max-width:{inches * 125:.0f}px"'
    opened = svg.replace("<svg", f'<svg role="img" aria-label="{_e(heading)}" {size}', 1)
    titled = re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}<title>{_e(heading)}</title>", opened, count=1)
    return f'<figure>\n<figcaption>{_e(caption)}</figcaption>\n<div class="scroll">{titled}</div>\n</figure>'


def _article(outcome: Outcome, each: Answer) -> str:
    """Returns all that is known of a question."""
    told, interval = findings.difference(outcome, each)
    lines = [f'<p class="question">{_e(each.question)}</p>', f"<p>{_change(each)}</p>"]
    if each.lineage["bundle"]:
        lines.append(f'<p class="quiet">One idea: {_e(each.lineage["bundle"])}</p>')
    expected = f"Expected {_e(expectation(each.expected))} <span class='quiet'>({_e(each.lineage['source'])})</span>"
    found = f"found <strong>{_e(told)}</strong> {_e(interval)}" if each.difference else "not known yet"
    lines.append(f"<p>{expected}; {found}: {_e(findings.beside(outcome, each))}.</p>")
    lines.append(f"<p>{_word(each.word)} {_e(findings.reason(each))}</p>")
    points = [
        *findings.readings(each),
        findings.interaction(outcome, each),
        *(f"Note: {note}" for note in findings.notes(each)),
    ]
    if points := [f"<li>{_e(point)}</li>" for point in points if point]:
        lines.append(f"<ul>{''.join(points)}</ul>")
    corpora = each.comparison.corpora if each.comparison else {}
    if len(corpora) > 1:
        rows = [
            f'<tr><td>{_e(name)}</td><td class="number">{_e(with_error(one))}</td>'
            f'<td class="number">{_e(interval_of(one, outcome.study.rule.alpha))}</td></tr>'
            for name, one in corpora.items()
        ]
        lines.append(_table({"corpus": "", "difference": "number", "interval": "number"}, rows))
    inside = "\n".join(lines)
    return f'<article style="border-color:{COLOURS[each.word]}">\n<h3>{_e(each.name)}</h3>\n{inside}\n</article>'
