"""Kinds of questions: every field of the model has one."""

import dataclasses

import pytest

from jaxformer.ablation.past_expectations import kind_of
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
