"""The attention benchmark, on a CPU: what it draws, checks and writes; its times mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention.cudnn import count_segments
from jaxformer.attention.dispatch import Implementation
from jaxformer.attention.document_mask import document_bounds
from jaxformer.attention.flash import Tiles
from jaxformer.attention.flash_kernels import Tile
from jaxformer.attention.trial import forward_backward, random_inputs

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import bench_attention

        yield bench_attention


def test_without_a_gpu_it_says_so_and_exits_with_2():
    done = subprocess.run([sys.executable, TOOLS / "bench_attention.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "bench_attention: attention is measured on a GPU, and this is a cpu"


@pytest.mark.parametrize("packing", ["best_fit", "concat_and_split"])
def test_documents_have_the_median_that_was_asked_for_and_fill_the_rows(bench, packing):
    ids = bench.draw_documents(bench.Case("27m", 64, 2048, 100, packing), seed=0)
    lengths = np.concatenate([np.unique(row[row > 0], return_counts=True)[1] for row in ids])
    assert np.median(lengths) == pytest.approx(100, rel=0.15)
    assert np.mean(np.log(lengths) > np.log(100) + 1) == pytest.approx(0.16, abs=0.04)
    assert (ids > 0).mean() > 0.95
    starts, _ = document_bounds(jnp.asarray(ids))
    assert count_segments(starts).mean() > 5


def test_median_zero_is_one_document_in_each_row(bench):
    assert (bench.draw_documents(bench.Case("27m", 3, 40, 0), seed=0) == 1).all()


@pytest.mark.parametrize("G", [1, 2, 4])
def test_the_oracle_agrees_with_xla_forward_and_backward(bench, G):
    inputs = random_inputs(2, 37, 4, G, 8, jnp.float32)
    ids = np.stack([np.repeat([1], 37), np.repeat([1, 2, 3], [20, 1, 16])])
    starts, ends = document_bounds(jnp.asarray(ids))
    ours = forward_backward(Implementation("xla"), *inputs, starts, ends)
    for row in range(2):
        assert bench.relative_error(ours, bench.oracle(inputs, np.asarray(starts), row), row) < 1e-5
    wrong = (*ours[:2], ours[2].at[1, 3, 0].add(1.0), ours[3])
    assert bench.relative_error(wrong, bench.oracle(inputs, np.asarray(starts), 1), 1) > 0.05


def test_a_line_holds_times_errors_and_what_failed(bench):
    case = bench.Case("27m", 2, 70, 20, key_value_heads=3)
    implementations = {
        "xla": Implementation("xla"),
        "pallas": Implementation("pallas", Tiles(*[Tile(64, 64, 4, 2)] * 3), interpret=True),
        "cudnn_causal": bench.cudnn_causal,
    }
    theirs = {"forward": {"torch_flex": 1.5, "torch_mask": 0.5}, "forward_backward": {"torch_flex": 4.0}}
    asked = []

    def torch_times(*request):
        asked.append(request)
        return theirs, {"torch_varlen": "E: no"}

    line = bench.measure(case, 3, torch_times, (implementations, {"tokamax": "ImportError"}))
    assert asked[0][:5] == (2, 70, 6, 3, 64)
    assert line["milliseconds"]["forward"].keys() == {"xla", "pallas", "torch_flex", "torch_mask"}
    assert line["milliseconds"]["forward_backward"].keys() == {"xla", "pallas", "torch_flex"}
    assert line["failed"].keys() == {"cudnn_causal", "torch_varlen", "tokamax"}
    assert line["relative_error"].keys() == {"xla", "pallas"}
    assert all(1e-4 < error < 1e-2 for error in line["relative_error"].values())
    assert line["same_bits_five_times"] == {"xla": True, "pallas": True}
    assert line["tiles"] is None
    json.dumps(line)
    text = bench.describe(line)
    assert "torch_flex             forward    1.500 ms   and backward    4.000 ms" in text
    assert "torch_mask             forward    0.500 ms" in text
    assert "torch_varlen           failed: E: no" in text


def test_speed_is_reported_against_plain_causal_cudnn(bench):
    times = {"cudnn_causal": 3.0, "pallas": 2.0, "cudnn_packed": 1.6}
    line = bench.Case("500m", 32, 2048, 490)._asdict() | {
        "segments_per_row": 4.0,
        "visible_share": 0.6,
        "relative_error": {"pallas": 2e-3},
        "same_bits_five_times": {"pallas": False},
        "milliseconds": {"forward": times, "forward_backward": times},
        "speed_against": {"cudnn_causal": {name: 3.0 / time for name, time in times.items()}},
        "failed": {},
    }
    lines = bench.describe(line).splitlines()
    assert [each.split()[0] for each in lines[1:4]] == ["cudnn_packed", "pallas", "cudnn_causal"]
    assert lines[2].endswith("1.50 x cudnn_causal   error 2.0e-03, DIFFERENT BITS")
    assert lines[3].endswith("1.00 x cudnn_causal")
    assert lines[4].strip() == "auto (pallas) takes 1.25 x the time of our best"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--models=27m,9b", "unknown models: 9b; known: 27m, 100m, 500m"),
        ("--row_lengths=1000", "must divide --tokens"),
        ("--row_lengths=x", "invalid numbers value: 'x'"),
        ("--key_value_heads=4", "must divide the heads of 27m"),
    ],
)
def test_wrong_options_are_refused_in_a_line(bench, monkeypatch, capsys, option, message):
    monkeypatch.setattr(sys, "argv", ["bench_attention.py", option])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
