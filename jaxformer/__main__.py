"""The installed program, and `python -m jaxformer COMMAND [ARGUMENTS]`."""

import traceback
from typing import NoReturn

from jaxformer.host.signals import ended_by_signals


def run(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command, by default this process's, and ends the process with its exit status."""
    with ended_by_signals():
        from jaxformer.commands.program import main
        from jaxformer.host.command import end_process
    try:
        status = main(arguments)
    except Exception:  # A bug, or a fault of the machine: its threads end with the process too.
        traceback.print_exc()
        status = 1
    end_process(status)


if __name__ == "__main__":
    run()
