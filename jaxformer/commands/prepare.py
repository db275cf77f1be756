"""Prepares the data of an experiment without training: `jaxformer prepare --experiment=NAME`.

Trains the tokenizer and tokenises the corpora into the cache, where a training command finds them. The same command
goes on where it was stopped. `--beam=OPTIONS` has the workers of an Apache Beam pipeline tokenise and write: options as
on Beam's command line in one argument, such as `--beam="--runner=FlinkRunner --flink_master=HOST:8081"`; the workers
need the corpus and $JAXFORMER_CACHE at the same paths. `--section.field=value` sets fields, as for training.
"""

import os
import shlex

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Nothing is computed on a device.

from jaxformer.data.corpus import part_names
from jaxformer.data.preparation import prepare
from jaxformer.data.shard_writer import pipeline_options
from jaxformer.data.shards import SPLITS, open_shards
from jaxformer.experiment.command_line import parse_overrides
from jaxformer.experiment.variant import resolve
from jaxformer.host.cache import cache_folder
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line
from jaxformer.run.inputs import open_corpora


@command
def main(arguments: list[str]) -> int:
    """Prepares the data of an experiment; returns the exit status."""
    parser = Parser("jaxformer prepare", __doc__)
    parser.add_argument("--experiment", required=True, help="a file in experiments/, or a path to one")
    parser.add_argument("--parent", default="", help="of a variant: this experiment instead of its own parent")
    parser.add_argument("--beam", help="options of an Apache Beam pipeline; needs the extra beam")
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest, ["experiment", "parent", "beam", "help"])
    experiment = resolve(options.experiment, overrides, parent=options.parent).experiment
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
