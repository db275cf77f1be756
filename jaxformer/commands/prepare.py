"""Prepares the data of an experiment without training.

Trains the tokenizer and tokenises the corpora into the cache, where a training command finds them. The same command
resumes a preparation that was stopped. `--SECTION.FIELD=VALUE` sets fields, as for training.

With --beam the workers of an Apache Beam pipeline tokenise and write. Its options are those of Beam's command line, in
one argument; the workers need the corpus and $JAXFORMER_CACHE at the same paths:

  --beam="--runner=FlinkRunner --flink_master=HOST:8081"
"""

import shlex
import sys

from jaxformer.data.corpus import part_names
from jaxformer.data.preparation import prepare
from jaxformer.data.shard_writer import pipeline_options
from jaxformer.data.shards import SPLITS, open_shards
from jaxformer.experiment.command_line import add_experiment_options, parse_overrides
from jaxformer.experiment.variant import resolve
from jaxformer.host.cache import cache_folder
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line
from jaxformer.host.docstrings import docstring
from jaxformer.run.inputs import open_corpora


@command
def main(arguments: list[str]) -> int:
    """Prepares the data of an experiment; returns the exit status."""
    parser = Parser("jaxformer prepare", docstring(sys.modules[__name__]))
    add_experiment_options(parser)
    parser.add_argument("--beam", metavar="OPTIONS", help="options of an Apache Beam pipeline; needs the extra beam")
    options, rest = parser.parse_known_args(arguments)
    experiment = resolve(options.experiment, parse_overrides(parser, rest), parent=options.parent).experiment
    beam = None if options.beam is None else shlex.split(options.beam)
    if beam is not None:
        pipeline_options(beam)  # Refused before hours of preparation.
    corpora, tokenizer = open_corpora(experiment)
    for name, documents in zip(part_names(experiment.corpus), corpora, strict=True):
        folder = prepare(documents, tokenizer, cache_folder(), beam=beam)
        manifest = open_shards(folder, "train").manifest
        train, validation = (f"{manifest.tokens[split]:,} tokens" for split in SPLITS)
        print_line(f"{name}: {train} to train on, {validation} to validate, from {documents.origin}, in {folder}")
    return 0
