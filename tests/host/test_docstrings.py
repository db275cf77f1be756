"""Docstrings that are printed are those of the source."""

import ast
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


def test_rule_is_described_the_same_without_docstrings(monkeypatch):
    expected, path = str(jaxformer.ablation.verdict.Rule().steps()), Path(jaxformer.ablation.verdict.__file__)
    # As `python -OO` has it, which would compile all that is imported anew.
    monkeypatch.setattr(docstrings, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    without = ModuleType("without_docstrings")
    without.__file__ = str(path)
    monkeypatch.setitem(sys.modules, without.__name__, without)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", optimize=2), without.__dict__)
    assert without.__doc__ is None and str(without.Rule().steps()) == expected
