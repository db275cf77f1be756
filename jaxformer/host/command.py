"""What all commands share: how arguments are parsed, and what ends a command with which line and status."""

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

# Columns of a page of help, in a terminal of at least one more.
WIDTH = 79

# So long an end may take at most; processes of one run wait 60 s for each other.
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
    """Returns what to do about a text with a name that the encoding of file names does not have; nothing for others."""
    encoding = sys.getfilesystemencoding()
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "" if encoding == "utf-8" else f"; the encoding of file names is {encoding}: set PYTHONUTF8=1"
    return ""


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and raises what is wrong with the arguments.

    Raises:
        UserError: the arguments are not of the command.
    """

    def __init__(self, prog: str, description: str | None, **options):
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter, **options
        )

    def parse_known_args(self, args=None, namespace=None):
        """Returns the options and the arguments that are none."""
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
        """Raises `UserError` in place of ending the process."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def command(main: Callable[[list[str]], int]) -> Command:
    """Returns a command that ends in one line and a status, whatever ends it.

    The status is 0 for what is done, 1 for a failed training, 2 for what the user can put right, and 128 + n for
    signal n. Without arguments it takes those of the process.
    """

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        prepare_streams()
        # Orbax and TFDS tell at length, through absl, what they do, and the traces of what they raise as well.
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
        except UnicodeEncodeError as error:  # Of a file's name: what is printed or written has an encoding of ours.
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
    """Ends this process with a status, once what others have registered for its end is done; no thread is waited for.

    A reader that waits for a disk, or a library that ran out of memory, would else keep alive for ever what has told
    that it is over.
    """
    with contextlib.suppress(RuntimeError):  # There may be no memory for a thread.
        timer = threading.Timer(_END_SECONDS, os._exit, (status,))
        timer.daemon = True
        timer.start()
    flush_streams()
    atexit._run_exitfuncs()
    flush_streams()
    os._exit(status)
