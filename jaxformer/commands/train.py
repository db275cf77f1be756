"""Trains an experiment, or resumes it where it stopped.

The same as `python -m jaxformer.train`.
"""

from jaxformer.train import run_command as main

__all__ = ["main"]
