"""What a study found, in words."""

import dataclasses
import math

import pytest

from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.verdict import Rule
from jaxformer.report.findings import collect_findings, compare_with_expectation, points
from jaxformer.report.summary import summarise_study
from jaxformer.statistics.paired_difference import Difference

pytestmark = pytest.mark.device_free


def test_an_outcome_is_compared_with_its_expectation(outcome):
    muon = next(each for each in collect_findings(outcome) if each.name == "muon")
    assert compare_with_expectation(muon.difference, (-0.02, -0.01), 0.019).startswith("better than expected")
    sure = Difference(-0.05, 1e-8, 10.0)
    assert compare_with_expectation(sure, (-0.02, 0.0), 0.05) == "better than expected"
    assert compare_with_expectation(sure, (-0.06, 0.0), 0.05) == "inside"
    assert compare_with_expectation(sure, (-0.09, -0.06), 0.05) == "worse than expected"
    assert compare_with_expectation(Difference(-0.05, 1e-2, 10.0), (-0.02, 0.0), 0.05).endswith("but not surely")


def test_a_worth_that_is_not_known_comes_with_its_own_reason_and_pairing_with_what_it_saved(outcome):
    found = {each.name: each for each in collect_findings(outcome)}
    texts = {name: " ".join(points(each)) for name, each in found.items()}
    assert all("equal time: what the difference is worth is not read off curves" in texts[n] for n in ("muon", "slow"))
    assert "A token takes 1.010 [1.008, 1.012] x the parent's time" in texts["slow"]
    assert "too few evaluations" not in texts["muon"] + texts["slow"]
    blank = found["swiglu"].comparison._replace(worth=math.nan)
    assert "the curves have too few evaluations" in " ".join(points(found["swiglu"]._replace(comparison=blank)))
    assert f"scatters {found['swiglu'].comparison.pairing:.2f} x as much" in texts["swiglu"]


def test_a_study_states_its_margin_with_an_error_and_what_all_questions_share(outcome):
    summary = dict(summarise_study(outcome))
    margin = margin_of_tokens(outcome.runs["root"], 0.02)
    assert summary["Margin"].startswith(f"{margin.bits_per_byte:.4f} bits per byte ± {margin.standard_error:.4f}")
    assert "where their seeds are lucky all variants look worse together" in summary["Noise floor"]
    by_hand = outcome._replace(study=dataclasses.replace(outcome.study, rule=Rule(margin=0.003)))
    assert dict(summarise_study(by_hand))["Margin"] == "±0.003 bits per byte, as the study sets it"
