"""The simulation of screening judges its studies by the library's own rule, and finds what is plain."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.noise_floor import NoiseFloor
from jaxformer.ablation.q_values import with_q_values
from jaxformer.ablation.verdict import Rule, Verdict, Word
from jaxformer.statistics.paired_difference import paired_difference
from jaxformer.statistics.significance import interim_level

pytestmark = pytest.mark.device_free

PATH = Path(__file__).parents[2] / "tools" / "simulated_screening.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("simulated_screening", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_its_rule_is_that_of_the_library(tool):
    rng, seeds = np.random.default_rng(0), 5
    differences_XNS = rng.normal(size=(6, 9, seeds)) * rng.gamma(2, 1, (6, 9, 1)) - 2 * rng.random((6, 9, 1))
    tested_XN = rng.random((6, 9)) < 0.6
    kept_XN, p_XN = tool.keeps(differences_XNS, tested_XN), tool.p_values(differences_XNS, tested_XN)
    for x in range(6):
        tested = np.flatnonzero(tested_XN[x])
        variances = {str(n): (float(differences_XNS[x, n].var(ddof=1)), seeds - 1) for n in tested}
        comparisons = []
        for n in tested:
            prior = NoiseFloor((), (), variances).prior(str(n), seeds)
            one = paired_difference(differences_XNS[x, n], np.zeros(seeds), prior)
            assert p_XN[x, n] == pytest.approx(one.p_value, rel=2e-3)
            word = Word.KEEP if one.interval(1 - interim_level(seeds))[1] < 0 else Word.UNDECIDED
            comparisons.append(
                Comparison("parent", str(n), Verdict(word, ""), 0.0, {}, seeds=(*range(seeds),), difference=one)
            )
        judged = [one.verdict.word is Word.KEEP for one in with_q_values(comparisons, Rule())]
        assert judged == kept_XN[x, tested].tolist()
    assert kept_XN.any() and not kept_XN[~tested_XN].any()


def test_large_effects_are_found_by_every_way_and_none_costs_more_than_the_budget(tool, tmp_path):
    law = tool.Law(effect=8.0, interactions=0.25)
    found = tool.simulate(law, 60)
    ways = {"one at a time", "one seed first", "screening on one seed", "screening on two seeds", "folded on one seed"}
    assert set(found) == {*ways, "screening alone"}
    for name, one in found.items():
        assert one["found"] > 0.9 and one["runs"] <= law.budget, name
    assert max(found[name]["false"] for name in ways) < 0.1
    tool.write({law: found}, 60, tmp_path / "simulated.json")
    written = json.loads((tmp_path / "simulated.json").read_text(encoding="utf-8"))
    (cell,), columns = written["cells"], written["columns"]
    seeds = {name: dict(zip(columns, cell[name], strict=True))["seeds"] for name in found}
    assert {name for name, each in seeds.items() if each in tool.CONFIRMED_ON} == ways - {"one at a time"}


ROWS = {
    "as said": {},
    "8 changes": {"changes": 8},
    "20 changes": {"changes": 20},
    "half of the changes are real": {"real": 0.5},
    "runs correlate by 0.2": {"pairing": "0.2"},
    "by 0.8 for each change in which they differ": {"pairing": "falling"},
    "pairs of real changes interact, by half of an effect": {"interactions": 0.5},
    "the same, by a whole effect": {"interactions": 1.0},
    "all pairs interact, by a quarter of an effect": {"interactions": 0.25, "between": "all"},
    "the same, by half of one": {"interactions": 0.5, "between": "all"},
    "one change diverges": {"ruin": "diverges"},
    "one is 10 worse and scatters thrice as much": {"ruin": "scatters"},
    "hours of three seeds of each": {"seeds": 3},
}


def test_the_table_of_the_documentation_has_the_results():
    results = json.loads((PATH.parent / "results" / "screening" / "simulated.json").read_text(encoding="utf-8"))
    cells = {json.dumps(results["law"] | cell["law"]): cell for cell in results["cells"]}
    page = (PATH.parents[1] / "docs" / "how_to" / "screening.md").read_text(encoding="utf-8").splitlines()
    ways = ("one at a time", "one seed first", "screening on one seed", "screening on two seeds")
    for label, law in ROWS.items():
        (line,) = (line for line in page if line.startswith(f"| {label} |"))
        for effect, shown in zip((0.5, 1.0, 2.0), line.split("|")[2:5], strict=True):
            cell = cells[json.dumps(results["law"] | {**law, "effect": effect})]
            shares = [100 * cell[way][results["columns"].index("found")] for way in ways]
            assert [int(each.strip(" *")) for each in shown.split("/")] == pytest.approx(shares, abs=0.51), label
