"""Generates text with a trained model.

Prints --prompt and the model's continuation, token by token, up to the end of the document or --tokens. Without
--prompt it asks for prompts, one per line: Ctrl-C stops a text, Ctrl-D ends the command. Each further prompt takes the
next seed. GPU memory is not preallocated, so that a run can be tried while it trains.

  jaxformer generate --workdir=runs/baseline/seed_0 --prompt="def read("
"""

import argparse
import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator

from jaxformer.config import UserError, override, require
from jaxformer.devices.device import keep_compiled, out_of_memory_reported
from jaxformer.evaluation.decoding import longest_text
from jaxformer.evaluation.generate import encode_text, generate_texts
from jaxformer.evaluation.sampling import Sampling
from jaxformer.experiment.command_line import add_code_option, field_docstrings
from jaxformer.host.command import Parser, command
from jaxformer.host.console import is_terminal, print_line, print_notice, print_text, show_status
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.host.signals import interruptible
from jaxformer.run.trained import Trained, load_trained

# The most texts for one prompt, and how many are generated and printed at a time.
_MAX_COUNT, _BATCH_TEXTS = 1_000_000, 64


@command
def main(arguments: list[str]) -> int:
    """Generates text with a trained model; returns the exit status."""
    options, sampling = parse(arguments)
    keep_compiled()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # A prompt that is not UTF-8 is refused with a message.
    with out_of_memory_reported(lambda: "shorten the prompt, or lower --count or --tokens"):
        trained = load_trained(options.workdir, options.step)
        with contextlib.suppress(BrokenPipeError):  # The reader has read enough.
            if options.prompt is None:
                continue_lines(trained, sampling, options.count)
            else:
                prompt = options.prompt
                if prompt == "-":
                    prompt = sys.stdin.read() if sys.stdin else ""
                print_notice(length_notice(trained, prompt, sampling))
                print_texts(trained, prompt, sampling, options.count)
    return 0


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Sampling]:
    """Returns the options; those that are fields of `Sampling` come second.

    Raises:
        UserError: an option has an invalid value.
    """
    parser = Parser("jaxformer generate", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--workdir", type=local_path, required=True, metavar="RUN", help="run folder")
    add_code_option(parser)
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    add("--prompt", metavar="TEXT", help="the beginning of the text; '-' reads it from the input (default: asks)")
    add("--count", type=int, default=1, metavar="N", help="texts to generate for each prompt (default: 1)")
    fields, explained = dataclasses.fields(Sampling), field_docstrings(Sampling)
    for field in fields:
        text = explained[field.name]
        add(f"--{field.name}", metavar="X", help=f"{text[0].lower()}{text[1:].rstrip('.')} (default: {field.default})")
    options = parser.parse_args(arguments)
    require(1 <= options.count <= _MAX_COUNT, f"count ({options.count}) must be at least 1 and at most {_MAX_COUNT:,}")
    given = {field.name: getattr(options, field.name) for field in fields}
    return options, override(Sampling(), {name: text for name, text in given.items() if text is not None})


def continue_lines(trained: Trained, sampling: Sampling, count: int) -> None:
    """Continues each line of the input, and asks for lines on a terminal; Ctrl-C stops only the text."""
    asks, notice = is_terminal(sys.stdin), None
    if asks:
        print_line(f"{trained}\n\nType how a text begins. Ctrl-C stops a text, Ctrl-D ends.", is_error=True)
    with interruptible() if asks else contextlib.nullcontext():
        for number, prompt in enumerate(filter(None, asked_lines() if asks else input_lines())):
            if number and not asks:
                print_text("\n")
            try:
                if notice is None:  # Once is enough.
                    notice = length_notice(trained, prompt, sampling)
                    print_notice(notice)
                print_texts(trained, prompt, sampling.reseeded(number), count)
            except KeyboardInterrupt:
                if not asks:
                    raise
                print_text("\n")
            except UserError as error:
                if not asks:
                    raise
                print_notice(str(error))


def input_lines() -> Iterator[str]:
    """Yields the lines of the input without their ends."""
    for line in sys.stdin or ():
        yield line.rstrip("\r\n")


def asked_lines() -> Iterator[str]:
    """Yields the lines typed at a prompt on a terminal, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  With it `input` has the keys of an editor, and remembers lines.
    while True:
        try:
            if is_terminal(sys.stdout):
                show_status()
                yield input("\n> ")
            else:  # `input` would print to it.
                print_line("\n> ", is_error=True, end="")
                yield input()
        except KeyboardInterrupt:  # At the prompt it drops the line.
            print_line("", is_error=True)
        except EOFError:
            print_line("", is_error=True)
            return


def print_texts(trained: Trained, prompt: str, sampling: Sampling, count: int) -> None:
    """Prints a prompt and the text that follows it; several texts each under a heading."""
    if count == 1:
        pieces = trained.stream(prompt, sampling)
        print_text(prompt)
        for piece in pieces:
            print_text(piece)
        print_text("\n")
        return
    ids = encode_text(trained.tokenizer, prompt)
    for first in range(0, count, _BATCH_TEXTS):
        prompts = [ids] * min(_BATCH_TEXTS, count - first)
        label = f"texts {first + 1:,} to {first + len(prompts):,} of {count:,}"
        texts = generate_texts(trained.model, trained.tokenizer, prompts, sampling, first_row=first, label=label)
        for number, text in enumerate(texts, first + 1):
            print_text(f"--- {number} of {count} ---\n{prompt}{text}\n")


def length_notice(trained: Trained, prompt: str, sampling: Sampling) -> str | None:
    """Returns a warning if a text may become longer than the rows of the training, or than the model allows."""
    prompt_tokens = len(encode_text(trained.tokenizer, prompt))
    tokens, limit = prompt_tokens + sampling.tokens, longest_text(trained.model)
    row_length = trained.experiment.packing.row_length
    if prompt_tokens >= limit:  # Which is refused.
        return None
    if tokens > limit:
        return f"the model has {limit} positions; a text of {tokens} tokens would end there"
    if tokens > row_length:
        return f"trained on rows of {row_length} tokens; a text of {tokens} may be poor towards its end"
    return None
