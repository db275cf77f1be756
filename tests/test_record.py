"""Parts, values of a configuration that are code: known by name, source and fields, and never run from a record."""

import dataclasses
import gc
import importlib
import json
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

import jaxformer.record
from jaxformer.config import PositiveInt, UserError, check_fields, describe_type, execution, override, replace
from jaxformer.experiment.files import load_parts, run_experiment_file
from jaxformer.record import Part, all_parts, flatten, from_dict, source_of, to_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


class Layer(Part):
    """What a field takes."""


@dataclass(frozen=True)
class Mixture(Layer):
    """A part of its own fields."""

    experts: PositiveInt = 4
    shape: tuple[int, ...] = (1, 2)
    chunk: int = execution(0)
    inner: Layer | None = None

    def __post_init__(self):
        check_fields(self, "Mixture")

    def __call__(self):
        return 7


@dataclass(frozen=True)
class Model:
    """A configuration with places for parts."""

    width: PositiveInt = 3
    activation: str | Layer = "gelu"
    layer: Layer | None = None
    layers: Layer | tuple[Layer | None, ...] | None = None

    def __post_init__(self):
        check_fields(self, "model")


MODEL = Model(layer=Mixture(8, inner=Mixture(2)), layers=(None, Mixture()), activation=Mixture(shape=()))
CODE = """
from dataclasses import dataclass
from jaxformer.record import Part
import {module}


def work():
    return 1


@dataclass(frozen=True)
class Mine(Part):
    '''Mine.'''

    experts: int = 8

    def make(self):
        return {module}.SCALE * work()


EXPERIMENT = Mine(3)  # A question.
"""


@pytest.fixture
def load(tmp_path):
    """A function (changes of the code, code of the module beside it) -> the value of a file mine.py that imports it."""
    module, path = f"beside_{id(tmp_path)}", sys.path[:]

    def load(*changes, beside="SCALE = 2", name="mine"):
        code = CODE.format(module=module)
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        (tmp_path / f"{module}.py").write_text(beside)
        (tmp_path / f"{name}.py").write_text(code)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        return run_experiment_file(tmp_path / f"{name}.py", (Part,))

    yield load
    sys.path[:] = path


def forget():
    """Makes this process one that has not loaded the files of the test."""
    for name in [name for name in sys.modules if name.startswith(("experiment ", "file ", "beside_"))]:
        del sys.modules[name]
    gc.collect()


def test_leaves_of_a_part_are_its_name_its_source_and_its_fields():
    code = getattr(source_of(Mixture), "digest", "")
    found = flatten(Model(layer=Mixture(8)), science_only=True)
    assert found == {
        "width": 3,
        "activation": "gelu",
        "layer.part": "test_record.Mixture",
        "layer.code": code,
        "layer.experts": 8,
        "layer.shape.0": 1,
        "layer.shape.1": 2,
        "layer.inner": None,
        "layers": None,
    }
    assert flatten(Model(layer=Mixture(8)))["layer.chunk"] == 0
    assert len([*all_parts(MODEL)]) == 4


def test_a_configuration_with_parts_survives_json():
    values = json.loads(json.dumps(to_dict(MODEL)))
    assert from_dict(Model, values) == MODEL and to_dict(from_dict(Model, values)) == values
    assert to_dict(Model(layer=Mixture(2, ())), to_print=True)["layer"] == (
        "Mixture(experts=2, shape=(), chunk=0, inner=None)"
    )


def test_a_part_of_a_record_equals_the_real_one_and_refuses_to_work(monkeypatch):
    values = to_dict(MODEL)
    monkeypatch.setattr(jaxformer.record, "_loaded_part", lambda *names: None)
    model = from_dict(Model, values)
    assert type(model.layer) is not Mixture and isinstance(model.layer, Layer)
    assert model == MODEL and model == MODEL and hash(model) == hash(MODEL) and repr(model) == repr(MODEL)
    assert to_dict(model) == values
    for science_only in (False, True):
        assert flatten(model, science_only=science_only) == flatten(MODEL, science_only=science_only)
    for use in (lambda: model.layer.make(3), lambda: model.layer(), lambda: model.layer.experts):
        with pytest.raises(UserError, match=r"^Mixture\(experts=8, .*\) is code of test_record\.py, .*--code=FILE"):
            use()


def test_a_file_that_runs_again_makes_an_equal_part_whatever_it_says_or_is_asked(load):
    first = load()
    again = load(("'''Mine.'''", "'''Else.'''  # why"), ("Mine(3)  # A question.", "Mine(experts=3)"))
    assert type(first) is not type(again) and first == again and hash(first) == hash(again)
    assert first != load(("Mine(3)", "Mine(4)")) and first != load(name="other") and first != Mixture(3)
    assert load(("experts: int = 8", "experts: int = 8\n    rate: float = 0.1")) != first


def test_a_part_of_other_code_is_another_part(load):
    for change in (("return 1", "return 2"), ("* work()", "+ work()"), ("experts: int = 8", "experts: int = 9")):
        assert load(change) != load() == load()
    assert load(beside="SCALE = 2  # why") == load() != load(beside="SCALE = 3")


def test_a_record_is_of_the_class_that_was_loaded_from_the_users_file_and_of_no_other(load, tmp_path):
    values = to_dict(Holder(load()))
    forget()
    assert type(from_dict(Holder, values).part).__name__ == "PartOfARecord"
    load(("return 1", "return 2"))
    assert type(from_dict(Holder, values).part).__name__ == "PartOfARecord"
    load()
    forget()
    load_parts(tmp_path / "mine.py")
    part = from_dict(Holder, values).part
    assert type(part).__name__ == "Mine" and part.make() == 2 and part == from_dict(Holder, values).part


