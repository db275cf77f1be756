"""The installed program, and `python -m jaxformer COMMAND [ARGUMENTS]`."""

import traceback
from typing import NoReturn

from jaxformer.host.signals import ended_by_signals


def run(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command, that of this process by default, and ends the process with its status."""
    with ended_by_signals():
        from jaxformer.commands.program import main
        from jaxformer.host.command import end_process
    try:
        status = main(arguments)
    except Exception:  # A fault of ours, or of the machine: its threads end with the process too.
        traceback.print_exc()
        status = 1
    end_process(status)


if __name__ == "__main__":
    run()
