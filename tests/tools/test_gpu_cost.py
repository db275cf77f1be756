"""The prediction of a step's cost from the compiled program: counted by hand, and held to what is committed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"
COMMITTED = TOOLS / "results" / "gpu_cost_h100.json"

# A loop of three rounds that reads a slice of a stack, multiplies it and writes the result to its place in another, and
# a kernel that reduces what comes out.
MODULE = """HloModule jit_f, entry_computation_layout={(f32[3,4,5]{2,1,0}, f32[5,6]{1,0})->f32[]}

%sliced (p0.1: f32[3,4,5], p1.1: s32[]) -> f32[1,4,5] {
  %p0.1 = f32[3,4,5]{2,1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %ds = f32[1,4,5]{2,1,0} dynamic-slice(%p0.1, %p1.1, %zero.1, %zero.1), dynamic_slice_sizes={1,4,5}
}

%multiplied (p0.2: f32[4,5], p1.2: f32[5,6]) -> bf16[4,6] {
  %p0.2 = f32[4,5]{1,0} parameter(0)
  %p1.2 = f32[5,6]{1,0} parameter(1)
  %dot = f32[4,6]{1,0} dot(%p0.2, %p1.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %cast = bf16[4,6]{1,0} convert(%dot)
}

%updated (p0.3: bf16[3,4,6], p1.3: s32[], p2.3: bf16[4,6]) -> bf16[3,4,6] {
  %p0.3 = bf16[3,4,6]{2,1,0} parameter(0)
  %p2.3 = bf16[4,6]{1,0} parameter(2)
  %one.3 = bf16[1,4,6]{2,1,0} bitcast(%p2.3)
  %p1.3 = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  ROOT %dus = bf16[3,4,6]{2,1,0} dynamic-update-slice(%p0.3, %one.3, %p1.3, /*index=3*/%zero.3, %zero.3)
}

%body (arg.4: (s32[], bf16[3,4,6], f32[3,4,5], f32[5,6])) -> (s32[], bf16[3,4,6], f32[3,4,5], f32[5,6]) {
  %arg.4 = (s32[], bf16[3,4,6]{2,1,0}, f32[3,4,5]{2,1,0}, /*index=3*/f32[5,6]{1,0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%arg.4), index=0
  %out.4 = bf16[3,4,6]{2,1,0} get-tuple-element(%arg.4), index=1
  %stack.4 = f32[3,4,5]{2,1,0} get-tuple-element(%arg.4), index=2
  %w.4 = f32[5,6]{1,0} get-tuple-element(%arg.4), index=3
  %slice.4 = f32[1,4,5]{2,1,0} fusion(%stack.4, %i.4), kind=kLoop, calls=%sliced
  %x.4 = f32[4,5]{1,0} bitcast(%slice.4)
  %y.4 = bf16[4,6]{1,0} fusion(%x.4, %w.4), kind=kCustom, calls=%multiplied, metadata={op_name="jit(f)/attention/dot"}
  %new.4 = bf16[3,4,6]{2,1,0} fusion(%out.4, %i.4, %y.4), kind=kLoop, calls=%updated
  %one.4 = s32[] constant(1)
  ROOT %next.4 = (s32[], bf16[3,4,6]{2,1,0}, f32[3,4,5]{2,1,0}, f32[5,6]{1,0}) tuple(%i.4, %new.4, %stack.4, %w.4)
}

%condition (arg.5: (s32[], bf16[3,4,6], f32[3,4,5], f32[5,6])) -> pred[] {
  %arg.5 = (s32[], bf16[3,4,6]{2,1,0}, f32[3,4,5]{2,1,0}, f32[5,6]{1,0}) parameter(0)
  ROOT %true.5 = pred[] constant(true)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%reduced (p0.6: bf16[3,4,6]) -> f32[] {
  %p0.6 = bf16[3,4,6]{2,1,0} parameter(0)
  %float.6 = f32[3,4,6]{2,1,0} convert(%p0.6)
  %exp.6 = f32[3,4,6]{2,1,0} exponential(%float.6)
  %zero.6 = f32[] constant(0)
  ROOT %total.6 = f32[] reduce(%exp.6, %zero.6), dimensions={0,1,2}, to_apply=%add
}

ENTRY %main (stack: f32[3,4,5], w: f32[5,6]) -> f32[] {
  %stack = f32[3,4,5]{2,1,0} parameter(0)
  %w = f32[5,6]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %empty = bf16[] constant(0)
  %filled = bf16[3,4,6]{2,1,0} broadcast(%empty), dimensions={}
  %init = (s32[], bf16[3,4,6]{2,1,0}, f32[3,4,5]{2,1,0}, f32[5,6]{1,0}) tuple(%zero, %filled, %stack, %w)
  %loop = (s32[], bf16[3,4,6]{2,1,0}, f32[3,4,5]{2,1,0}, f32[5,6]{1,0}) while(%init), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %outputs = bf16[3,4,6]{2,1,0} get-tuple-element(%loop), index=1
  ROOT %result = f32[] fusion(%outputs), kind=kInput, calls=%reduced, metadata={op_name="jit(f)/jvp(loss)/sum"}
}
"""


@pytest.fixture(scope="module")
def tools():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import gpu_cost
        import hlo

        yield hlo, gpu_cost


def test_kernels_are_counted_by_hand(tools):
    hlo, gpu_cost = tools
    filled, sliced, multiplied, updated, reduced = hlo.kernels(MODULE)
    assert [each.runs for each in (filled, sliced, multiplied, updated, reduced)] == [1, 3, 3, 3, 1]
    assert (filled.written, sliced.read, sliced.written) == (2 * 72, 4 * 20 + 4, 4 * 20), "a slice, and its number"
    assert (multiplied.read, multiplied.written) == (4 * (20 + 30), 2 * 24)
    assert multiplied.matmul == 2 * 4 * 6 * 5 and multiplied.computes == 0
    assert (updated.read, updated.written) == (2 * 24 + 4, 2 * 24), "the rest stays where it is"
    assert (reduced.read, reduced.written, reduced.transcendental) == (2 * 72, 4, 72)
    assert reduced.computes == 72 + 72, "exponentials, and their sum"
    kinds = [gpu_cost.kind_of(each) for each in (filled, sliced, multiplied, updated, reduced)]
    assert kinds == ["stacks", "stacks", "matmul", "stacks", "logits and loss"]


def test_time_is_that_of_the_slowest_of_its_parts_and_of_each_launch(tools):
    hlo, gpu_cost = tools
    rates = gpu_cost.Rates(matmul=1e-6, memory=1e9, elements=1e9, transcendental=1e9, launch=5)
    (multiplied,) = [each for each in hlo.kernels(MODULE) if each.matmul]
    assert gpu_cost.seconds(multiplied, rates) == pytest.approx(3 * (240 / 1e6 + 5e-6))
    costs = gpu_cost.costs_by_kind(hlo.kernels(MODULE), rates._replace(matmul=1e9))
    assert costs["stacks"].launches == 7 and costs["stacks"].milliseconds == pytest.approx(7 * 5e-3)
    assert costs["matmul"].tflop == pytest.approx(3 * 240 / 1e12)


def test_a_loop_of_unknown_length_is_refused_and_not_counted_once(tools):
    hlo, _ = tools
    with pytest.raises(ValueError, match="loop: it is not known how often"):
        hlo.kernels(MODULE.replace('{"known_trip_count":{"n":"3"}}', "{}"))


def test_without_the_plugin_it_says_what_to_install_and_exits_with_2(tools, monkeypatch, capsys):
    _, gpu_cost = tools
    monkeypatch.setattr(gpu_cost.gpu_target, "find_devices", lambda _: ())
    monkeypatch.setattr(sys, "argv", ["gpu_cost.py"])
    assert gpu_cost.main() == 2
    assert capsys.readouterr().err == "gpu_cost: install jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version\n"


def is_compiled_for_here() -> bool:
    import jax

    committed = json.loads(COMMITTED.read_text())["versions"]["jax"]
    return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None and jax.__version__ == committed


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or not is_compiled_for_here(),
    reason="needs jax-cuda13-plugin and jax-cuda13-pjrt, and the JAX that the committed figures were made by",
)
def test_no_kind_of_kernel_moves_more_bytes_or_computes_more_than_is_committed(tmp_path):
    """Of the smallest size, since the others have more of the same blocks. If a change is meant, make the figures by:

    `python tools/gpu_cost.py --sizes --json=tools/results/gpu_cost_h100.json`
    """
    command = [sys.executable, TOOLS / "gpu_cost.py", "--experiment=baseline_27m", f"--json={tmp_path / 'now.json'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    now, committed = (json.loads(path.read_text())["steps"] for path in (tmp_path / "now.json", COMMITTED))
    more = {
        f"{size}, {kind}: {cost[part]:.2f} {part}, committed {committed[size][kind][part]:.2f}"
        for size, kinds in now.items()
        for kind, cost in kinds.items()
        for part in ("gigabytes", "tflop", "launches")
        if cost[part] > 1.02 * committed[size][kind][part] + 0.05
    }
    assert not more and now["baseline_27m"].keys() == committed["baseline_27m"].keys()
