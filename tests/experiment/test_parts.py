"""A part of one's own in an experiment's file: one change of a parent, recorded with its code, printed as written."""

import pytest
from variant_files import HEADER, variant

from jaxformer.config import UserError
from jaxformer.experiment.lineage import changed_settings, describe_change
from jaxformer.experiment.resolution import resolve
from jaxformer.record import from_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

CODE = """
from dataclasses import dataclass
from jaxformer.model import LayerPart


class Net:
    pass


@dataclass(frozen=True)
class Wide(LayerPart):
    experts: int = 4
    top: int = 1

    def __post_init__(self):
        assert self.top, "an error that its author did not foresee"
        if self.top > self.experts:
            raise ValueError(f"top ({self.top}) must be at most experts ({self.experts})")

    def make(self, config, *, rngs):
        return Net()


class Narrow(Wide):
    def __call__(self, value, parent):
        raise ValueError("a part is a value, and no function of the parent")


Narrow = dataclass(frozen=True)(Narrow)
"""


@pytest.fixture
def make(tmp_path, write):
    """A function (name, change, parent) -> the variant of a file with the code of two parts."""

    def make(name, change, parent="root", code=CODE, **options):
        path = tmp_path / f"{name}.py"
        path.write_text(f"{HEADER}{code}\nEXPERIMENT = {variant(change, parent, **options)}\n")
        return resolve(str(path))

    return make


def test_to_put_in_a_part_to_replace_it_and_to_change_its_field_are_one_change_each(make):
    put = make("put", "{'model.feed_forward': Wide(experts=8)}")
    change = {path: values for path, values in put.lineage.change.items() if not path.endswith(".code")}
    assert change == {
        "model.feed_forward.part": (None, "put.Wide"),
        "model.feed_forward.experts": (None, 8),
        "model.feed_forward.top": (None, 1),
    }
    assert describe_change(put.lineage.change) == ["model.feed_forward: none → Wide(experts=8, top=1)"]
    assert changed_settings(put.lineage.change) == ["model.feed_forward"], "one, though it has fields, a name and code"
    field = make("field", "{'model.feed_forward.experts': times(2)}", "put")
    assert describe_change(field.lineage.change) == ["model.feed_forward.experts: 8 → 16"]
    replaced = make("replaced", "{'model.feed_forward': Narrow(experts=3)}", "put")
    assert describe_change(replaced.lineage.change) == ["model.feed_forward: Wide(experts=8) → Narrow(experts=3)"]
    out = make("out", "{'model.feed_forward': None}", "put")
    assert describe_change(out.lineage.change) == ["model.feed_forward: Wide(experts=8, top=1) → none"]
    turns = make("turns", "{'model.feed_forward': lambda value, parent: (Wide(), value)}", "put")
    assert turns.experiment.model.feed_forward[1] == put.experiment.model.feed_forward
    act = make("act", "{'model.activation': Square()}", code=CODE + SQUARE)
    assert describe_change(act.lineage.change) == ["model.activation: gelu → Square()"]


SQUARE = """
from jaxformer.layers import Activation


@dataclass(frozen=True)
class Square(Activation):
    pass
"""


def test_two_changes_of_parts_are_two(make):
    make("put", "{'model.feed_forward': Wide()}")
    for change, paths in (
        ("{'model.feed_forward': Wide(8), 'model.attention': Narrow()}", "model.attention, model.feed_forward"),
        ("{'model.feed_forward': Wide(8), 'model.depth': 7}", "model.depth, model.feed_forward"),
    ):
        with pytest.raises(UserError, match=rf"it changes 2 fields \({paths}\); change one thing at a time"):
            make("both", change)
    with pytest.raises(UserError, match=r"it changes 2 fields \(model\.feed_forward\.experts, .*\.top\)"):
        make("both", "{'model.feed_forward.experts': 5, 'model.feed_forward.top': 2}", "put")


def test_other_code_of_a_part_is_another_experiment_and_a_comment_is_not(make):
    change = "{'model.feed_forward': Wide()}"
    first, same = make("put", change), make("put", change, code=CODE + "# why")
    assert same.is_same(first)
    other = make("put", change, code=CODE.replace("Net()", "Net"))
    assert not other.is_same(first) and describe_change(other.lineage.change) == describe_change(first.lineage.change)


def test_code_of_parts_alone_is_no_code_of_the_file_and_the_parent_has_none(make):
    put = make("put", "{'model.feed_forward': Wide()}")
    assert put.lineage.own_code == {} == put.parents[0].lineage.own_code
    code = CODE + "def seven(value, parent):\n    return 7\n"
    more = make("more", "{'model.feed_forward': Wide(), 'model.depth': seven}", code=code, bundle="'one'")
    assert set(more.lineage.own_code) == {"experiment more"}


def test_a_field_of_a_part_can_be_set_on_the_command_line(make, tmp_path):
    make("put", "{'model.feed_forward': Wide()}")
    changed = resolve(str(tmp_path / "put.py"), {"model.feed_forward.experts": "6"})
    assert changed.lineage.overrides == {"model.feed_forward.experts": (4, 6)} and changed.name.startswith("put~")
    assert repr(changed.experiment.model.feed_forward) == "Wide(experts=6, top=1)"


def test_what_a_part_refuses_is_one_line_wherever_its_fields_are_set(make, tmp_path):
    put = make("put", "{'model.feed_forward': Wide()}").experiment.model.feed_forward
    refused = r"top \(5\) must be at most experts \(4\)$"
    with pytest.raises(UserError, match=rf"^model\.feed_forward: {refused}"):
        resolve(str(tmp_path / "put.py"), {"model.feed_forward.top": "5"})
    with pytest.raises(UserError, match=rf"model\.feed_forward: {refused}"):
        make("more", "{'model.feed_forward.top': 5}", parent="put")
    with pytest.raises(UserError, match=rf"experiment .*in_file\.py, line \d+: ValueError: {refused}"):
        make("in_file", "{'model.feed_forward': Wide(top=5)}")
    with pytest.raises(UserError, match=r"^model\.feed_forward: AssertionError: an error"):
        resolve(str(tmp_path / "put.py"), {"model.feed_forward.top": "0"})
    with pytest.raises(UserError, match=rf"^Wide: {refused}"):
        from_dict(type(put), {"experts": 4, "top": 5})
