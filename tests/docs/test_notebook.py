"""The stored notebook is what its cells give: `.ci/run` executes it, by `tools/notebook.py`."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOL = Path(__file__).parents[2] / "tools" / "notebook.py"
STALE = "the notebook was changed after it was executed: python tools/notebook.py --write"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("notebook", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook(tool):
    return json.loads(tool.NOTEBOOK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_outputs_are_those_of_the_cells(tool, notebook, cells):
    assert notebook["metadata"]["executed"] == tool.source_digest(notebook), STALE
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)], STALE
    for cell in cells:
        source = "".join(cell["source"])
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, source
        assert ("print(" in source) <= ("stream" in kinds), f"{STALE}\n{source}"
        assert ("plt." in source) <= ("display_data" in kinds), f"{STALE}\n{source}"


def test_a_changed_cell_changes_the_digest(tool, notebook):
    changed = json.loads(json.dumps(notebook))
    next(cell for cell in changed["cells"] if cell["cell_type"] == "code")["source"] += ["\n1"]
    assert tool.source_digest(changed) != tool.source_digest(notebook)


def test_what_a_cell_prints_is_compared_but_for_its_numbers(tool, cells):
    def cell(text, **metadata):
        return {"metadata": metadata, "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}

    assert tool.text_of(cell(["loss -0.5\n", "  12 bytes"])) == tool.text_of(cell(["loss +1.25\n", " 1,234 bytes"]))
    assert tool.text_of(cell(["loss 0.5"])) != tool.text_of(cell(["losses 0.5"]))
    assert not tool.text_of(cell("loss 0.5", not_compared="is written by a model"))
    assert sum(bool(tool.text_of(each)) for each in cells) >= 5


def test_pictures_are_small_and_told_in_words(cells):
    sizes = []
    for cell in cells:
        found = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(found) <= 1 and (not found or cell["metadata"]["alt"])
        sizes += [len(base64.b64decode("".join(picture))) for picture in found]
    assert len(sizes) >= 3 and sum(sizes) < 100_000


def test_the_training_loop_is_short(cells):
    (loop,) = [cell["source"] for cell in cells if "step(state, " in "".join(cell["source"])]
    assert len(loop) <= 15
