"""Finds the best learning rate of an experiment.

The peak learning rate is walked by octaves and at last by half of one, one seed first, until the best has a worse one
on either side; those three are trained on the other seeds, and a parabola through them tells where the best lies and
what the experiment's own rate costs. Runs that are finished are taken up: the same command resumes. Tune a parent
before you change it.
"""

import shlex
import sys
from pathlib import Path

from jaxformer.ablation.outcome import to_json
from jaxformer.ablation.run_study import estimate_experiment
from jaxformer.ablation.tuning import TUNING, Ladder, tune
from jaxformer.config import require
from jaxformer.experiment.files import find_experiment
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.files import write_json, write_whole
from jaxformer.host.paths import local_path
from jaxformer.report.style import drawing, save_png
from jaxformer.report.tuning import describe, draw_tuning, rate_table, tuned_file


@command
def main(arguments: list[str]) -> int:
    """Tunes an experiment; returns the exit status."""
    parser = Parser("jaxformer tune", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--experiment", required=True, metavar="NAME", help="the name of a file in experiments/")
    add("--parent", default="", metavar="NAME", help="apply a variant to this parent instead of its own")
    add("--seeds", type=int, default=3, metavar="N", help="seeds of the three best rates (default: 3)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add(
        "--runs", type=local_path, default=Path("runs"), metavar="DIR", help="folder of all run folders (default: runs)"
    )
    add("--write", type=local_path, metavar="FILE", help="write the tuned experiment to this file")
    options = parser.parse_args(arguments)
    require(1 <= options.seeds <= 100, f"--seeds ({options.seeds}) must lie in [1, 100]")
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    if options.write:
        require(options.write.suffix == ".py", f"--write={options.write}: an experiment is a Python file, NAME.py")
        require(not options.write.exists(), f"--write={options.write}: it exists; give another name")
    find_experiment(options.experiment)
    first_seed = resolve(options.experiment, parent=options.parent).first_seed
    ladder = Ladder(options.experiment, options.parent, options.runs, first_seed)
    seconds = estimate_experiment(options.experiment, options.parent, options.runs)
    tuning = tune(ladder, options.seeds, seconds, parallel=options.parallel)
    folder = options.runs / tuning.experiment
    trials = [
        {"octave": o, "seed": first_seed + s, "bits_per_byte": bits} for (o, s), bits in sorted(tuning.trials.items())
    ]
    record = {name: to_json(value) for name, value in (tuning._asdict() | {"trials": trials}).items()}
    write_json(folder / TUNING, record | {"best": tuning.best})
    with drawing():
        save_png(draw_tuning(tuning), folder / "tuning.png")
    print_line("\n".join(rate_table(tuning)))
    print_wrapped(describe(tuning), indent=0)
    print_line(f"{folder / 'tuning.png'}")
    if options.write:
        words = ["jaxformer", "tune", f"--experiment={options.experiment}", f"--seeds={options.seeds}"]
        write_whole(options.write, tuned_file(tuning, shlex.join(words)).encode())
        print_line(f"{options.write}")
    return 0
