"""The source of own parts: kept in the run's folder, never run from there, and loaded from where the user ran it."""

import gc
import json
import sys
from typing import Any

import pytest

from jaxformer.config import UserError
from jaxformer.experiment.command_line import add_code_option
from jaxformer.experiment.resolution import load_experiment, resolve
from jaxformer.host.command import Parser
from jaxformer.record import to_dict
from jaxformer.run.folder import load_run
from jaxformer.run.own_parts import keep_sources

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

VARIANT = """
from dataclasses import dataclass
from jaxformer.experiment import Variant
from jaxformer.model import LayerPart
from scale_of_own_parts import SCALE


@dataclass(frozen=True)
class Wide(LayerPart):
    experts: int = 4

    def make(self, config, *, rngs):
        return SCALE


EXPERIMENT = Variant(
    parent="baseline", question="?", change={"model.feed_forward": Wide(8)}, expected=(-1, 1), source="a test"
)
"""


def forget():
    """Makes this process one that has not run the file."""
    for name in ("experiment wide", "file wide", "scale_of_own_parts"):
        sys.modules.pop(name, None)
    gc.collect()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run whose part stands in q/wide.py; this process has not loaded it."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "wide.py").write_text(VARIANT)
    (tmp_path / "q" / "scale_of_own_parts.py").write_text("SCALE = 7")
    experiment = load_experiment(str(tmp_path / "q" / "wide.py"))
    folder = tmp_path / "run"
    folder.mkdir()
    record = {"seed": 0, "digests": {}, "attention": {}, "device": "cpu", "config": to_dict(experiment)}
    (folder / "config.json").write_text(json.dumps(record))
    keep_sources(folder, experiment)
    del experiment
    forget()
    yield folder
    forget()


def part_of(run) -> Any:
    """Returns the part of a run's model."""
    return load_run(run)[0].model.feed_forward


def kept(run):
    """Returns the folder in which a run keeps the source of its only part."""
    return next((run / "code").iterdir())


def test_a_run_keeps_what_its_part_imports_and_the_file_that_was_run_is_found_again(run):
    assert {path.name: path.read_text() for path in kept(run).iterdir()} == {
        "wide.py": VARIANT,
        "scale_of_own_parts.py": "SCALE = 7",
    }
    part = part_of(run)
    assert repr(part) == "Wide(experts=8)" and part.make(None, rngs=None) == 7
    experiment = resolve(str(run.parent / "q" / "wide.py"), {"model.feed_forward.experts": "8"}).experiment
    assert experiment.model.feed_forward == part


@pytest.mark.parametrize("change", ["other code", "other module", "gone", "fails"])
def test_a_file_that_is_no_longer_what_it_was_is_refused_in_one_line_and_the_copy_taken_when_it_is_given(run, change):
    path = run.parent / "q" / "wide.py"
    if change == "gone":
        path.unlink()
    elif change == "other module":
        path.with_name("scale_of_own_parts.py").write_text("SCALE = 8")
    else:
        trap = f"__import__('pathlib').Path({str(run / 'sprung')!r}).touch()"
        other = VARIANT.replace("return SCALE", "return 8") + trap
        path.write_text(other if change == "other code" else "1 / 0")
    with pytest.raises(UserError) as error:
        load_run(run)
    assert not (run / "sprung").exists(), "it ran before it was compared"
    assert str(error.value) == (
        f"run folder {run}: Wide(experts=8) is code of wide.py, which is unknown here or has changed since; give "
        "that file as it was, under its name, by --code=FILE: the run folder keeps a copy, "
        f"code/{kept(run).name}/wide.py"
    )
    forget()
    parser = Parser("a test", None)
    add_code_option(parser)
    parser.parse_args([f"--code={kept(run) / 'wide.py'}"])
    assert part_of(run).make(None, rngs=None) == 7
    with pytest.raises(UserError, match=r"^file nothing\.py: no such file$"):
        parser.parse_args(["--code=nothing.py"])


def test_nothing_that_a_run_folder_names_or_holds_is_run(run, monkeypatch):
    monkeypatch.chdir(run)
    trap = "__import__('pathlib').Path('sprung').touch()"
    for place in (kept(run), run / "code" / "trap", run / "code" / ("0" * 16), run):
        place.mkdir(exist_ok=True)
        for file in ("wide.py", "os.py", "x.py", "scale_of_own_parts.py"):
            (place / file).write_text(trap)
    record = json.loads((run / "config.json").read_text())
    for code in ("", "0" * 16, "../../run/code/trap/x.py", "/etc/passwd", "trap\0"):
        for name in ("wide.Wide", "os.system", "../x.y", "jaxformer.model.LayerPart"):
            record["config"]["model"]["feed_forward"] |= {"part": name, "code": code}
            (run / "config.json").write_text(json.dumps(record))
            with pytest.raises(UserError):
                load_run(run)
    assert list(run.rglob("sprung")) == []
