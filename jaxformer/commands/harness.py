r"""Scores a run on any task of lm-evaluation-harness.

It takes the arguments of `lm-eval`, and needs the extra lm-eval (pip install 'jaxformer[lm-eval]'):

  jaxformer harness run --model jaxformer \
      --model_args workdir=RUN,step=N --tasks lambada_openai
"""

import sys

from jaxformer.config import UserError
from jaxformer.devices.options import fixed_options
from jaxformer.host.command import Parser, command
from jaxformer.host.console import show_status
from jaxformer.host.docstrings import docstring


@command
@fixed_options()
def main(arguments: list[str]) -> int:
    """Runs lm-evaluation-harness, which then knows the model `jaxformer`; returns the exit status."""
    try:
        import jaxformer.run.lm_eval_model  # noqa: F401  Registers the model.
    except ImportError as error:
        if not {"-h", "--help"}.isdisjoint(arguments):  # Else the harness explains itself.
            Parser(
                "jaxformer harness", docstring(sys.modules[__name__]), usage="%(prog)s ARGUMENTS", add_help=False
            ).print_help()
            return 0
        raise UserError(str(error)) from error
    from lm_eval.__main__ import cli_evaluate

    show_status()  # The harness prints by itself.
    sys.argv = ["jaxformer harness", *arguments]  # The harness reads no other.
    cli_evaluate()
    return 0
