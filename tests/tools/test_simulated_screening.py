"""The simulation of screening judges its studies by the library's own rule, and finds what is plain."""

import importlib.util
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
    asked_XN = rng.random((6, 9)) < 0.6
    kept_XN, p_XN = tool.keeps(differences_XNS, asked_XN), tool.p_values(differences_XNS, asked_XN)
    for x in range(6):
        asked = np.flatnonzero(asked_XN[x])
        variances = {str(n): (float(differences_XNS[x, n].var(ddof=1)), seeds - 1) for n in asked}
        comparisons = []
        for n in asked:
            prior = NoiseFloor((), (), variances).prior(str(n), seeds)
            one = paired_difference(differences_XNS[x, n], np.zeros(seeds), prior)
            assert p_XN[x, n] == pytest.approx(one.p_value, rel=2e-3)
            word = Word.KEEP if one.interval(1 - interim_level(seeds))[1] < 0 else Word.UNDECIDED
            comparisons.append(
                Comparison("parent", str(n), Verdict(word, ""), 0.0, {}, seeds=(*range(seeds),), difference=one)
            )
        judged = [one.verdict.word is Word.KEEP for one in with_q_values(comparisons, Rule())]
        assert judged == kept_XN[x, asked].tolist()
    assert kept_XN.any() and not kept_XN[~asked_XN].any()


def test_large_effects_are_found_by_every_way_and_none_costs_more_than_the_budget(tool):
    law = tool.Law(effect=8.0, interactions=0.25)
    found = tool.simulate(law, 60)
    ways = {"one at a time", "one seed first", "screening on one seed", "screening on two seeds", "folded on one seed"}
    assert set(found) == {*ways, "screening alone"}
    for name, one in found.items():
        assert one["found"] > 0.9 and one["runs"] <= law.budget, name
    assert max(found[name]["false"] for name in ways) < 0.1
