"""Ranks open questions by their value, or advises to stop.

The value of a question is the device hours that a kept gain would save in the runs to come, times the probability of
keeping it. Its cost is the hours of its runs up to a decision. Expectations count as far as those in the ledger came
true. Nothing is trained:

  jaxformer next --parent=NAME --target=LARGER

One run of the parent must be finished: it shows how long runs take and what a gain is worth in tokens.
"""

import json
import math
import sys

from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.next_question import COMPLEXITY, rank_questions
from jaxformer.ablation.question_cost import LARGER
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line
from jaxformer.host.docstrings import docstring
from jaxformer.report.next_question import ranking_text
from jaxformer.statistics.significance import INTERIM_SEEDS

# Hours, or runs, to come.
_MOST = 1e9


@command
def main(arguments: list[str]) -> int:
    """Prints the ranked questions of an experiment; returns the exit status."""
    parser = Parser("jaxformer next", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--parent", required=True, metavar="NAME", help="the experiment that is changed")
    add_run_options(parser, compares=False)
    text = f"the experiment of a run to come (default: one of {LARGER:g} times the parent's operations)"
    add("--target", default="", metavar="NAME", help=text)
    text = "device hours of a run to come, if known (default: from the parent's hours per operation)"
    add("--target_hours", type=float, metavar="H", help=text)
    text = "how many such runs are to come (default: 1)"
    add("--runs_to_come", type=float, default=1.0, metavar="N", help=text)
    text = f"%% of the hours to come that a change must save for each field it sets (default: {100 * COMPLEXITY:g})"
    add("--complexity", type=float, default=100 * COMPLEXITY, metavar="PERCENT", help=text)
    text = "most seeds that a question may take (default: 8)"
    add("--most_seeds", type=int, default=8, metavar="N", help=text)
    add("--number", type=int, default=10, metavar="N", help="questions to print (default: 10)")
    add("--json", action="store_true", help="print one JSON object, with all questions, and nothing else")
    options = parser.parse_args(arguments)
    for name in ("target_hours", "runs_to_come"):
        value = getattr(options, name)
        require(value is None or 0 < value <= _MOST, f"--{name} ({value}) must be above 0 and at most {_MOST:g}")
    require(0 <= options.complexity <= 100, f"--complexity ({options.complexity:g}) must be between 0 and 100 %")
    most, first, last = options.most_seeds, INTERIM_SEEDS[0], INTERIM_SEEDS[-1]
    require(first <= most <= last, f"--most_seeds ({most}) must be between {first} and {last}")
    require(options.number > 0, f"--number ({options.number}) must be above 0")
    ranking = rank_questions(
        options.parent,
        options.runs,
        target=options.target,
        target_hours=math.nan if options.target_hours is None else options.target_hours,
        runs_to_come=options.runs_to_come,
        complexity=options.complexity / 100,
        most_seeds=most,
    )
    if options.json:
        print_line(json.dumps(ranking.record()))
    else:
        print_line(ranking_text(ranking, options.number, output_columns()))
    return 0
