"""Reports a study as text and pictures.

Prints the decisions, and writes a page with pictures, `report.md` and PNG files to RUNS/reports/NAME. Unfinished runs
are marked. A study is a file, or a parent and its variants:

  jaxformer report --parent=NAME --variants=A,B
  jaxformer report --leave_one_out=NAME

One page over all studies, from the ledger RUNS/decisions.jsonl:

  jaxformer report --all
"""

import logging
import sys
from pathlib import Path

from jaxformer.ablation.command_line import add_study_options, chosen_study
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.outcome import judge_study
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line, print_notice, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.report.history import collect_history, summarise_history
from jaxformer.report.text import decision_table
from jaxformer.report.tracked import track_report
from jaxformer.report.write import check_report, write_history, write_report
from jaxformer.tracking.config import TrackingConfig, check_installed


@command
def main(arguments: list[str]) -> int:
    """Prints what a study decided, and writes its report; returns the exit status."""
    parser = Parser("jaxformer report", docstring(sys.modules[__name__]))
    add_study_options(parser)
    parser.add_argument("--tracking.to", dest="to", default="", metavar="NAMES", help="trackers that get the report")
    parser.add_argument("--tracking.project", dest="project", metavar="NAME", help="their project")
    text = "folder of the report (default: RUNS/reports/NAME)"
    parser.add_argument("--output", type=local_path, metavar="DIR", help=text)
    parser.add_argument("--all", action="store_true", help="one page over all studies, in RUNS/reports/all")
    options = parser.parse_args(arguments)
    # Without a home folder it prints where its fonts are.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if options.all:
        is_alone = not (options.study or options.parent or options.variants or options.leave_one_out or options.allow)
        require(is_alone, "--all reports all studies: give no other study and no --allow with it")
        require(not options.to, "--tracking.to takes the report of one study")
        return report_all(options.runs, options.output or options.runs / "reports" / "all")
    study = chosen_study(options)
    name = Path(options.study).stem if options.study else study.parent
    name += "_leave_one_out" * bool(options.leave_one_out)
    allow, folder = parse_allowed(options.allow), options.output or options.runs / "reports" / name
    tracking = TrackingConfig(to=options.to, **({"project": options.project} if options.project else {}))
    check_installed(tracking)
    check_report(folder)
    outcome = judge_study(study, options.runs, allow=allow)
    print_line(decision_table(outcome, output_columns()))
    print_line(f"\n{write_report(outcome, folder)}")
    if tracking.names:
        track_report(outcome, folder, name, tracking)
    for line in outcome.unread:
        print_notice(f"not reported: {line}")
    return 0


def report_all(runs: Path, folder: Path) -> int:
    """Prints the results of all studies of a folder of runs, and writes their page; returns the exit status."""
    check_report(folder)
    history = collect_history(runs)
    for name, value in summarise_history(history):
        print_wrapped(f"{name}: {value}", indent=4)
    print_line(f"\n{write_history(history, folder)}")
    return 0
