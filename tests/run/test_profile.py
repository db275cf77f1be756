"""A profile: what kernels are in words, each counted once, and a run that writes it and learns the same."""

from types import SimpleNamespace

import jax
import pytest
from tiny_run import assert_same_run, command, run_until

from jaxformer import load_experiment
from jaxformer.config import UserError, replace
from jaxformer.data.phases import Phase
from jaxformer.run.profile import Event, Instruction, describe, kernel_table, read_events, read_instructions
from jaxformer.train import main

pytestmark = pytest.mark.device_free

STEP = "jit(train_step)/"
BLOCK = "jvp()/while/body/closed_call/residual/"


@pytest.mark.parametrize(
    ("op_name", "operations", "words"),
    [
        (f"jvp({BLOCK}attention/BGRTS,BGSK->BGRTK/dot_general", ["fusion", "dot"], "attention, forward: matmul"),
        (f"{BLOCK}attention/exp", ["exponential", "reduce"], "attention, forward: softmax"),
        (f"{BLOCK}feed_forward/exp", ["exponential", "multiply"], "feed-forward, forward: elementwise"),
        (f"{BLOCK}feed_forward/norm/reduce_sum", ["reduce", "multiply"], "norm, forward: reduction"),
        (f"{BLOCK}feed_forward/reduce_precision", ["reduce-precision"], "feed-forward, forward: elementwise"),
        (f"{BLOCK}add", ["add"], "residual, forward: elementwise"),
        ("transpose(jvp())/while/body/attention/transpose", ["copy", "bitcast"], "attention, backward: copy"),
        ("transpose(jvp(loss))/mul", ["multiply"], "loss, backward: elementwise"),
        ("transpose(jvp(jvp()))/checkpoint/rematted_computation/norm/mul", ["multiply"], "norm, backward: elementwise"),
        ("jvp(embedding)/gather", ["fusion", "gather"], "embedding, forward: look-up"),
        ("optimizer/mul;jit(train_step)/metrics/square", ["multiply"], "optimizer: elementwise"),
        ("jvp(loss)/dot_general", ["custom-call", "__cublas$lt$matmul"], "loss, forward: matmul"),
        (f"{BLOCK}attention/cond/flash", ["custom-call", "__gpu$x.triton"], "attention, forward: custom call"),
        ("psum", ["all-reduce-start"], "other: communication"),
        ("", ["copy"], "other: copy"),
    ],
)
def test_names_of_the_code_tell_part_direction_and_operation(op_name, operations, words):
    assert describe(Instruction(op_name and STEP + op_name, frozenset(operations))) == words


HLO = """HloModule jit_train_step, is_scheduled=true

%fused (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %exp.1 = f32[8,4]{1,0} exponential(%p.1), metadata={op_name="jit(train_step)/jvp(attention)/exp"}
}

%body (b.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %b.1 = (s32[], /*index=1*/f32[8,4]{1,0}) parameter(0)
  %fusion.1 = f32[8,4]{1,0} fusion(%b.1), kind=kLoop, calls=%fused
  %copy.3 = f32[8,4]{1,0} copy(%b.1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%b.1, %b.1), metadata={op_name="jit(train_step)/jvp(loss)/dot_general" stack=1}
}

ENTRY %main (a.1: f32[8,4]) -> f32[8,4] {
  %while.7 = (s32[], /*index=1*/f32[8,4]{1,0}) while(%a.1), body=%body, metadata={op_name="jit(train_step)/norm/while"}
  ROOT %c = f32[8,4]{1,0} custom-call(%while.7), custom_call_target="__cublas$gemm"
}
"""


def test_compiled_step_tells_what_is_fused_and_what_calls_it():
    found = read_instructions(HLO)
    assert found["fusion.1"] == (f"{STEP}jvp(attention)/exp", {"fusion", "parameter", "exponential"})
    assert found["dot.1"] == (f"{STEP}jvp(loss)/dot_general", {"dot"})
    assert found["while.7"] == (f"{STEP}norm/while", {"while"})
    assert found["copy.3"] == (f"{STEP}norm/while", {"copy"})  # By what calls it.
    assert found["c"] == ("", {"custom-call", "__cublas$gemm"})


def trace(**planes):
    """Returns a trace of planes by name, which have lines by name, which have events (name, start, duration, stats)."""

    def event(name, start, duration, stats):
        return SimpleNamespace(name=name, start_ns=float(start), duration_ns=float(duration), stats=stats.items())

    def line(name, events):
        return SimpleNamespace(name=name, events=[event(*each) for each in events])

    return SimpleNamespace(
        planes=[SimpleNamespace(name=name, lines=[*map(line, lines, lines.values())]) for name, lines in planes.items()]
    )


