"""What a study returned counts all hours, and each change that was kept once."""

import math

import numpy as np
import pytest

from jaxformer.ablation.verdict import Word
from jaxformer.report.findings import collect_findings
from jaxformer.report.returns import returns
from jaxformer.report.summary import describe_device_hours, summarise_study

pytestmark = pytest.mark.device_free


pytest.importorskip("networkx")


def test_returns_count_all_hours_and_the_kept_changes_once(outcome):
    points = {one.name: one for one in returns(outcome)}
    kept = {each.name: -each.shrunken for each in collect_findings(outcome) if each.word is Word.KEEP}
    assert {"muon", "swiglu"} <= set(kept)
    last = list(points.values())[-1]
    everything = sum(run.device_hours for runs in outcome.runs.values() for run in runs)
    assert last.hours == pytest.approx(everything)
    assert last.added == pytest.approx(sum(gain for name, gain in kept.items() if name != "joined"))
    findings = {finding.name: finding for finding in collect_findings(outcome)}
    muon, joined = findings["muon"], findings["joined"]
    assert points["muon"].total == points["muon"].best == -muon.difference.mean
    bits = {name: [run.bits_per_byte for run in outcome.runs[name]] for name in ("root", "joined")}
    assert points["joined"].total == pytest.approx(np.mean(bits["root"]) - np.mean(bits["joined"]))
    assert points["joined"].is_measured
    # Without seeds in common it is the sum of what is left of each gain, never of raw ones.
    apart = outcome._replace(runs={**outcome.runs, "joined": outcome.runs["joined"][:0]})
    alone = {one.name: one for one in returns(apart)}["joined"]
    assert not alone.is_measured and alone.total == pytest.approx(-muon.shrunken - joined.shrunken)
    unknown = list(returns(outcome._replace(shrunken={})))[-1]
    assert math.isnan(unknown.added) and math.isfinite(unknown.best)
    assert (points["muon"].fields, points["joined"].fields, points["muon_deep"].fields) == (1, 2, 2)


def test_hours_of_runs_that_were_stopped_early_are_counted(outcome):
    wasted = outcome._replace(lost_hours={"slow": 2.5})
    before, after = ({one.name: one.hours for one in returns(each)} for each in (outcome, wasted))
    assert after["muon"] == before["muon"] and after["slow"] == pytest.approx(before["slow"] + 2.5)
    assert after["joined"] == pytest.approx(before["joined"] + 2.5)
    hours = dict(summarise_study(wasted))["Device hours"]
    assert hours.endswith("2.50 of runs that were stopped early") and "stopped" not in describe_device_hours(outcome)
