"""Validates a checkpoint of a run: `python tools/evaluate.py --workdir=RUN [--step=N]`.

It reads the run's own configuration and data, prints the validation of the newest checkpoint or of step N, and writes
it to `evaluations/validation_step_N.json` in the run folder. Memory of a GPU is taken only as it is needed.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # A run may be training on the same device.

import jax

from jaxformer.attention import implementation_from
from jaxformer.checkpoint import abstract, open_checkpoints, restore_params
from jaxformer.config import UserError, check_same, require
from jaxformer.data import digests, prepare_data
from jaxformer.device import choose_device, too_little_memory_told
from jaxformer.evaluate import validate
from jaxformer.experiment import make_state
from jaxformer.metrics import for_json
from jaxformer.progress import describe_validation
from jaxformer.run_folder import load_run, write_json


def evaluate(workdir: Path, step: int | None) -> tuple[int, dict[str, float]]:
    """Returns the step that was validated, and its validation."""
    experiment, record = load_run(workdir)
    device = choose_device(experiment.training.device)
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        step = max(steps, default=None) if step is None else step
        require(step in steps, f"no checkpoint of step {step} in {checkpoints.folder}; there are {steps or 'none'}")
        data = prepare_data(experiment, record["seed"])
        check_same(f"run folder {workdir} belongs", digests(data), record["digests"])
        is_same_device = device.device_kind == record["device"]
        attention = implementation_from(record["attention"]) if is_same_device else None
        state = jax.eval_shape(lambda: make_state(experiment, record["seed"], attention))
        params = restore_params(checkpoints, abstract(state.params), step)
    return step, validate(state.replace(params=params, opt_state=None), data.validation, experiment.evaluation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        with too_little_memory_told():
            step, validation = evaluate(options.workdir, options.step)
        path = options.workdir / "evaluations" / f"validation_step_{step}.json"
        path.parent.mkdir(exist_ok=True)
        scalars = {f"validation/{name}": value for name, value in validation.items()}
        write_json(path, for_json({"step": step, **scalars}))
    except (UserError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(f"step {step}: {describe_validation(validation)}; written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
