"""The README keeps its word: its library example runs, and what it names exists."""

import re
from pathlib import Path

import jax
import numpy as np

from jaxformer.data.packing import Batch
from jaxformer.experiment.command_line import parse_arguments

README = (Path(__file__).parent.parent / "README.md").read_text()

EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_example_of_a_variant_is_one_of_the_experiments():
    variant, _ = EXAMPLES
    assert variant in (Path(__file__).parent.parent / "experiments" / "swiglu.py").read_text()


def test_the_library_example_runs_a_step():
    names = {}
    _, example = EXAMPLES
    exec(example, names)
    tokens = np.ones((2, 16), np.int32)
    starts, ends = np.zeros_like(tokens), tokens * 16
    positions = starts + np.arange(16, dtype=np.int32)
    batch = Batch(tokens, tokens + 1, np.ones(tokens.shape, np.float32), tokens, positions, starts, ends)
    state, metrics = names["step"](names["state"], batch)
    assert int(state.step) == 1 and abs(float(metrics["loss"]) / np.log(4096) - 1) < 0.2
    assert jax.tree.leaves(state.params)


def test_commands_name_options_and_fields_that_exist():
    commands = re.findall(r"python -m jaxformer.train (--.*)", README)
    assert len(commands) >= 2
    for command in commands:
        options, _ = parse_arguments(command.split())
        assert (Path(__file__).parent.parent / "experiments" / f"{options.experiment}.py").is_file()
