"""Answered questions of a ledger: their kinds, how they came out, and what that lets expect of another parent."""

import dataclasses

import fake_runs
import numpy as np
import pytest

from jaxformer.ablation.ledger import VERDICT, append
from jaxformer.ablation.past_expectations import believe, calibrate_by, kind_of, read_answered
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.model import ModelConfig

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_kinds_are_parts_of_the_model_or_sections():
    paths = ("model.qk_norm", "model.attention.0.part", "model.norm", "optimizer.name", "packing.method", "init_from")
    kinds = [kind_of([path]) for path in paths]
    assert kinds == ["attention", "attention", "norm and residual", "optimizer", "data", "init_from"]
    assert kind_of(["training.steps", "model.width"]) == "size" and kind_of([]) == "unknown"


def test_every_field_that_changes_what_a_model_learns_is_of_a_named_kind():
    fields = [each.name for each in dataclasses.fields(ModelConfig) if not each.metadata.get("execution")]
    unnamed = [name for name in fields if kind_of([f"model.{name}"]) == "model"]
    assert len(fields) > 20 and not unnamed, "add them to _PARTS of past_expectations.py"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with a ledger of three answers about `root`; a merge, a removal, and what has no error are none."""
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "experiments"
    fake_runs.write_root(files)
    fake_runs.write_variant(files, "normed", {"model.qk_norm": True})
    fake_runs.write_variant(files, "decayed", {"optimizer.weight_decay": 0.3})

    def verdict(variant, mean, word="UNDECIDED", **more):
        difference = {"mean": mean, "standard_error": 0.002, "low": mean - 0.005, "high": mean + 0.005}
        line = {"kind": VERDICT, "parent": "root", "variant": variant, "verdict": word, "expected": [-0.02, 0.0]}
        append(tmp_path / "runs", line | {"difference": difference} | more)

    (tmp_path / "runs").mkdir()
    verdict("decayed", 0.1)
    verdict("normed", -0.03, word="KEEP")
    verdict("moved", -0.01)
    verdict("decayed", 0.002)
    verdict("single", -0.01, difference={"mean": -0.01, "standard_error": None})
    verdict("normed-decayed", 0.01, leaves_out=["decayed"])
    verdict("unread", 0.0, difference=None)
    return tmp_path / "runs"


def test_the_last_answer_to_each_question_is_read_beside_what_was_expected(runs):
    found = [(each.variant, each.kind, each.effect, each.outcome) for each in read_answered(runs)]
    assert found == [
        ("decayed", "optimizer", 0.002, "perhaps worse than expected"),
        ("normed", "attention", -0.03, "better than expected"),
        ("moved", "unknown", -0.01, "as expected"),
    ]


def test_answers_calibrate_their_kind_and_count_by_how_they_came_out(runs):
    past = calibrate_by(read_answered(runs), {"size"})
    assert past.kinds == ("attention", "optimizer", "size", "unknown") and len(past.calibration.mean_C) == 2 + 4
    attention, optimizer, size, _ = past.calibration.mean_C[2:]
    assert attention < size < optimizer and size == pytest.approx(0, abs=1e-9), "better, not known, worse"
    assert past.outcomes() == {"as expected": 1, "better than expected": 1, "perhaps worse than expected": 1}


def test_an_answer_about_an_ancestor_draws_a_belief_towards_it_and_narrows_it(runs):
    parent, past = resolve("normed"), calibrate_by(read_answered(runs), ())
    one = resolve_variant_of(parent, "decayed")
    (with_it, why), (without, none) = (
        believe(each, parent, "decayed", one) for each in (past, past._replace(questions=()))
    )
    assert why == ["UNDECIDED of root, +0.0020"] and not none
    (low, high), (low_without, high_without) = (each.quantiles(np.array([0.1, 0.9]))[0] for each in (with_it, without))
    assert high - low < high_without - low_without
    assert min(without.mean_N, 0.002) < with_it.mean_N < max(without.mean_N, 0.002)
    assert believe(past, resolve("root"), "decayed", resolve("decayed"))[1] == [], "of root itself it is no ancestor's"
