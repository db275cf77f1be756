"""The installed program, and `python -m jaxformer COMMAND [ARGUMENTS]`."""

from jaxformer.host.signals import ended_by_signals


def run() -> None:
    """Runs the command of this process, and ends the process with its status."""
    with ended_by_signals():
        from jaxformer.commands.program import main
        from jaxformer.host.command import end_process
    end_process(main())


if __name__ == "__main__":
    run()
