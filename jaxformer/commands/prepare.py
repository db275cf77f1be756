"""Prepares the data of an experiment without training.

Trains the tokenizer and tokenises the corpora into the cache, where a training command finds them. The same command
resumes a preparation that was stopped. `--SECTION.FIELD=VALUE` sets fields, as for training.

With --beam the workers of an Apache Beam pipeline tokenise and write. It takes the options of Beam's command line in
one argument. The workers need the corpus and $JAXFORMER_CACHE at the same paths:

  --beam="--runner=FlinkRunner --flink_master=HOST:8081"
"""

import shlex
import sys

from jaxformer.data.beam import pipeline_options
from jaxformer.data.preparation import unfilled_budget
from jaxformer.devices.device import choose_device
from jaxformer.evaluation.task_scores import load_tasks
from jaxformer.experiment.command_line import add_experiment_options, parse_overrides
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_notice
from jaxformer.host.docstrings import docstring
from jaxformer.run.init_from import check_fits, open_weights, with_tokenizer
from jaxformer.run.inputs import open_corpora, prepare_corpora


@command
def main(arguments: list[str]) -> int:
    """Prepares the data of an experiment; returns the exit status."""
    parser = Parser("jaxformer prepare", docstring(sys.modules[__name__]))
    add_experiment_options(parser)
    parser.add_argument("--newest", action="store_true", help="look up the commits of Hub branches again")
    parser.add_argument("--beam", metavar="OPTIONS", help="options of an Apache Beam pipeline; needs the extra beam")
    options, rest = parser.parse_known_args(arguments)
    experiment = resolve(options.experiment, parse_overrides(parser, options, rest), parent=options.parent).experiment
    beam = None if options.beam is None else shlex.split(options.beam)
    if beam is not None:
        pipeline_options(beam)  # Checked before hours of preparation.
    tasks = load_tasks(experiment.evaluation)
    if experiment.init_from:
        choose_device("cpu")  # Only the description of the weights is read.
        initial = open_weights(experiment.init_from)
        check_fits(experiment, initial)
        experiment = with_tokenizer(experiment, initial.folder)
    corpora, tokenizer = open_corpora(experiment, newest=options.newest)
    for corpus in prepare_corpora(experiment, corpora, tokenizer, tasks, beam=beam):
        manifest, folder = corpus.training.manifest, corpus.training.folder
        train, validation = (f"{tokens:,} tokens" for tokens in (corpus.tokens, manifest.tokens["validation"]))
        print_line(f"{corpus.name}: {train} to train on, {validation} to validate, from {manifest.origin}, in {folder}")
        for line in corpus.describe():
            print_line(f"{corpus.name}: {line}")
        print_notice(unfilled_budget(manifest))
    return 0
