import dataclasses
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pytest

from jaxformer.config import (
    Bounds,
    NonNegativeFloat,
    OneOf,
    PositiveInt,
    UserError,
    check_fields,
    did_you_mean,
    execution,
    override,
    require_one_of,
)
from jaxformer.record import differences, flatten, from_dict, to_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@dataclass(frozen=True)
class Model:
    width: int = 12
    heads: int = 3
    dropout: float = 0.5
    tied: bool = False
    activation: str = "gelu"

    def __post_init__(self):
        check_fields(self)
        if self.width % self.heads:
            raise UserError(f"heads ({self.heads}) must divide width ({self.width})")


@dataclass(frozen=True)
class Part:
    weight: float = 1.0
    path: str = ""

    def __post_init__(self):
        if self.weight < 0:  # As somebody else's class refuses it.
            raise ValueError("weight must not be negative")


@dataclass(frozen=True)
class Run:
    model: Model = Model()
    parts: tuple[Part, ...] = (Part(), Part(2.0, "b"))
    shape: tuple[int, ...] = (4, 5)
    steps: int = 10
    workers: int = execution(1)
    logging: Part = execution(Part())


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "7", 7),
        ("steps", "-7", -7),
        ("steps", "1_000", 1000),
        ("steps", "1e6", 1_000_000),
        ("steps", "2.0", 2),
        ("steps", "9007199254740993", 2**53 + 1),
        ("model.dropout", "0.25", 0.25),
        ("model.dropout", "3e-4", 3e-4),
        ("model.dropout", "1", 1.0),
        ("model.tied", "true", True),
        ("model.tied", "False", False),
        ("model.activation", "relu2", "relu2"),
        ("model.activation", "1e6", "1e6"),
        ("model.activation", "", ""),
        ("parts.1.weight", "0.5", 0.5),
        ("parts.0.path", "a.b=c", "a.b=c"),
        ("logging.path", "x", "x"),
    ],
)
def test_an_override_replaces_one_value_by_its_text_in_the_fields_type(path, text, value):
    before, after = flatten(Run()), flatten(override(Run(), {path: text}))
    assert after == {**before, path: value}
    assert type(after[path]) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("steps", "1.5", "a whole number"),
        ("steps", "many", "a whole number"),
        ("steps", "inf", "a whole number"),
        ("steps", "nan", "a whole number"),
        ("steps", "1e400", "a whole number"),
        ("steps", "", "a whole number"),
        ("steps", "true", "a whole number"),
        ("model.dropout", "half", "a number"),
        ("model.tied", "1", "true or false"),
        ("model.tied", "yes", "true or false"),
    ],
)
def test_a_text_of_another_type_is_refused_with_path_rule_and_text(path, text, rule):
    with pytest.raises(UserError) as error:
        override(Run(), {path: text})
    assert str(error.value) == f"{path} must be {rule}, not {text!r}"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("modle", "did you mean model?"),
        ("modle.width", "did you mean model.width?"),
        ("model.widht", "did you mean model.width?"),
        ("parts.1.wieght", "did you mean parts.1.weight?"),
        ("model.width.wide", "did you mean model.width?"),
        ("model.Tied", "did you mean model.tied?"),
        ("model.path", "did you mean logging.path?"),
        ("model.qqq", "known here: width, heads, dropout, tied, activation"),
        ("qqq", "known here: model, parts, shape, steps, workers, logging"),
    ],
)
def test_an_unknown_path_is_refused_with_the_nearest_known_one(path, hint):
    with pytest.raises(UserError) as error:
        override(Run(), {path: "1"})
    assert hint in str(error.value)
    assert str(error.value).startswith(f"unknown key {path.split('.')[0]}")


def test_an_index_beyond_the_tuple_is_refused():
    with pytest.raises(UserError, match=r"unknown key parts\.2"):
        override(Run(), {"parts.2.weight": "1"})


