"""Finds the best learning rate of an experiment.

Tries peak learning rates with one seed, a factor of 2 apart and near the best a factor of 1.4, until the best has a
worse one on either side. Trains those three with the other seeds. A parabola through them estimates the best rate, and
what the experiment's own rate costs. Finished runs are used: the same command resumes. Tune a parent before you change
it.
"""

import functools
import shlex
import sys

from jaxformer.ablation.again import make_again
from jaxformer.ablation.checks import check_runs
from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.records import to_json
from jaxformer.ablation.tuning import TUNING, make_search, plan_tuning, tune
from jaxformer.config import require
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
    add_run_options(parser)
    add("--retrain", action="store_true", help="set runs of other code, data or versions aside, and train them again")
    add("--write", type=local_path, metavar="FILE", help="write the tuned experiment to this file")
    options = parser.parse_args(arguments)
    require(1 <= options.seeds <= 100, f"--seeds ({options.seeds}) must lie in [1, 100]")
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    if options.write:
        require(options.write.suffix == ".py", f"--write={options.write}: an experiment is a Python file, NAME.py")
        require(not options.write.exists(), f"--write={options.write}: it exists; give another name")
    search = make_search(options.experiment, options.parent, options.runs)
    checks = {"allow": parse_allowed(options.allow), "retrain": options.retrain, "parallel": options.parallel}
    planned = functools.partial(plan_tuning, options.experiment, options.parent, options.seeds)
    checked = check_runs(planned, options.runs, **checks)
    make_again(checked.earlier)
    tuning = tune(search, options.seeds, checked.seconds[search.own.name], parallel=options.parallel)
    folder = options.runs / tuning.experiment
    trials = [
        {"octave": octave, "seed": search.first_seed + seed, "bits_per_byte": bits}
        for (octave, seed), bits in sorted(tuning.trials.items())
    ]
    record = {name: to_json(value) for name, value in (tuning._asdict() | {"trials": trials}).items()}
    write_json(folder / TUNING, record | {"recommended": tuning.recommended})
    with drawing():
        save_png(draw_tuning(tuning), folder / "tuning.png")
    print_line("\n".join(rate_table(tuning)))
    for line in describe(tuning):
        print_wrapped(line, indent=0)
    print_line(f"{folder / 'tuning.png'}")
    if options.write:
        words = ["jaxformer", "tune", f"--experiment={options.experiment}", f"--seeds={options.seeds}"]
        write_whole(options.write, tuned_file(tuning, shlex.join(words)).encode())
        print_line(f"{options.write}")
    return 0