@dataclass(frozen=True)
class Holder:
    """A configuration that takes any part."""

    part: Part


@pytest.mark.parametrize(
    "record",
    [
        {"part": "os.system", "command": "touch sprung"},
        {"part": "os.system"},
        {"part": "antigravity.Part"},
        {"part": "jaxformer.parts.os.system"},
        {"part": "jaxformer.parts..os"},
        {"part": "jaxformer.record.Part"},
        {"part": "jaxformer.parts.nothing.Nothing"},
        {"part": ["os.system"]},
        {"part": None},
        {"part": "a.B", "code": {"x": 1}},
        {"experts": 8},
    ],
)
def test_a_record_imports_and_runs_nothing_but_parts_of_the_package(record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "antigravity.py").write_text("open('sprung', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}
    with pytest.raises(UserError):
        from_dict(Holder, {"part": record})
    assert not (tmp_path / "sprung").exists() and {*sys.modules} - before <= {"jaxformer.parts"}
    unknown = from_dict(Holder, {"part": {"part": "antigravity.Part", "code": "0" * 16}})
    assert unknown == from_dict(Holder, to_dict(unknown)) and {*sys.modules} - before <= {"jaxformer.parts"}


def test_a_part_of_the_package_is_built_from_its_name_and_has_no_digest(tmp_path, monkeypatch):
    package = ModuleType("jaxformer.parts")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "jaxformer.parts", package)
    code = "import os\nfrom dataclasses import dataclass\nfrom jaxformer.record import Part\n@dataclass(frozen=True)\n"
    (tmp_path / "toy_of_a_test.py").write_text(code + "class Toy(Part):\n    size: int = 3\n")
    importlib.invalidate_caches()
    values = {"part": {"part": "jaxformer.parts.toy_of_a_test.Toy", "size": 5}}
    config = from_dict(Holder, values)
    del sys.modules["jaxformer.parts.toy_of_a_test"]
    assert repr(config.part) == "Toy(size=5)" and to_dict(config) == values
    for name in ("toy_of_a_test.Part", "toy_of_a_test.os", "toy_of_a_test.dataclass", "toy_of_a_test.None"):
        with pytest.raises(UserError, match="is no part of this jaxformer"):
            from_dict(Holder, {"part": {"part": f"jaxformer.parts.{name}"}})


class NotDeclared(Layer):
    """Whose fields nobody records."""

    experts: int = 3


@dataclass(frozen=True)
class Odd(Layer):
    """A part that nothing can be written of."""

    function: object = None


@dataclass(frozen=True)
class Taken(Layer):
    """A part with a field that a record has for itself."""

    code: str = ""


def local_part():
    @dataclass(frozen=True)
    class Inner(Layer):
        experts: int = 3

    return Inner()


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        (
            NotDeclared(),
            r"NotDeclared: put @dataclass\(frozen=True\) before its class, so that its fields are recorded",
        ),
        (local_part(), "Inner: its class must stand at the top level of a file, whose source then identifies it"),
        (Odd(len), r"Odd: function \(<built-in .*>\) must be a number, a text, a tuple of such, or a part"),
        (Odd([3]), r"Odd: function \(\[3\]\) must be a number, a text, a tuple of such, or a part"),
        (Taken(), "Taken: a field of a part cannot be called code"),
    ],
)
def test_a_part_that_cannot_be_known_again_is_refused_where_it_is_recorded(part, rule):
    for record in (flatten, to_dict):
        with pytest.raises(UserError, match=f"^{rule}$"):
            record(Model(layer=part))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (
            {"layer": "mixture"},
            "model.layer must be Layer or none, not 'mixture'; give Mine(...) of `class Mine(Layer)`",
        ),
        ({"layer": Mixture}, "model.layer must be Layer or none, not the class Mixture; give Mixture(...)"),
        ({"activation": 3}, "model.activation must be text or Layer, not 3; give Mine(...) of `class Mine(Layer)`"),
        (
            {"layers": (3,)},
            "model.layers.0 must be Layer or none, not 3; give Mine(...) of `class Mine(Layer)`",
        ),
    ],
)
def test_a_value_that_is_none_of_a_fields_types_is_refused_with_what_to_give(values, rule):
    with pytest.raises(UserError) as error:
        Model(**values)
    assert str(error.value) == rule
    kinds = {field.name: field.type for field in dataclasses.fields(Model)}
    assert describe_type(kinds["layers"]) == "Layer or a tuple of (Layer or none) or none"


def test_a_part_is_set_in_a_file_and_its_fields_and_a_text_in_its_place_on_the_command_line():
    assert override(MODEL, {"layer.inner.experts": "5"}) == replace(MODEL, {"layer.inner": Mixture(5)})
    assert override(MODEL, {"activation": "relu"}).activation == "relu"
    assert replace(MODEL, {"layer": None, "layers": Mixture()}) == Model(activation=Mixture(shape=()), layers=Mixture())
    with pytest.raises(UserError, match=r"^layer cannot be set from the command line; write it in an experiment file$"):
        override(Model(), {"layer": "Mixture"})
    with pytest.raises(UserError, match=r"^layer is a section, not a value; set one of its fields: layer\.experts, "):
        override(MODEL, {"layer": "Mixture"})
    with pytest.raises(UserError, match=r"^Mixture\.experts \(0\) must be at least 1$"):
        override(MODEL, {"layer.experts": "0"})
