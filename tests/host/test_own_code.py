"""Code that an experiment file runs beyond assigning values is known by its digest, whoever imports it."""

import importlib
import sys
from types import ModuleType

import pytest

import jaxformer
from jaxformer.config import UserError
from jaxformer.experiment.files import list_experiments
from jaxformer.experiment.resolution import resolve

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A function from the code before a variant and its local module to the own code of the variant."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def find(code="", module="RATE = 0.95", **options):
        (tmp_path / "rates_of_a_test.py").write_text(module)
        for name in set(sys.modules) - before:
            if "_of_a_test" in name:
                del sys.modules[name]
        fields = {"parent": "swiglu", "question": "Why?", "change": "0.95"} | options
        (tmp_path / "b1.py").write_text(
            f"from jaxformer.experiment import Variant\n{code}\nEXPERIMENT = Variant(parent={fields['parent']!r},"
            f" question={fields['question']!r}, change={{'optimizer.b1': {fields['change']}}}, expected=(-1, 1),"
            " source='a test')\n"
        )
        importlib.invalidate_caches()
        return resolve(str(tmp_path / "b1.py")).lineage.own_code

    yield find
    for name in set(sys.modules) - before:
        if "_of_a_test" in name:
            del sys.modules[name]


def test_a_file_that_assigns_values_has_none_whatever_it_says_and_imports(own_code):
    assert own_code() == own_code("import math\nRATE = 1 - 0.05\n'a text'", question="Else?", change="RATE") == {}


def test_functions_of_a_file_and_local_modules_are_known_by_what_they_do(own_code):
    code = "import rates_of_a_test\ndef rate(value, parent):\n    return rates_of_a_test.RATE\n"
    first = own_code(code, change="rate")
    assert set(first) == {"experiment b1", "module rates_of_a_test"}
    assert own_code(code + "# why", "'''What.'''\nRATE = 0.95  # a guess", change="rate", question="Else?") == first
    assert own_code(code, "RATE = 0.97", change="rate")["module rates_of_a_test"] != first["module rates_of_a_test"]
    assert own_code(code + "    # why\n    return 0.9", change="rate")["experiment b1"] != first["experiment b1"]


def test_what_a_local_module_imports_and_what_is_imported_by_a_function_is_known_each_time(own_code, tmp_path):
    (tmp_path / "more_of_a_test.py").write_text("RATE = 0.95")
    (tmp_path / "parts_of_a_test").mkdir()
    (tmp_path / "parts_of_a_test" / "__init__.py").write_text("")
    (tmp_path / "parts_of_a_test" / "part.py").write_text("from . import other\nfrom .other import RATE")
    (tmp_path / "parts_of_a_test" / "other.py").write_text("RATE = 0.95")
    code = "import importlib\nm = importlib.import_module('rates_of_a_test')\nfrom parts_of_a_test import part"
    found = own_code(code, "import more_of_a_test")
    names = ("rates_of_a_test", "more_of_a_test", "parts_of_a_test", "parts_of_a_test.part", "parts_of_a_test.other")
    assert set(found) == {f"module {name}" for name in names}
    assert resolve(str(tmp_path / "b1.py")).lineage.own_code == found, "now that all are loaded"


def test_a_function_without_a_name_is_code_of_its_own(own_code):
    assert set(own_code("RATE = lambda value, parent: 0.95", change="RATE")) == {"experiment b1"}


def test_a_variant_has_its_ancestors_code_too_and_they_have_not_that_of_the_variant(own_code, tmp_path):
    (tmp_path / "deep.py").write_text(
        "from jaxformer.experiment import Variant\ndef depth(value, parent):\n    return 7\nEXPERIMENT = Variant("
        "parent='baseline', question='Why?', change={'model.depth': depth}, expected=(-1, 1), source='a test')"
    )
    found = own_code("print", parent=str(tmp_path / "deep.py"))
    assert set(found) == {"experiment b1", "experiment deep"}
    parent = resolve(str(tmp_path / "b1.py")).parents[0]
    assert parent.lineage.own_code == {"experiment deep": found["experiment deep"]}


PART = """
import rates_of_a_test
from dataclasses import dataclass
from jaxformer.record import Part
RATE = 0.95
def half(x):
    return x / 2
class Net:
    def __call__(self):
        return half(rates_of_a_test.RATE)
@dataclass(frozen=True)
class Mine(Part):
    def make(self):
        return Net()
"""


def test_what_only_parts_use_is_recorded_with_them_and_all_else_here(own_code):
    assert own_code(PART) == own_code(PART.replace("/ 2", "/ 3")) == {}
    found = own_code(PART, change="lambda value, parent: half(1.9)")
    assert set(found) == {"experiment b1"}
    assert own_code(PART.replace("Net()", "(Net(), 1)"), change="lambda value, parent: half(1.9)") == found
    assert own_code(PART.replace("/ 2", "/ 2.5"), change="lambda value, parent: half(1.9)") != found
    assert set(own_code(PART, change="rates_of_a_test.RATE")) == {"module rates_of_a_test"}
    assert set(own_code(PART.replace("(Part)", ""))) == {"experiment b1", "module rates_of_a_test"}


def test_parts_that_come_with_jaxformer_are_local_modules_to_it(own_code, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "wheel_of_a_test.py").write_text("RATE = 0.95\nimport jaxformer.model")
    monkeypatch.setattr(jaxformer.__spec__, "submodule_search_locations", [str(tmp_path)])
    package = ModuleType("jaxformer.parts")
    package.__path__ = [str(tmp_path / "parts")]
    monkeypatch.setitem(sys.modules, "jaxformer.parts", package)
    found = own_code("from jaxformer.parts.wheel_of_a_test import RATE", change="RATE")
    assert set(found) == {"module jaxformer.parts.wheel_of_a_test"}


def test_modules_beside_a_file_are_found_and_another_of_their_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    for folder, rate in (("a", 0.95), ("b", 0.97)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside_of_a_test.py").write_text(f"RATE = {rate}")
        (tmp_path / folder / "b1.py").write_text(
            "from jaxformer.experiment import Variant\nfrom beside_of_a_test import RATE\nEXPERIMENT = Variant("
            "parent='swiglu', question='Why?', change={'optimizer.b1': RATE}, expected=(-1, 1), source='a test')\n"
        )
    resolved = resolve(str(tmp_path / "a" / "b1.py"))
    assert resolved.experiment.optimizer.b1 == 0.95 and set(resolved.lineage.own_code) == {"module beside_of_a_test"}
    with pytest.raises(UserError, match=r"imports beside_of_a_test of .*b.beside_of_a_test\.py, but .* is already"):
        resolve(str(tmp_path / "b" / "b1.py"))
    del sys.modules["beside_of_a_test"]
    assert resolve(str(tmp_path / "b" / "b1.py")).experiment.optimizer.b1 == 0.97
    del sys.modules["beside_of_a_test"]


@pytest.mark.parametrize("name", list_experiments())
def test_no_experiment_here_runs_code_of_its_own_beside_the_parts_of_jaxformer(name):
    assert all(each.startswith("module jaxformer.parts.") for each in resolve(name).lineage.own_code)
