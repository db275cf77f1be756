"""What a study returned counts all hours, and each change that was kept once."""

import math

import numpy as np
import pytest

from jaxformer.ablation.comparison import BestRate
from jaxformer.ablation.verdict import Word
from jaxformer.report.findings import collect_findings
from jaxformer.report.graph import box_lines
from jaxformer.report.loss_curves import curve_groups
from jaxformer.report.returns import returns
from jaxformer.report.summary import describe_device_hours, summarise_study

pytestmark = pytest.mark.device_free


pytest.importorskip("networkx")

BEST = BestRate(1e-3, 2e-3, 2e-3, (1e-3, 2e-3, 4e-3), (2.0, 1.9, 2.1), 0.1, 0.01)


def with_comparison(outcome, *names, **change):
    """Returns an outcome with other fields of some comparisons."""
    comparisons = [one._replace(**change) if one.variant in names else one for one in outcome.comparisons]
    return outcome._replace(comparisons=comparisons)


def test_what_is_compared_at_best_rates_is_reported_of_them_and_not_of_the_own_rates_runs(outcome):
    change = {"best_rates": (BEST, BEST), "parent_bits": 1.9, "margin": 0.0123, "noise": 0.0456}
    best = with_comparison(outcome, "muon", "joined", **change)
    one_seed = {name: best.runs[name][:1] for name in ("muon", "joined")}
    best = best._replace(runs={**best.runs, **one_seed}, tried={"muon": best.runs["muon"][1:]})
    found = {finding.name: finding for finding in collect_findings(best)}
    *_, cost = box_lines(best, found["muon"], [])
    hours = sum(run.device_hours for run in outcome.runs["muon"])
    assert cost == f"{hours:.2f} device hours, 3 seeds; each at its best rate"
    assert box_lines(best, None, [])[0] == "the parent of the study; 1.9000 at its best learning rate, 0.002"
    summary = dict(summarise_study(best))
    assert "; 0.0123 at the parent's best learning rate" in summary["Margin"]
    assert "; 0.0456 at the parent's best learning rate over 3" in summary["Noise floor"]
    joined = {one.name: one for one in returns(best)}["joined"]
    assert joined.is_measured
    assert joined.total == pytest.approx(-found["muon"].difference.mean - found["joined"].difference.mean)


def test_loss_curves_of_what_is_compared_at_best_rates_are_those_of_the_best_that_was_tried(outcome):
    own = outcome.runs["muon"][0].experiment.optimizer.learning_rate
    best = BEST._replace(own=own, tried=(own / 2, own, 2 * own))
    labels = dict(curve_groups(with_comparison(outcome, "muon", best_rates=(BEST, best))))
    assert labels[f"muon at {own:.2g}"] == outcome.runs["muon"] and "muon" not in labels
    assert labels["root"] == outcome.runs["root"] and labels["slow"] == outcome.runs["slow"]


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
    # Of other seeds, or of arms at other rates, it is the sum of what is left of each gain, never of raw ones.
    for change in ({"seeds": (0, 1, 2, 3)}, {"best_rates": (BEST, BEST)}):
        alone = {one.name: one for one in returns(with_comparison(outcome, "joined", **change))}["joined"]
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
