"""Exports a run as a model of Hugging Face transformers.

The folder holds config.json, model.safetensors, the tokenizer and a model card; AutoModelForCausalLM and AutoTokenizer
load it without jaxformer. Where torch and transformers are installed it is compared with the run: logits and ids of
real text must be the same, and the card carries the figures.
"""

import sys
from collections.abc import Sequence

from jaxformer.devices.options import fixed_options
from jaxformer.experiment.command_line import add_code_option
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_notice, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.huggingface.tokenizer_json import ambiguity
from jaxformer.huggingface.writing import DTYPES
from jaxformer.run.export import export_run
from jaxformer.run.trained import load_trained


@command
@fixed_options()
def main(arguments: Sequence[str]) -> int:
    """Exports a checkpoint; returns the exit status."""
    parser = Parser("jaxformer export", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--workdir", type=local_path, required=True, metavar="RUN", help="run folder")
    add("--out", type=local_path, required=True, metavar="DIR", help="folder to write, new or empty")
    add_code_option(parser)
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    add(
        "--keep_padding",
        action="store_true",
        help="keep the embedding's rows beyond the tokenizer's ids (default: only those ids have logits)",
    )
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the tensors (default: float32)")
    options = parser.parse_args(arguments)
    trained = load_trained(options.workdir, options.step)
    exported = export_run(trained, options.out, keep_padding=options.keep_padding, dtype=options.dtype)
    print_line(
        f"{options.workdir}, step {trained.step:,}: {exported.architecture} of {exported.parameters:,} parameters in "
        f"{options.dtype}, written to {options.out}"
    )
    print_wrapped(exported.comparison.describe(options.dtype), indent=0)
    print_notice(ambiguity(trained.tokenizer))
    return 0
