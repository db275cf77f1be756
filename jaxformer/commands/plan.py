"""Prints what a run will take, without reading its data.

Prints parameters, operations, memory, disk space and time, on this machine's device or, from its data sheet, on another
GPU. `--SECTION.FIELD=VALUE` sets fields, as for training.
"""

import sys

from jaxformer.devices.device import choose_device, keep_compiled, out_of_memory_reported
from jaxformer.experiment.command_line import add_experiment_options, parse_overrides
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.docstrings import docstring
from jaxformer.plan.estimate import print_plan
from jaxformer.run.init_from import check_fits, open_weights


@command
def main(arguments: list[str]) -> int:
    """Prints the plan of a run; returns the exit status."""
    parser = Parser("jaxformer plan", docstring(sys.modules[__name__]))
    add_experiment_options(parser)
    parser.add_argument("--on", default="here", metavar="GPU", help="a GPU such as H100 (default: the device here)")
    options, rest = parser.parse_known_args(arguments)
    experiment = resolve(options.experiment, parse_overrides(parser, options, rest), parent=options.parent).experiment
    keep_compiled()
    choose_device(experiment.training.device)
    with out_of_memory_reported():
        if experiment.init_from:
            check_fits(experiment, open_weights(experiment.init_from))
        print_plan(experiment, options.on)
    return 0