def test_a_section_is_not_a_value():
    with pytest.raises(UserError, match=r"model is a section, not a value; .*model\.width"):
        override(Run(), {"model": "big"})
    with pytest.raises(UserError, match=r"parts\.0 is a section, not a value; .*parts\.0\.weight"):
        override(Run(), {"parts.0": "big"})
    with pytest.raises(UserError, match=r"parts is a section, not a value; .*parts\.0"):
        override(Run(), {"parts": "big"})
    with pytest.raises(UserError, match="parts is a section, not a value; set it in an experiment file"):
        override(Run(parts=()), {"parts": "()"})


def test_fields_that_depend_on_each_other_change_together():
    # Either change alone, and so any order of one after the other, breaks the rule.
    for alone in ({"model.width": "20"}, {"model.heads": "5"}):
        with pytest.raises(UserError, match="must divide"):
            override(Run(), alone)
    model = override(Run(), {"model.width": "20", "model.heads": "5"}).model
    assert (model.width, model.heads) == (20, 5)


def test_an_override_that_breaks_a_rule_is_refused_by_the_configuration_itself():
    with pytest.raises(UserError, match=r"heads \(5\) must divide width \(12\)"):
        override(Run(), {"model.heads": "5"})
    with pytest.raises(UserError, match=r"^parts\.1: weight must not be negative$"):
        override(Run(), {"parts.1.weight": "-1"})


def test_overriding_nothing_changes_nothing_and_the_original_is_never_touched():
    run = Run()
    assert override(run, {}) == run
    override(run, {"parts.1.weight": "9", "steps": "3"})
    assert run == Run()


def test_flatten_gives_every_leaf_by_its_dotted_path():
    assert flatten(Run()) == {
        "model.width": 12,
        "model.heads": 3,
        "model.dropout": 0.5,
        "model.tied": False,
        "model.activation": "gelu",
        "parts.0.weight": 1.0,
        "parts.0.path": "",
        "parts.1.weight": 2.0,
        "parts.1.path": "b",
        "shape.0": 4,
        "shape.1": 5,
        "steps": 10,
        "workers": 1,
        "logging.weight": 1.0,
        "logging.path": "",
    }


def test_science_only_leaves_out_execution_fields_and_all_below_them():
    left_out = set(flatten(Run())) - set(flatten(Run(), science_only=True))
    assert left_out == {"workers", "logging.weight", "logging.path"}


def test_every_flattened_path_of_a_scalar_can_be_overridden_with_its_own_text():
    run = Run()
    texts = {path: str(value) for path, value in flatten(run).items() if not path.startswith("shape.")}
    assert override(run, texts) == run


def test_to_dict_holds_tuples_as_lists():
    assert to_dict(Run())["parts"] == [{"weight": 1.0, "path": ""}, {"weight": 2.0, "path": "b"}]


def test_differences_name_path_their_value_and_ours():
    ours, theirs = {"a": 1, "b": 2, "new": 3}, {"a": 1, "b": 5, "old": 4}
    assert differences(ours, theirs) == ["b: 5 -> 2", "old: 4 -> (absent)", "new: (absent) -> 3"]
    assert differences(ours, dict(ours)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 12.0),
        ("width", "12"),
        ("width", True),
        ("dropout", "0"),
        ("dropout", False),
        ("tied", 1),
        ("heads", None),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"^{field} must be of type \w+, not "):
        Model(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("width", 2**63, f"({2**63}) must fit in 64 bits"),
        ("heads", -(2**63) - 1, f"({-(2**63) - 1}) must fit in 64 bits"),
        ("activation", "ge\0lu", r"('ge\x00lu') must be Unicode text without NUL"),
        ("activation", "caf\udce9", r"('caf\udce9') must be Unicode text without NUL"),
    ],
)
def test_a_value_that_no_system_call_or_array_takes_is_refused_by_name(field, value, rule):
    with pytest.raises(UserError) as error:
        Model(**{field: value})
    assert str(error.value) == f"{field} {rule}"


def test_a_whole_number_is_accepted_where_a_float_is_declared():
    assert Model(dropout=1).dropout == 1


