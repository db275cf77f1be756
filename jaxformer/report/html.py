"""A study, or all of them, as an HTML page that loads nothing and runs nothing; texts are escaped."""

from collections.abc import Sequence
from pathlib import Path

from jaxformer.ablation.outcome import Outcome
from jaxformer.experiment.lineage import describe_change
from jaxformer.host.html import render
from jaxformer.report import findings, leave_one_out
from jaxformer.report.figures import Picture
from jaxformer.report.history import (
    HEADINGS,
    History,
    generation_rows,
    question_rows,
    summarise_history,
)
from jaxformer.report.style import COLOURS
from jaxformer.report.summary import count_verdicts, summarise_study


def make_page(outcome: Outcome, pictures: Sequence[Picture]) -> str:
    """Returns the page of a study. Args: pictures: those that it shows, in order."""
    return _render(
        "page.html.jinja",
        outcome=outcome,
        rule=outcome.study.rule,
        parent=outcome.study.parent,
        findings=findings.collect_findings(outcome),
        summary=summarise_study(outcome),
        counts=count_verdicts(outcome),
        columns=findings.decision_columns(outcome),
        tasks=findings.task_table(outcome),
        pictures=pictures,
        text=findings,
        composition=leave_one_out,
        describe_change=describe_change,
    )


def make_history_page(history: History, pictures: Sequence[Picture]) -> str:
    """Returns the page of all studies. Args: pictures: those that it shows, in order."""
    classes = {"variant": "text main", "verdict": "", "bits per byte ± error": "number main", "became": ""}
    return _render(
        "history.html.jinja",
        summary=summarise_history(history),
        pictures=pictures,
        generations=generation_rows(history),
        headings=HEADINGS,
        classes=[classes.get(heading[0], "number") for heading in HEADINGS],
        rows=question_rows(history),
        words=[one.word for one in history.questions],
    )


def _render(template: str, **values) -> str:
    return render(Path(__file__).parent, template, colours=COLOURS, **values)
