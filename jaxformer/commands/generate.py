"""Writes text with a trained model.

It prints --prompt and what the model writes after it, token by token, up to the end of the text or --tokens. Without
--prompt it asks for prompts and continues each, a line of the input at a time: Ctrl-C stops a text, Ctrl-D ends the
command. Each next prompt takes the next seed. GPU memory is not preallocated, so that a run can be tried while it
trains.

  jaxformer generate --workdir=runs/baseline/seed_0 --prompt="def read("
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator

from jaxformer.config import UserError, require
from jaxformer.devices.device import keep_compiled, out_of_memory_reported
from jaxformer.evaluation.generate import Sampling, encode_prompt
from jaxformer.host.command import Parser, command
from jaxformer.host.console import is_terminal, print_line, print_notice, print_text
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.host.signals import interruptible
from jaxformer.run.trained import DEFAULT_TOKENS, Trained, load_trained


@command
def main(arguments: list[str]) -> int:
    """Writes text with a trained model; returns the exit status."""
    options = parse(arguments)
    keep_compiled()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # What is not UTF-8 is refused as a prompt, in words.
    with out_of_memory_reported(lambda: "lower --count or --tokens"):
        trained = load_trained(options.workdir, options.step)
        with contextlib.suppress(BrokenPipeError):  # Whoever reads has read enough.
            if options.prompt is None:
                write_for_each_line(trained, options)
            else:
                prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
                note_length(trained, prompt, options)
                write_texts(trained, prompt, options)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the options.

    Raises:
        UserError: one has no such value.
    """
    parser = Parser("jaxformer generate", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--workdir", type=local_path, required=True, metavar="RUN", help="run folder")
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    add("--prompt", metavar="TEXT", help="the beginning of the text; '-' reads it from the input (default: asks)")
    add("--tokens", type=int, metavar="N", help=f"the most tokens to write (default: {DEFAULT_TOKENS})")
    text = "divides the logits before a token is drawn; 0 takes the likeliest (default: %(default)s)"
    add("--temperature", type=float, default=Sampling.temperature, metavar="X", help=text)
    text = "draws among the K likeliest tokens; 0 among all (default: %(default)s)"
    add("--top_k", type=int, default=Sampling.top_k, metavar="K", help=text)
    text = "draws among the fewest likeliest tokens whose probabilities sum to P (default: %(default)s)"
    add("--top_p", type=float, default=Sampling.top_p, metavar="P", help=text)
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    text = "how many texts to write, all at once, after each prompt (default: %(default)s)"
    add("--count", type=int, default=1, metavar="N", help=text)
    options = parser.parse_args(arguments)
    # What is refused is refused before anything is read.
    Sampling(options.temperature, options.top_k, options.top_p)
    for name in ("tokens", "count"):
        value = getattr(options, name)
        require(value is None or value >= 1, f"{name} ({value}) must be at least 1")
    return options


def write_for_each_line(trained: Trained, options: argparse.Namespace) -> None:
    """Continues each line of the input, and on a terminal asks for them."""
    asks = is_terminal(sys.stdin)
    if asks:
        print_line(f"{trained}\n\nType how a text begins. Ctrl-C stops a text, Ctrl-D ends.", is_error=True)
    for number, prompt in enumerate(filter(None, prompts(asks))):
        if number and not asks:
            print_text("\n")
        try:
            if not number:
                note_length(trained, prompt, options)
            with interruptible() if asks else contextlib.nullcontext():
                write_texts(trained, prompt, options, number)
        except KeyboardInterrupt:
            print_text("\n")
        except UserError as error:
            if not asks:
                raise
            print_notice(str(error))


def prompts(asks: bool) -> Iterator[str]:
    """Yields the lines of the input, which may be empty, without their ends; on a terminal it asks for each."""
    if not asks:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  With it `input` has the keys of an editor, and remembers lines.
    while True:
        try:
            if is_terminal(sys.stdout):
                yield input("\n> ")
            else:  # `input` would print to it.
                print_line("\n> ", is_error=True, end="")
                yield input()
        except EOFError:
            print_line("", is_error=True)
            return


def write_texts(trained: Trained, prompt: str, options: argparse.Namespace, number: int = 0) -> None:
    """Prints what the model writes after a prompt, behind the prompt; several texts each under a heading.

    Args:
        number: of the prompt, which is added to the seed.
    """
    names = ("tokens", "temperature", "top_k", "top_p")
    sampling = {**{name: getattr(options, name) for name in names}, "seed": options.seed + number}
    if options.count == 1:
        pieces = trained.stream(prompt, **sampling)
        print_text(prompt)
        for piece in pieces:
            print_text(piece)
        print_text("\n")
        return
    for i, text in enumerate(trained.generate(prompt, count=options.count, label="generating", **sampling)):
        print_text(f"--- {i + 1} of {options.count} ---\n{prompt}{text}\n")


def note_length(trained: Trained, prompt: str, options: argparse.Namespace) -> None:
    """Prints a line if a text is to be longer than those that the model has seen."""
    prompt_tokens = len(encode_prompt(trained.tokenizer, prompt))
    longest, row_length = prompt_tokens + (options.tokens or 0), trained.experiment.packing.row_length
    if longest > row_length:
        print_notice(f"trained on rows of {row_length} tokens; a text of {longest} may become poor")
