"""What a study found, in words."""

import dataclasses
import math

import pytest

from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.verdict import Rule
from jaxformer.report.findings import beside_expectation, collect_findings, points
from jaxformer.report.summary import summarise_study
from jaxformer.statistics.paired_difference import Difference

pytestmark = pytest.mark.device_free


def test_an_outcome_is_compared_with_its_expectation(outcome):
    muon = next(each for each in collect_findings(outcome) if each.name == "muon")

    def beside(variance, expected):
        difference = Difference(-0.05, variance, 10.0)
        lineage = {**muon.lineage, "expected": expected}
        return beside_expectation(
            muon._replace(comparison=muon.comparison._replace(difference=difference), lineage=lineage)
        )

    assert beside(1e-8, (-0.02, 0.0)) == "better than expected"
    assert beside(1e-8, (-0.06, 0.0)) == "as expected"
    assert beside(1e-8, (-0.09, -0.06)) == "worse than expected"
    assert beside(1e-2, (-0.02, 0.0)) == "perhaps better than expected"


def test_a_worth_that_is_not_known_comes_with_its_reason_and_pairing_with_what_it_saved(outcome):
    found = {each.name: each for each in collect_findings(outcome)}
    slow = found["slow"]._replace(comparison=found["slow"].comparison._replace(worth=math.nan))
    text = " ".join(points(slow))
    assert "At equal tokens, and at equal time: unknown, since the parent's loss curve is too short" in text
    assert "A token takes 1.010 [1.008, 1.012] x the parent's time" in text
    assert f"scatters {found['swiglu'].comparison.pairing:.2f} x as much" in " ".join(points(found["swiglu"]))


def test_a_worth_beyond_all_bounds_is_not_written_out(outcome):
    huge = collect_findings(outcome)[0]
    comparison = huge.comparison._replace(
        worth=math.exp(20), cost=huge.comparison.cost._replace(time_per_token=1.0, time_interval=(0.9, 1.1))
    )
    text = " ".join(points(huge._replace(comparison=comparison)))
    assert "the parent needs > 100 x the variant's tokens" in text and "= > 100 x [" in text


def test_a_study_states_its_margin_with_an_error_and_what_all_questions_share(outcome):
    summary = dict(summarise_study(outcome))
    margin = margin_of_tokens(outcome.runs["root"], 0.02)
    assert summary["Margin"].startswith(f"{margin.bits_per_byte:.4f} bits per byte ± {margin.standard_error:.4f}")
    assert "if they are lucky, all variants seem worse" in summary["Noise floor"]
    by_hand = outcome._replace(study=dataclasses.replace(outcome.study, rule=Rule(margin=0.003)))
    assert dict(summarise_study(by_hand))["Margin"] == "0.003 bits per byte, as the study sets it"
