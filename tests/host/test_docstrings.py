"""Docstrings that are printed are those of the source."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer.ablation.verdict
from jaxformer.host import docstrings
from jaxformer.host.docstrings import docstring

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_docstring_is_that_of_a_module_a_class_or_a_function():
    def none():
        return None

    assert docstring(docstrings) == ast.get_docstring(ast.parse(Path(docstrings.__file__).read_text(encoding="utf-8")))
    assert docstring(docstring) == docstring.__doc__ and docstring(none) == ""
    assert docstring(jaxformer.ablation.verdict.Rule).startswith(jaxformer.ablation.verdict.Rule.__doc__.split(".")[0])


def test_rule_is_described_the_same_without_docstrings():
    code = "from jaxformer.ablation.verdict import Rule; print(Rule().steps())"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(Path(docstrings.__file__).parents[2])}
    printed = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, env=environment).stdout
    assert printed.decode().strip() == str(jaxformer.ablation.verdict.Rule().steps())
