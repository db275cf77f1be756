"""A study as one HTML page that loads nothing and runs nothing; whatever a text holds is shown as it is."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jaxformer.ablation.outcome import Outcome
from jaxformer.report import findings, formatting, leave_one_out
from jaxformer.report.figures import Picture
from jaxformer.report.style import COLOURS
from jaxformer.report.summary import count_verdicts, summarise_study


def make_page(outcome: Outcome, pictures: Sequence[Picture]) -> str:
    """Returns the page. Args: pictures: those that it shows, in order."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # What is not markup already is a text of someone: on one line, without control characters.
        finalize=lambda value: value if hasattr(value, "__html__") else formatting.plain(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda file: base64.b64encode(file).decode()
    return environment.get_template("page.html.jinja").render(
        outcome=outcome,
        rule=outcome.study.rule,
        parent=outcome.study.parent,
        findings=findings.collect_findings(outcome),
        summary=summarise_study(outcome),
        counts=count_verdicts(outcome),
        columns=findings.decision_columns(outcome),
        pictures=pictures,
        colours=COLOURS,
        text=findings,
        composition=leave_one_out,
        formatting=formatting,
    )
