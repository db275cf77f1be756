"""The loss of a variant beside its parent's on the same batches."""

import pytest

from jaxformer.report.loss_curves import paired_curve

pytestmark = pytest.mark.device_free


def test_pairing_leaves_what_the_batches_do_not_explain(outcome):
    curve = paired_curve(outcome.runs["root"], outcome.runs["muon"])
    assert curve.differences_SN.shape == curve.crossed_SN.shape == (3, 40)
    paired, crossed = curve.late_deviations
    assert crossed > 3 * paired, "the planted noise of batches is ten times that of steps"
    assert paired_curve(outcome.runs["root"], outcome.runs["long"]) is None, "other batches"
