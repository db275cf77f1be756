"""What the gain is made of, in words."""

import pytest

from jaxformer.ablation.leave_one_out import Composition, Part
from jaxformer.report.leave_one_out import describe_composition
from jaxformer.statistics.paired_difference import Difference

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

KNOWN = Difference(-0.02, 1e-6, 2.0)


@pytest.mark.parametrize(
    ("total", "now", "overlap", "text"),
    [
        (KNOWN, KNOWN, KNOWN, "together they gain more than the sum of the parts"),
        (KNOWN, KNOWN, None, "unknown, since all these experiments need two seeds in common"),
        (KNOWN, None, None, "unknown, since end was not compared with itself without wsd"),
        (None, KNOWN, None, "unknown without the total"),
    ],
)
def test_an_overlap_comes_with_its_meaning_or_with_why_it_is_not_known(total, now, overlap, text):
    parts = Part("muon", None, KNOWN, 3, "STAYS"), Part("wsd", None, now, 3, "STAYS")
    made_of = Composition("end", "root", parts, total, overlap, "" if total else "no seeds")
    assert text in describe_composition(made_of)[-1]
