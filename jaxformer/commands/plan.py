"""Prints what a run will take, before anything is read: `jaxformer plan --experiment=NAME [--on=H100]`.

Parameters, operations, memory, disk and time, on the device at hand or on a GPU that is not here, by its data sheet.
The other options are those of `jaxformer train`: `--parent=NAME`, `--section.field=value`.
"""

import jaxformer.train
from jaxformer.host.command import Parser, command


@command
def main(arguments: list[str]) -> int:
    """Prints the plan of a run; returns the exit status."""
    parser = Parser("jaxformer plan", __doc__)
    parser.add_argument("--on", default="here", metavar="GPU", help="a GPU such as H100 (default: the device at hand)")
    parser.add_argument("--experiment", required=True, help="a file in experiments/, or a path to one")
    options, rest = parser.parse_known_args(arguments)
    return jaxformer.train.main([f"--experiment={options.experiment}", f"--plan={options.on}", *rest])
