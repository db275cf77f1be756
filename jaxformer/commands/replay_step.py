"""Replays a step whose loss or gradient was not finite.

Restores the state before the step from the run's checkpoint, computes loss and gradient of the batch in the file
again, on as many devices as the run had, and prints the norm of each parameter's gradient, layer by layer. The exit
status is 1 if any bit differs from what was recorded.
"""

import sys
from pathlib import Path

import numpy as np

from jaxformer.attention.dispatch import implementation_from
from jaxformer.checkpoint.train_state import open_checkpoints, restore
from jaxformer.config import require
from jaxformer.devices.device import choose_device
from jaxformer.devices.mesh import put_rows
from jaxformer.devices.options import fixed_options
from jaxformer.experiment.command_line import add_code_option
from jaxformer.experiment.experiment import make_state, run_mesh
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.run.failed_step import Fault, diagnose, read_fault
from jaxformer.run.folder import load_run, run_tokenizer


def replay(path: Path) -> tuple[Fault, Fault]:
    """Returns the fault as recorded, and as computed again."""
    recorded = read_fault(path)
    workdir = path.resolve().parents[1]
    experiment, record = load_run(workdir)
    choose_device(experiment.training.device)
    mesh = run_mesh(experiment)
    attention, token_count = implementation_from(record["attention"]), run_tokenizer(workdir, record).vocabulary_size
    state = make_state(experiment, record["seed"], attention, mesh, token_count=token_count)
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        require(
            recorded.checkpoint in steps,
            f"{path}: it was made from checkpoint {recorded.checkpoint}, and there are {steps} in {workdir}; the run "
            "has gone on since",
        )
        state = restore(checkpoints, state, recorded.checkpoint).state
    batch = put_rows(state.mesh, recorded.batch)
    return recorded, diagnose(state, batch, step=recorded.step, checkpoint=recorded.checkpoint)


def same_bits(a: Fault, b: Fault) -> bool:
    """Returns whether loss and norms of two faults are equal, NaN to NaN."""
    pairs = [(a.loss, b.loss), (a.gradient_norm, b.gradient_norm)]
    pairs += [(norm, b.gradient_norms[name]) for name, norm in a.gradient_norms.items()]
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@command
@fixed_options()
def main(arguments: list[str]) -> int:
    """Replays a step that failed; returns the exit status."""
    parser = Parser("jaxformer replay-step", docstring(sys.modules[__name__]))
    add_code_option(parser)
    parser.add_argument("file", type=local_path, metavar="FILE", help="record of the step, RUN/faults/step_N.npz")
    recorded, again = replay(parser.parse_args(arguments).file)
    print_line(f"step {again.step}: loss {again.loss}, gradient norm {again.gradient_norm}")
    for name, norms in again.gradient_norms.items():
        print_line(f"{name:40} {' '.join(f'{norm:10.3e}' for norm in np.atleast_1d(norms))}")
    is_same = same_bits(recorded, again)
    same = "the same, bit by bit, as" if is_same else "not the same, bit by bit, as"
    print_line(f"{same} when it failed (loss {recorded.loss}, gradient norm {recorded.gradient_norm})")
    return 0 if is_same else 1
