"""What a study found, in words."""

import pytest

from jaxformer.report.findings import collect_findings, compare_with_expectation
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
