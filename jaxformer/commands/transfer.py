"""Predicts the effect of a change at a larger size.

First compare the same change with its parent at three or more sizes:

  jaxformer ablate --parent=SIZE --variants=NAME

The effect at the target is predicted, with an interval, from the finished runs of all experiments that differ from the
target only in size. The answer is the first of the words below that holds. Nothing is trained, and no verdict is
recorded. While the answer is UNKNOWN, even before any run, the commands of the cheapest sizes and seeds that would
decide it are printed.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.sizes import find_sizes
from jaxformer.ablation.transfer import ask_transfer
from jaxformer.ablation.transfer_result import TransferResult
from jaxformer.config import UserError, require
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line, print_notice
from jaxformer.host.docstrings import docstring
from jaxformer.report.style import drawing, save_png
from jaxformer.report.transfer import describe_transfer, draw_transfer
from jaxformer.statistics import transfer

# Bits per byte: a byte has 8.
_MOST_EFFECT = 8


@command
def main(arguments: list[str]) -> int:
    """Prints what is known about variants at a target; returns the exit status."""
    rule = docstring(transfer.decide).partition("\n\n")[2]
    parser = Parser("jaxformer transfer", f"{docstring(sys.modules[__name__])}\n\n{rule}")
    add = parser.add_argument
    add("--variants", required=True, metavar="NAME,...", help="the changes, separated by commas")
    add("--target", required=True, metavar="NAME", help="the experiment at the size that matters")
    add_run_options(parser)
    add("--budget", type=float, default=math.inf, metavar="H", help="device hours to spend on further runs")
    text = "smallest effect at the target that matters, bits per byte (default: the margin of the largest size)"
    add("--effect", type=float, metavar="E", help=text)
    add("--json", action="store_true", help="print one JSON object, and nothing else")
    options = parser.parse_args(arguments)
    effect = math.nan if options.effect is None else options.effect
    is_effect = options.effect is None or 0 < effect <= _MOST_EFFECT
    require(is_effect, f"--effect ({effect}) must be above 0 and at most {_MOST_EFFECT}")
    require(options.budget > 0, f"--budget ({options.budget}) must be above 0")
    names = [*dict.fromkeys(name.strip() for name in options.variants.split(",") if name.strip())]
    require(bool(names), "--variants names no variant")
    known = {"effect": effect, "budget": options.budget, "allow": parse_allowed(options.allow)}
    aim = resolve(options.target)
    sizes = find_sizes(aim)
    results = [ask_transfer(name, aim, sizes, options.runs, **known) for name in names]
    if options.json:
        print_line(json.dumps({result.variant: result.record() for result in results}))
    else:
        _print(results, options.runs)
    return 0


def _print(results: Sequence[TransferResult], runs: Path) -> None:
    for result in results:
        print_line("\n".join(describe_transfer(result, output_columns())))
        if result.prediction is None:
            continue
        try:
            print_line(f"{_draw(result, runs)}")
        except UserError as error:
            print_notice(f"no picture: {error}")


def _draw(result: TransferResult, runs: Path) -> Path:
    """Draws a result beside the runs; returns the file."""
    path = runs / "reports" / "transfer" / f"{result.variant}@{result.target}.png"
    with drawing():
        figure = draw_transfer(result)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(figure, path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    return path