@dataclass(frozen=True)
class Bounded:
    layers: PositiveInt = 2
    decay: Annotated[float, Bounds(at_least=0, below=1)] = 0.9
    share: Annotated[float, Bounds(above=0, at_most=1)] = 0.5
    rate: NonNegativeFloat = 0.1
    tokens: Annotated[int, Bounds(at_least=-3, at_most=1 << 20)] = 8
    norm: Annotated[str, OneOf("rmsnorm", "layernorm")] = "rmsnorm"
    widths: tuple[PositiveInt, ...] = (4, 5)
    interval: tuple[float, float] = (-1, 1)
    parts: tuple["Bounded", ...] = ()
    tiles: PositiveInt | None = None
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_fields(self, "data.mix")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("layers", 0, " (0) must be at least 1"),
        ("layers", True, " must be of type int, not True"),
        ("layers", 1.0, " must be of type int, not 1.0"),
        ("layers", None, " must be of type int, not None"),
        ("decay", -0.1, " (-0.1) must be at least 0 and below 1"),
        ("decay", 1, " (1) must be at least 0 and below 1"),
        ("decay", math.nan, " (nan) must be finite"),
        ("decay", "0.5", " must be of type float, not '0.5'"),
        ("share", 0.0, " (0.0) must be above 0 and at most 1"),
        ("share", 1.1, " (1.1) must be above 0 and at most 1"),
        ("rate", -1e-9, " (-1e-09) must be at least 0"),
        ("rate", math.inf, " (inf) must be finite"),
        ("rate", False, " must be of type float, not False"),
        ("tokens", -4, " (-4) must be at least -3 and at most 2**20"),
        ("tokens", (1 << 20) + 1, " (1048577) must be at least -3 and at most 2**20"),
        ("norm", "rmsnrom", " = 'rmsnrom' is unknown; did you mean rmsnorm?; choose from layernorm, rmsnorm"),
        ("norm", 3, " must be of type str, not 3"),
        ("widths", [4, 5], " must be a tuple, not [4, 5]"),
        ("widths", (4, 0), ".1 (0) must be at least 1"),
        ("widths", (4, "5"), ".1 must be of type int, not '5'"),
        ("interval", (1.0,), " must have 2 elements, not (1.0,)"),
        ("interval", (0, math.nan), ".1 (nan) must be finite"),
        ("parts", (3,), ".0 must be of type Bounded, not 3"),
    ],
)
def test_a_value_out_of_its_fields_bounds_is_refused_with_path_value_and_rule(field, value, rule):
    with pytest.raises(UserError) as error:
        Bounded(**{field: value})
    assert str(error.value) == f"data.mix.{field}{rule}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 1),
        ("decay", 0),
        ("share", 1.0),
        ("rate", 0.0),
        ("tokens", 1 << 20),
        ("tokens", -3),
        ("norm", "layernorm"),
        ("widths", ()),
        ("parts", (Bounded(), Bounded())),
        ("tiles", None),
        ("tiles", 3),
        ("names", {"a": 1}),
    ],
)
def test_a_value_at_its_bounds_is_taken_and_survives_every_copy(field, value):
    config = Bounded(**{field: value})
    assert getattr(config, field) == value
    copies = dataclasses.replace(config), pickle.loads(pickle.dumps(config)), from_dict(Bounded, to_dict(config))
    assert all(copy == config for copy in copies)


def test_bounds_are_parsed_from_text_as_the_type_below_them():
    config = override(Bounded(), {"layers": "1e3", "norm": "layernorm", "share": "1"})
    assert (config.layers, config.norm, config.share) == (1000, "layernorm", 1.0)
    with pytest.raises(UserError, match=r"^data\.mix\.layers \(-2\) must be at least 1$"):
        override(Bounded(), {"layers": "-2"})


def test_a_misspelt_choice_is_refused_with_the_nearest_and_all():
    with pytest.raises(UserError, match=r"kind = 'jsnol' is unknown; did you mean jsonl\?; choose from jsonl, text"):
        require_one_of("kind", "jsnol", ["text", "jsonl"])
    require_one_of("kind", "text", ["text", "jsonl"])


def test_no_word_is_suggested_where_none_is_near():
    assert did_you_mean("zzz", ["width", "heads"]) == ""


def test_all_words_that_are_equally_near_are_suggested():
    assert did_you_mean("evry", ["a.every", "b.every", "a.other"]) == "; did you mean a.every or b.every?"
