"""Reports a study: `jaxformer report --study=NAME [--runs=runs] [--output=DIR]`.

Prints the decisions, and writes a page with pictures, `report.md` and PNG files to RUNS/reports/NAME. Without a study
file, `--parent=NAME --variants=A,B` reports what was run of these. Runs that are still to come are shown as such.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # A run may be training on the device.

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
    parser.add_argument("--study", metavar="NAME", help="a file in experiments/studies/, or a path to one")
    parser.add_argument("--parent", help="in place of a study: the experiment that the variants change")
    parser.add_argument("--variants", help="with --parent: names, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders (default: runs)")
    parser.add_argument("--output", type=Path, help="folder of the report (default: RUNS/reports/NAME)")
    parser.add_argument(
        "--allow", default="", help="kinds of differences that shall not forbid a comparison: code, ..."
    )
    options = parser.parse_args(arguments)
    study = choose_study(options.study, options.parent, options.variants)
    name = Path(options.study).stem if options.study else study.parent
    outcome = judge_study(study, options.runs, allow=parse_allowed(options.allow))
    print(decision_table(outcome), flush=True)
    page = write_report(outcome, options.output or options.runs / "reports" / name)
    print(f"\n{page}")
    return 0