def stats(instruction, module="jit_train_step", **others):
    return {"hlo_op": instruction, "hlo_module": module, **others}


# A loop of two iterations whose fusion runs beside its matmul, on another thread, which then does some of the matmul;
# and what is not of the step.
CPU = trace(
    **{
        "/host:CPU": {
            "worker/1": [
                ("while.7", 0, 900, stats("while.7")),
                ("dot.1", 0, 400, stats("dot.1")),
                ("ThreadpoolListener::Record", 350, 0, {"_p": 5}),
                ("end: dot.1", 400, 1, {}),
                ("dot.1", 500, 400, stats("dot.1")),
                ("dot.1", 950, 40, stats("dot.1", "jit_eval_step")),
            ],
            "worker/2": [
                ("fusion.1", 300, 100, stats("fusion.1")),
                ("fusion.1", 400, 100, stats("fusion.1")),
                ("ThreadpoolListener::StartRegion", 600, 0, {"_c": 5}),
                ("ThreadpoolListener::Record", 620, 0, {"_p": 6}),
                ("ThreadpoolListener::StopRegion", 700, 0, {}),
                ("ThreadpoolListener::StartRegion", 700, 0, {"_c": 6}),
                ("ThreadpoolListener::StopRegion", 800, 0, {}),
                ("ThreadpoolListener::StartRegion", 800, 0, {"_c": 7}),
                ("ThreadpoolListener::StopRegion", 990, 0, {}),
            ],
            "python": [("$loop.py:90 run_steps", 0, 1000, {})],
        },
        "/host:metadata": {"worker/1": [("dot.1", 0, 400, stats("dot.1"))]},
    }
)


def test_thunks_are_counted_once_with_what_other_threads_do_of_them_and_loops_by_what_is_in_them():
    events = list(read_events(CPU, "jit_train_step"))
    assert sorted(event.kernel for event in events if event.times) == ["dot.1", "dot.1", "fusion.1", "fusion.1"]
    assert kernel_table(events, read_instructions(HLO), range(4, 6), 1e-6) == [
        "profile of steps 4 to 5",
        "share  ms/step  times  what                         kernel",
        "83.3%     0.00      1  loss, forward: matmul        dot.1",
        "16.7%     0.00      1  attention, forward: softmax  fusion.1",
        "by part: loss 83.3%, attention 16.7%",
        "a step took 0.0 ms, and the device was busy for 90% of it",
    ]


def test_kernels_of_gpus_are_told_by_what_the_trace_has_of_them():
    """Of a trace made by hand, as XLA's sources say that it is: none of a GPU was at hand."""
    gemm = ("sm90_xmma_gemm_bf16_tilesize128x128x64_and_more_of_a_long_name", 0, 6_000_000)
    kernels = [
        (*gemm, stats("c")),  # Its instruction has no name in the code.
        ("loop_exp_fusion_3", 6_000_000, 3_000_000, stats("fusion.1")),
        ("flash_kernel", 9_000_000, 1_000_000, stats("unknown.1", name="transpose(jvp(attention))/dot_general")),
    ]
    copies = [("MemcpyH2D", 1_000_000, 2_000_000, {"memcpy_details": "size:4096"})]
    lines = {"Stream #13(Compute)": kernels, "Stream #14(MemcpyH2D)": copies, "XLA Modules": [("step", 0, 9e6, {})]}
    profile = trace(**{"/device:GPU:0": lines, "/device:GPU:1": lines, "/host:CPU": {"thread": [(*gemm, {})]}})
    events = list(read_events(profile, "jit_train_step"))
    assert {event.device for event in events} == {"/device:GPU:0", "/device:GPU:1"} and len(events) == 8
    lines = kernel_table(events, read_instructions(HLO), range(1, 3), 0.02)
    assert lines[2:6] == [
        "50.0%     3.00    0.5  other: matmul                sm90_xmma_gem..._a_long_name",
        "25.0%     1.50    0.5  attention, forward: softmax  loop_exp_fusion_3",
        "16.7%     1.00    0.5  other: copy                  MemcpyH2D",
        " 8.3%     0.50    0.5  attention, backward: matmul  flash_kernel",
    ]
    assert lines[-1] == "a step took 10.0 ms, and the device was busy for 50% of it"
    assert max(map(len, lines)) <= 80


