"""Validates a checkpoint of a run: `python tools/evaluate.py --workdir=RUN [--step=N]`.

It reads the run's own configuration and data, prints the validation of the newest checkpoint or of step N, and writes
it to `evaluations/validation_step_N.json` in the run folder. A run may be training in it meanwhile.
"""

import argparse
import logging
import sys
from pathlib import Path

from jaxformer.checkpoint import open_checkpoints, restore
from jaxformer.config import UserError, check_same
from jaxformer.data import digests, prepare_data
from jaxformer.device import choose_device
from jaxformer.evaluate import validate
from jaxformer.experiment import make_state
from jaxformer.progress import describe_validation
from jaxformer.run_folder import load_run, write_json


def evaluate(workdir: Path, step: int | None) -> tuple[int, dict[str, float]]:
    """Returns the step that was validated, and its validation."""
    experiment, record = load_run(workdir)
    choose_device(experiment.training.device)
    data = prepare_data(experiment, record["seed"])
    check_same(f"run folder {workdir} belongs", digests(data), record["digests"])
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        restored = restore(checkpoints, make_state(experiment, record["seed"]), step)
    for line in restored.damaged:
        print(f"evaluate: {line}", file=sys.stderr)
    return int(restored.state.step), validate(restored.state, data.validation, experiment.evaluation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        step, validation = evaluate(options.workdir, options.step)
        path = options.workdir / "evaluations" / f"validation_step_{step}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"step": step, **{f"validation/{name}": value for name, value in validation.items()}})
    except (UserError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(f"step {step}: {describe_validation(validation)}; written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
