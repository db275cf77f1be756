"""Judges one variant from its finished runs.

PARENT and VARIANT are experiments, or folders of runs such as runs/baseline. Nothing is trained. Prints the verdict,
its reason and the commands of missing runs, and records the verdict as a study does. Programs use --json and the exit
status:

  0  KEEP or EQUIVALENT BUT CHEAPER
  3  REVERT
  4  EQUIVALENT
  5  UNDECIDED
  6  NOT COMPARED
  1  a failure, 2 what you can put right: no verdict

Seeds count in order, from the first on. All variants of the parent that have finished runs below --runs count in the
q-value. If the verdict is UNDECIDED and no run is missing, the parent stays.
"""

import json
import math
import shlex
import sys

from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.judge import Judgement, judge, locate, train_arguments
from jaxformer.host.command import Parser, command
from jaxformer.host.console import format_duration, print_line, print_wrapped, printable
from jaxformer.host.docstrings import docstring
from jaxformer.report.formatting import probability


@command
def main(arguments: list[str]) -> int:
    """Prints the verdict on a variant; returns its exit status."""
    parser = Parser("jaxformer judge", docstring(sys.modules[__name__]))
    parser.add_argument("parent", metavar="PARENT", help="the experiment that is changed, or the folder of its runs")
    parser.add_argument("variant", metavar="VARIANT", help="the changed experiment, or the folder of its runs")
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    options = parser.parse_args(arguments)
    parent, variant, runs = locate(options.parent, options.variant, options.runs)
    judgement = judge(parent, variant, runs, allow=parse_allowed(options.allow))
    if options.json:
        print_line(json.dumps(judgement.record()))
    else:
        _print(judgement)
    return judgement.status


def _print(judgement: Judgement) -> None:
    one = judgement.comparison
    print_line(f"{one.verdict.word.value}  {printable(one.variant)}, compared with {printable(one.parent)}")
    print_wrapped(f"  {printable(one.verdict.reason)}", indent=2)
    if one.difference:
        seeds, number = ", ".join(map(str, one.seeds)), len(judgement.questions)
        questions = f"{number} variant{'s' * (number > 1)} of {printable(one.parent)}"
        print_wrapped(f"  seeds {seeds}; q {probability(one.q_value)}, over {questions}", indent=2)
    for note in one.notes:
        print_wrapped(f"  note: {printable(note)}", indent=2)
    if judgement.missing:
        hours = judgement.missing_hours
        print_line(f"  missing{f' ({format_duration(3600 * hours)} on one device)' if math.isfinite(hours) else ''}:")
    for job in judgement.missing:
        print_line(f"    {shlex.join(train_arguments(job))}")
