"""Messages name commands that exist, and that came with the package."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import jaxformer
from jaxformer.commands.program import COMMANDS

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

ROOT = Path(jaxformer.__file__).parents[1]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """The files of the package and its tools, parsed."""
    paths = [*ROOT.glob("jaxformer/**/*.py"), *ROOT.glob("tools/*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def texts(tree: ast.Module) -> list[str]:
    """Returns the string literals of a file, and the literal parts of its f-strings."""
    nodes = ast.walk(tree)
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_commands_that_are_named_exist(trees):
    for file, tree in trees.items():
        for text in texts(tree):
            for command in re.findall(r"`jaxformer ([a-z][\w-]*)", text):
                assert command in COMMANDS, f"{file}: {command}"
            for module in re.findall(r"`python -m (jaxformer[\w.]*)", text):
                assert importlib.util.find_spec(module), f"{file}: {module}"


def test_no_message_names_a_tool_of_the_checkout(trees):
    """A module's docstring may, for those who read the source, unless it is what a command prints as its help."""
    for file, tree in trees.items():
        if file.startswith("jaxformer/"):
            allowed = None if file.startswith("jaxformer/commands/") else ast.get_docstring(tree, clean=False)
            assert not [text for text in texts(tree) if "tools/" in text and text != allowed], file
