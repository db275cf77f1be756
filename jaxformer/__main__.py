"""`python -m jaxformer COMMAND [ARGUMENTS]`, the same as the installed `jaxformer`."""

from jaxformer.commands.program import run

if __name__ == "__main__":
    run()