def test_table_has_ten_rows_of_which_one_is_the_same_kernel_of_all_layers():
    layers = [Event("cpu", f"add.{i}", "", "jvp(loss)/add", 10 * i, 10 * i + 5 + i % 3) for i in range(8)]
    others = [Event("cpu", f"kernel_of_{letter}", "", "mul", 80, 81) for letter in "abcdefghijkl"]
    _, _, *rows, parts, _ = kernel_table(layers + others, {}, range(1, 2), 1e-7)
    assert len(rows) == 10 and rows[0].split() == ["79.7%", "0.00", "8", "loss,", "forward:", "elementwise", "add.2"]
    assert parts == "by part: loss 79.7%, other 20.3%"


@pytest.fixture
def profiling(experiment_files, compiled):
    """Returns a function from a folder and the steps to profile to the arguments of a tiny run."""
    return lambda folder, steps: [*command(experiment_files["best_fit"], folder), f"--training.profile={steps}"]


def test_run_with_a_profile_writes_it_and_learns_the_same(profiling, uninterrupted, tmp_path, capsys):
    option = "jax_compilation_cache_include_metadata_in_key"
    workdir, before = tmp_path / "run", jax.config.values[option]
    assert main(profiling(workdir, "5:7")) == 0
    assert jax.config.values[option] == before
    printed = capsys.readouterr()
    table = (workdir / "profile" / "kernels.txt").read_text()
    assert table in printed.out and printed.err == ""
    title, heading, *rows, parts, last = table.replace("\n  ", " ").splitlines()
    assert title == "profile of steps 5 to 7" and heading.split() == ["share", "ms/step", "times", "what", "kernel"]
    assert len(rows) == 10 and max(map(len, table.splitlines())) <= 80
    words = ("attention", "feed-forward", "norm", "loss", "embedding", "residual", "optimizer", "metrics", "other")
    assert sorted(part.split()[0] for part in parts.removeprefix("by part: ").split(", ")) == sorted(words)
    assert "busy for" in last
    assert [path.suffix for path in sorted(workdir.glob("profile/plugins/profile/*/*"))] == [".gz", ".pb"]
    assert_same_run(workdir, uninterrupted("best_fit"))


def test_resumed_run_profiles_what_is_left_of_the_steps_and_else_says_so(profiling, tmp_path, capsys):
    workdir = tmp_path / "run"
    run_until("step", 8, [*profiling(workdir, ""), "--checkpoint.every_steps=6"])  # It goes on with step 7.
    run_until("step", 10, profiling(workdir, "5:8"))
    assert "profile of steps 7 to 8" in (workdir / "profile" / "kernels.txt").read_text()
    capsys.readouterr()
    run_until("step", 11, profiling(workdir, "5:8"))  # From step 9 on, with the profile at hand.
    printed = capsys.readouterr()
    assert "are profiled" not in printed.out and printed.err == ""
    (workdir / "profile" / "kernels.txt").unlink()
    assert main(profiling(workdir, "5:8")) == 0
    assert "jaxformer: steps 5 to 8 are not profiled: the run resumes at step 9\n" in capsys.readouterr().err


def test_run_that_stops_within_the_steps_leaves_no_table(profiling, tmp_path):
    run_until("step", 6, profiling(tmp_path / "run", "5:7"))
    assert not (tmp_path / "run" / "profile" / "kernels.txt").exists()


@pytest.mark.parametrize("what", ["jax.profiler.start_trace", "jaxformer.run.profile.read_events"])
def test_profiler_that_fails_does_not_end_the_run(what, profiling, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no permission")

    monkeypatch.setattr(what, fail)
    assert main(profiling(tmp_path / "run", "3:3")) == 0
    line = "jaxformer: no profile (RuntimeError: no permission); the run goes on without it\n"
    assert capsys.readouterr().err == line


def test_profile_lies_within_one_phase(experiment_files):
    one = load_experiment(str(experiment_files["best_fit"]))
    phases = (Phase(start=0.5, rows_per_step=8),)
    for steps in ("5:6", "7:8"):
        replace(one, {"training.phases": phases, "training.profile": steps})
    with pytest.raises(UserError, match=r"profile \(6:7\) must lie within one phase, but step 7 begins another"):
        replace(one, {"training.phases": phases, "training.profile": "6:7"})


def test_profile_lies_between_validations_and_saves(experiment_files):
    one = load_experiment(str(experiment_files["best_fit"]))
    replace(one, {"training.profile": "5:8"})
    for values, step in (({}, 8), ({"evaluation.every_steps": 12}, 8), ({"checkpoint.every_steps": 12}, 8)):
        with pytest.raises(UserError, match=rf"no validation or save between its steps.* after step {step}$"):
            replace(one, {"training.profile": "7:9", **values})
