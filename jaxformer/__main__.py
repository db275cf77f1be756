"""The installed program, and `python -m jaxformer COMMAND [ARGUMENTS]`."""

import sys

from jaxformer.host.signals import ended_by_interrupt


def run() -> None:
    """Runs the command of this process, and ends the process with its status."""
    with ended_by_interrupt():
        from jaxformer.commands.program import main
        from jaxformer.host.console import flush_streams
    status = main()
    flush_streams()
    sys.exit(status)


if __name__ == "__main__":
    run()
