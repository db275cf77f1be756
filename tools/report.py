"""Reports a study: `python tools/report.py --study=experiments/studies/NAME.py [--runs=runs] [--output=DIR]`.

Prints the decisions, and writes a page with pictures, `report.md` and PNG files to RUNS/reports/NAME. Without a study
file, `--parent=NAME --variants=A,B` reports what was run of these. Runs that are still to come are shown as such.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # A run may be training on the device.

from jaxformer.config import UserError, require
from jaxformer.decisions import decision_table
from jaxformer.report import write_report
from jaxformer.study import Study, judge_study, load_study


def chosen_study(options: argparse.Namespace) -> tuple[Study, str]:
    """Returns the study that the options name, and a name for its report."""
    require((options.study is None) != (options.parent is None), "give either --study or --parent with --variants")
    if options.study:
        require(options.variants is None, "--variants goes with --parent; a study file names its own")
        return load_study(options.study), options.study.stem
    names = tuple(name.strip() for name in (options.variants or "").split(",") if name.strip())
    require(bool(names), "--parent needs --variants: the names to compare with it, separated by commas")
    return Study(parent=options.parent, variants=names), options.parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="file that assigns a Study to STUDY")
    parser.add_argument("--parent", help="in place of a study: the experiment that questions are asked of")
    parser.add_argument("--variants", help="with --parent: names, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders (default: runs)")
    parser.add_argument("--output", type=Path, help="folder of the report (default: RUNS/reports/NAME)")
    parser.add_argument(
        "--allow", default="", help="kinds of differences that shall not forbid a comparison: code, ..."
    )
    options = parser.parse_args(arguments)
    try:
        study, name = chosen_study(options)
        allow = tuple(kind.strip() for kind in options.allow.split(",") if kind.strip())
        outcome = judge_study(study, options.runs, allow=allow)
        print(decision_table(outcome), flush=True)
        page = write_report(outcome, options.output or options.runs / "reports" / name)
        print(f"\n{page}")
    except (UserError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("report: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
