"""What all commands share: how arguments are parsed, and what ends a command with which line and status."""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Protocol

from jaxformer.config import TrainingFailure, UserError
from jaxformer.host.console import print_notice
from jaxformer.host.signals import Stopped


class Command(Protocol):
    """A command: a function of its arguments, or of those of the process, to its exit status."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Returns the exit status."""
        ...


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, keeps the lines of its description, and raises what is wrong.

    Raises:
        UserError: the arguments are not of the command.
    """

    def __init__(self, prog: str, description: str | None, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)

    def error(self, message):
        """Raises `UserError` in place of ending the process."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def command(main: Callable[[list[str]], int]) -> Command:
    """Returns a command that ends in one line and a status, whatever ends it.

    The status is 0 for what is done, 1 for a failed training, 2 for what the user can put right, and 128 + n for
    signal n. Without arguments it takes those of the process.
    """

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        # Orbax and TFDS tell at length, through absl, what they do, and the traces of what they raise as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        try:
            return main(sys.argv[1:] if arguments is None else arguments)
        except TrainingFailure as error:
            print_notice(str(error))
            return 1
        except (UserError, OSError) as error:
            print_notice(str(error))
            return 2
        except Stopped as error:
            print_notice(str(error))
            return 128 + error.number
        except KeyboardInterrupt:
            print_notice("interrupted")
            return 130

    return wrapped


def flush_streams() -> None:
    """Writes out what was printed; what cannot be written is dropped, so that it does not change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
