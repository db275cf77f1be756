"""Reports a study as text and pictures.

Prints the decisions, and writes a page with pictures, `report.md` and PNG files to RUNS/reports/NAME. Runs that are not
finished are shown as such. A study is a file, or a parent and its variants:

  jaxformer report --parent=NAME --variants=A,B
"""

import logging
from pathlib import Path

from jaxformer.ablation.command_line import add_study_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import choose_study
from jaxformer.host.command import Parser, command
from jaxformer.report.text import decision_table
from jaxformer.report.write import write_report


@command
def main(arguments: list[str]) -> int:
    """Prints what a study decided, and writes its report; returns the exit status."""
    parser = Parser("jaxformer report", __doc__)
    add_study_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (default: RUNS/reports/NAME)")
    options = parser.parse_args(arguments)
    study = choose_study(options.study, options.parent, options.variants)
    name = Path(options.study).stem if options.study else study.parent
    # Without a home folder it tells where it keeps its fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    outcome = judge_study(study, options.runs, allow=parse_allowed(options.allow))
    print(decision_table(outcome), flush=True)
    page = write_report(outcome, options.output or options.runs / "reports" / name)
    print(f"\n{page}")
    return 0
