"""The benchmark of the training step, on a tiny size: what it draws, runs and writes; its times mean nothing here."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention.document_mask import document_bounds

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import bench_step
        import step_cases

        tiny = step_cases.Size(320, 8, 1, 2, (2, 24), (2, 24))
        patch.setitem(step_cases.SIZES, "tiny", tiny)
        yield bench_step


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_rows_are_full_and_hold_as_many_documents_as_asked(bench, documents):
    batch = bench.random_batch(bench.case_of("tiny", 3, 11, documents))
    assert (batch.segment_ids_BT[:, -1] == documents).all() and (batch.segment_ids_BT[:, 0] == 1).all()
    starts, ends = document_bounds(batch.segment_ids_BT)
    np.testing.assert_array_equal(batch.document_starts_BT, starts)
    np.testing.assert_array_equal(batch.document_ends_BT, ends)
    np.testing.assert_array_equal(batch.positions_BT, np.arange(11) - np.asarray(starts))
    assert all(x.dtype == np.int32 for x in batch if x is not batch.loss_weights_BT)


def test_a_line_holds_speed_memory_and_compile_time(bench, monkeypatch):
    monkeypatch.setattr(bench, "peak_tflops", lambda kind: 2.0)
    line = bench.measure(bench.case_of("tiny"), rounds=2, how={"remat": "block", "micro_batches": 2})
    assert (line["remat"], line["micro_batches"]) == ("block", 2)
    assert line["parameters"] == 320 * 8 + (8 * 24 + 8 * 8 + 2 * 8 * 32 + 2 * 8) + 8
    assert min(line[name] for name in ("trace_and_lower_seconds", "compile_seconds", "state_bytes")) > 0
    for kind in ("several_documents", "one_document"):
        figures = line[kind]
        assert figures["tokens_per_second"] == pytest.approx(48_000 / figures["milliseconds"])
        assert figures["mfu_causal"] == pytest.approx(figures["tflops_causal"] / 2)
    assert line["matmul_milliseconds"] > 0
    several, one = line["several_documents"], line["one_document"]
    assert several["tflops_document"] < several["tflops_causal"]
    # A token sees 12.5 keys of its row of 24 on average, which the causal formula takes for 12.
    assert one["tflops_causal"] < one["tflops_document"] < 1.05 * one["tflops_causal"]
    json.dumps(line)
    text = bench.describe(line | {"first_step_seconds": {"cold": 7.0, "warm": 4.0}})
    assert "first step   7.0 s from a fresh process, 4.0 s with JAX's cache" in text
    assert "tokens/s" in text and "MFU" in text
    compiled_alone = {name: value for name, value in line.items() if "document" not in name}
    assert "to compile" in bench.describe(compiled_alone)


def test_matmuls_of_a_step_are_those_that_its_operations_are_counted_by(bench):
    def loss(kernels_LDD, x_ND):
        def layer(x_ND, kernel_DD):
            return jnp.tanh(x_ND @ kernel_DD), None

        x_ND, _ = jax.lax.scan(layer, x_ND, kernels_LDD)
        return jnp.sum(jnp.einsum("NHK,SHK->HNS", x_ND.reshape(5, 2, 3), x_ND.reshape(5, 2, 3)))

    kernels_LDD, x_ND = jnp.ones((4, 6, 6)), jnp.ones((5, 6))
    found = bench.matmuls(jax.make_jaxpr(jax.value_and_grad(loss))(kernels_LDD, x_ND).jaxpr)
    # Forward, and both gradients of each layer.
    assert sorted(found.values()) == [4, 4, 4], "attention's are batched"
    shapes = {(left[0], right[0]) for left, right, *_ in found}
    assert shapes == {((5, 6), (6, 6)), ((5, 6), (5, 6))}


def test_the_first_step_ends_now(bench, monkeypatch):
    monkeypatch.setattr(bench.time, "time", lambda: 123.0)
    assert bench.first_step(bench.case_of("tiny")) == 123.0


@pytest.mark.parametrize("option", ["--sizes=1m,9b", "--first_step=9b"])
def test_unknown_sizes_are_refused_in_a_line(bench, monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["bench_step.py", option])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "unknown sizes: 9b; known: 1m, 27m, 100m, 500m" in capsys.readouterr().err.splitlines()[-1]
