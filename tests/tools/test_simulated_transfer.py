"""The simulation of transfer: laws are what they are called, verdicts are counted, and its record can be read."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.statistics.transfer import Effect

pytestmark = pytest.mark.device_free

PATH = Path(__file__).parents[2] / "tools" / "simulated_transfer.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("simulated_transfer", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_size_shows_a_law_that_breaks_off_beyond_them(tool):
    found = tool.laws(np.array([0.0, 0.6, 1.2, 2.4]), 50, np.random.default_rng(0))
    for law in ("stops", "jumps", "flips"):
        beyond, among = found[f"{law} {tool.BEYOND}"], found[f"{law} {tool.AMONG}"]
        assert (beyond[:, :-1] == 1).all() and (beyond[:, -1] < 1).all()
        assert (among[:, 0] == 1).all() and (among[:, -2] == among[:, -1]).all() and (among[:, -1] < 1).all()


def test_words_are_wrong_where_the_sign_is_another_or_more_is_left(tool):
    effect_QL = np.array([[-1.0, -0.5], [-1.0, 0.0], [-1.0, 0.5], [-1.0, 0.001]])
    target = Effect(*(np.full(4, value) for value in (0.0, -0.1, 0.1, 0.5)))
    for word, wrong in (("TRANSFERS", 3), ("REVERSES", 2), ("FADES", 2), ("UNKNOWN", 0)):
        counts = dict(zip(tool.COLUMNS, tool.count(effect_QL, np.array([word] * 4), target), strict=True))
        assert counts[word] == 4 and counts["wrong"] == wrong and counts["covered"] == 2


def test_large_effects_are_kept_and_nothing_rarely_is(tool):
    found_QS = np.random.default_rng(0).normal([[-0.1], [0.0], [0.1]], 0.001, (3, 3))
    assert tool.are_kept(found_QS, np.full(3, 1e-6)).tolist() == [True, False, False]


def test_an_effect_that_is_the_same_everywhere_transfers_the_more_often_the_more_seeds(tool):
    found = tool.simulate(3, 4, 30, np.random.default_rng(0), selects=True)
    asked, counts = found["constant"]
    assert 0.1 < asked < 0.5 and found["no effect"][0] < 0.05
    first, later, last = (counts[name][0] for name in ("3 seeds", "8 seeds", tool.LOOKS))
    assert 10 < first <= last and later <= last and counts[tool.LOOKS][tool.COLUMNS.index("questions")] == 30


def test_it_is_written_as_json_with_a_line_for_each_cell_and_law(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "SIZES", (3,))
    monkeypatch.setattr(tool, "TIMES", (4, 64))  # Of which the latter is out of reach.
    tool.main(["--questions=3", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "transfer.json").read_text(encoding="utf-8"))
    assert len(found) == 1 + 2 * 4 * (1 + 14)
    assert found["all asked, until decided, constant"]["questions"] == 3
    assert set(found["all asked, 3 seeds, 3 sizes, 4 x"]) == {"gradual", "one in twenty breaks off", "constant"}
    assert len((tmp_path / "transfer.json").read_text(encoding="utf-8").splitlines()) == len(found) + 2
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")
    assert "constant" in capsys.readouterr().out


def test_a_design_of_many_seeds_finds_what_is_plain(tool):
    distance_N, sd_N = np.log(4) * np.array([-3.0, -2.0, -1.0]), np.full(3, 0.003)
    arguments = distance_N, sd_N, np.array([8, 8, 8]), 20, np.random.default_rng(0)
    assert tool.simulated_power(0.04, *arguments) > 0.9
    assert tool.simulated_power(0.0001, *arguments) < 0.1
