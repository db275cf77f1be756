"""The shared part of all commands: parsing arguments, and ending with a line and an exit status."""

import argparse
import atexit
import contextlib
import functools
import itertools
import logging
import os
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import NoReturn, Protocol

from jaxformer.config import TrainingFailure, UserError, is_unicode, require
from jaxformer.host.console import flush_streams, prepare_streams, print_line, print_notice, show_status, terminal_size
from jaxformer.host.signals import Stopped, stop_signals

# Columns of a help page, in a terminal with at least one more.
WIDTH = 79

# The longest time, in seconds, that ending may take; processes of one run wait 60 s for each other.
_END_SECONDS = 90


class Command(Protocol):
    """A command: a function of its arguments, or of those of the process, to its exit status."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Returns the exit status."""
        ...


class _HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; indented lines, such as code, stay as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, width=min(WIDTH, terminal_size(sys.stdout).columns - 1))

    def _fill_text(self, text, width, indent):
        lines = []
        for is_kept, group in itertools.groupby(text.splitlines(), lambda line: line[:1] in ("", " ")):
            block = list(group)
            lines += block if is_kept else textwrap.wrap(" ".join(block), width, break_on_hyphens=False)
        return "\n".join(lines)


def _encoding_advice(text: str) -> str:
    """Returns advice on a text that the encoding of file names cannot represent; '' for others."""
    encoding = sys.getfilesystemencoding()
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "" if encoding == "utf-8" else f"; the encoding of file names is {encoding}: set PYTHONUTF8=1"
    return ""


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, which raises errors about the arguments.

    Raises:
        UserError: the arguments are not of the command.
    """

    def __init__(self, prog: str, description: str | None, **options):
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter, **options
        )

    def parse_known_args(self, args=None, namespace=None):
        """Returns the options and the remaining arguments."""
        for argument in args or []:
            require(is_unicode(argument), f"argument {argument!r} is not UTF-8{_encoding_advice(argument)}")
            # Pages and word processors print two hyphens as a dash.
            rest = argument.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
            dashes = argument.removesuffix(rest)
            require(not dashes.strip("-"), f"argument {argument!r} begins with {dashes!r}: type --{rest}")
        return super().parse_known_args(args, namespace)

    def _print_message(self, message, file=None):
        """Prints a page of help."""
        print_line(message, end="")

    def error(self, message):
        """Raises `UserError` instead of ending the process."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def command(main: Callable[[list[str]], int]) -> Command:
    """Returns a command that always ends with one line and a status.

    The status is 0 for success, 1 for a failed training, 2 for an error that the user can correct, and 128 + n for
    signal n. Without arguments it takes the process's.
    """

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        prepare_streams()
        # Orbax and TFDS log at length through absl, including traces of the errors that they raise.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        try:
            with stop_signals():
                return main(sys.argv[1:] if arguments is None else arguments)
        except TrainingFailure as error:
            print_notice(str(error))
            return 1
        except (UserError, OSError) as error:
            print_notice(f"{error}{_encoding_advice(str(error))}")
            return 2
        except MemoryError as error:
            reason = f" ({error})" if str(error) else ""
            print_notice(f"memory ran out{reason}; free some, or set smaller sizes")
            return 2
        except UnicodeEncodeError as error:  # From a file's name: printed and written text has our encoding.
            if not (advice := _encoding_advice(error.object)):
                raise
            print_notice(f"{error.object!r:.200} names no file here{advice}")
            return 2
        except Stopped as error:
            print_notice(str(error))
            return 128 + error.number
        except KeyboardInterrupt:
            print_notice("interrupted")
            return 130
        finally:
            show_status()

    return wrapped


def end_process(status: int) -> NoReturn:
    """Ends this process with a status, after the registered exit functions, without waiting for threads.

    Otherwise a reader that waits for a disk, or a library without memory, could keep a finished process alive for ever.
    """
    with contextlib.suppress(RuntimeError):  # There may be no memory for a thread.
        timer = threading.Timer(_END_SECONDS, os._exit, (status,))
        timer.daemon = True
        timer.start()
    flush_streams()
    atexit._run_exitfuncs()
    flush_streams()
    os._exit(status)
