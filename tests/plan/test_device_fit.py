"""What a step recomputes to fit a device, and what is said where it does not."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import jaxformer.plan.device_fit
import jaxformer.step
from jaxformer.config import UserError, replace
from jaxformer.data.phases import Phase
from jaxformer.experiment.experiment import make_state, run_mesh
from jaxformer.experiment.resolution import load_experiment
from jaxformer.plan.compiled_step import compiled_bytes, lower_steps
from jaxformer.plan.device_fit import (
    Target,
    advise,
    choose_fit,
    computed_with,
    device_at_hand,
    fit_to_device,
    fits,
    named_device,
    ways,
)
from jaxformer.plan.run_time import random_batch
from jaxformer.step import compile_step
from jaxformer.train import main

pytestmark = pytest.mark.device_free


def gpu(gigabytes):
    return Target("a GPU", "gpu", int(gigabytes * 1e9), "pallas", jnp.bfloat16)


# One that compiles in a second.
TINY = {
    "packing.row_length": "32",
    "training.rows_per_step": "4",
    "model.width": "16",
    "model.depth": "2",
    "model.heads": "2",
    "model.vocabulary_size": "416",
    "tokenizer.vocabulary_size": "400",
}


def fitted_here(experiment, record=None, platform="cpu"):
    """Returns what a run here computes its step with, and what is printed of it."""
    fitted, text = fit_to_device(experiment, device_at_hand(experiment)._replace(platform=platform), 400, record)
    return fitted.model.remat, fitted.training.micro_batches, text


def small(**overrides):
    texts = {"packing.row_length": "2048", "training.rows_per_step": "8", "training.micro_batches": "0"}
    texts |= {"model.loss": "xla"}  # Whose logits take memory.
    return load_experiment("baseline", texts | overrides)


@pytest.mark.parametrize(("name", "rows", "gigabytes"), [("baseline_500m", "32", 80), ("baseline_100m", "16", 24)])
def test_real_size_fits_its_device_without_computing_a_matmul_twice(name, rows, gigabytes):
    experiment = load_experiment(name, {"training.rows_per_step": rows})
    target = gpu(0.9 * gigabytes)
    fit = choose_fit(experiment, target)
    assert fit.remat in ("none", "elementwise") and fits(fit)


def test_what_is_chosen_fits_and_nothing_cheaper_does():
    experiment = small()
    every_way = list(ways(experiment, gpu(1)))
    assert [fit.cost for fit in every_way] == sorted(fit.cost for fit in every_way)
    chosen = []
    for gigabytes in (10.0, 1.0, 0.6, 0.3):
        target = gpu(gigabytes)
        fit = choose_fit(experiment, target)
        cheaper = [each for each in every_way if each.cost < fit.cost]
        assert fits(fit) and not any(fits(dataclasses.replace(each, target=target)) for each in cheaper)
        chosen.append((fit.remat, fit.micro_batches))
    assert chosen[0] == ("elementwise", 1) and len(set(chosen)) > 2


def test_blocks_of_a_gpu_are_no_loop_where_that_takes_no_more_memory_and_what_is_configured_stays():
    every_way = {(way.remat, way.micro_batches): way.experiment.model.scan_unroll for way in ways(small(), gpu(1))}
    assert {way for way, unroll in every_way.items() if unroll > 1} == {
        (remat, 1) for remat in ("elementwise", "feed_forward", "block")
    }
    assert {unroll for unroll in every_way.values()} == {1, small().model.depth}
    assert {way.experiment.model.scan_unroll for way in ways(small(**{"model.scan_unroll": "2"}), gpu(1))} == {2}
    cpu = gpu(1)._replace(platform="cpu")
    assert {way.experiment.model.scan_unroll for way in ways(small(), cpu)} == {0}, "which the model knows best"


def test_phases_fit_by_their_largest_step_in_parts_that_divide_every_batch():
    alone = small(), small(**{"packing.row_length": "1024", "training.rows_per_step": "12"})
    both = replace(small(), {"training.phases": (Phase(start=0.5, rows_per_step=12, row_length=1024),)})
    peaks, costs = (
        [{(way.remat, way.micro_batches): getter(way) for way in ways(one, gpu(1))} for one in (*alone, both)]
        for getter in (lambda way: way.memory.peak, lambda way: way.cost)
    )
    assert {parts for _, parts in peaks[2]} == {1, 2, 4}
    for way, peak in peaks[2].items():
        assert peak == max(peaks[0][way], peaks[1][way])
        assert min(costs[0][way], costs[1][way]) <= costs[2][way] <= max(costs[0][way], costs[1][way])


def test_where_nothing_fits_the_least_is_chosen():
    experiment = small()
    assert choose_fit(experiment, gpu(0.001)).memory.peak == min(fit.memory.peak for fit in ways(experiment, gpu(1)))


def test_what_is_configured_stays_as_it_is():
    experiment = small(**{"model.remat": "feed_forward", "training.micro_batches": "2"})
    assert [(fit.remat, fit.micro_batches) for fit in ways(experiment, gpu(1))] == [("feed_forward", 2)]


def test_what_is_compiled_decides_where_the_formula_is_wrong_and_what_is_far_too_much_is_not_compiled():
    experiment, target = small(), gpu(0.45)
    by_formula = [(fit.remat, fit.micro_batches) for fit in ways(experiment, target) if fits(fit)]
    asked = []

    def compiled(fit):
        asked.append((fit.remat, fit.micro_batches))
        return dataclasses.replace(fit, compiled=int(fit.memory.peak + 0.15e9))

    fit = choose_fit(experiment, target, compiled)
    assert asked[-1] == (fit.remat, fit.micro_batches) != by_formula[0] and by_formula[0] in asked
    assert fit.peak == fit.memory.peak + 0.15e9 <= 0.95 * target.memory
    likely = [fit for fit in ways(experiment, target) if fit.memory.peak <= 1.25 * target.memory]
    assert choose_fit(experiment, gpu(10), compiled).compiled == 0, "it is not compiled to know"
    assert likely[0] != next(ways(experiment, target))
    assert asked == [(each.remat, each.micro_batches) for each in likely[: len(asked)]]
    # Where the compiler says that it is less, so much is taken as the formula would not allow.
    fit = choose_fit(experiment, target, lambda fit: dataclasses.replace(fit, compiled=1))
    assert (fit.remat, fit.micro_batches) == asked[0] and fit.memory.peak > 0.9 * target.memory
    fit = choose_fit(experiment, target, lambda fit: fit)
    assert (fit.remat, fit.micro_batches) == by_formula[0], "the compiler does not tell"


@pytest.mark.usefixtures("compiled")
def test_device_of_known_memory_is_compiled_for_and_it_is_printed(monkeypatch, capsys):
    experiment = load_experiment("baseline", TINY | {"training.micro_batches": "0", "model.remat": "none"})
    one = computed_with(experiment, "none", 1, scan_unroll=1)
    (step,) = lower_steps(one, run_mesh(one), 400)
    size = compiled_bytes(step.compile())
    for share, parts in ((0.94, 1), (0.96, 2)):
        monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda share=share: int(size / share))
        *fitted, text = fitted_here(experiment, platform="gpu")
        assert tuple(fitted) == ("none", parts)
        assert " by the compiler: remat none, " in text and text.endswith(", the cheapest that fits")
        assert capsys.readouterr().out.count("compiling the step with remat none") == parts


def test_program_that_is_compiled_to_choose_is_the_one_that_runs():
    experiment = load_experiment("baseline", TINY | {"training.micro_batches": "2", "model.remat": "block"})
    state, batch = make_state(experiment, seed=3, token_count=400), random_batch(4, 32, 400)
    of_run = compile_step(state).lower(state, batch).as_text()
    (lowered,) = lower_steps(experiment, run_mesh(experiment), 400)
    assert lowered.as_text() == of_run


def test_each_step_of_a_run_with_phases_is_compiled_to_choose():
    phases = {"training.phases": (Phase(start=0.5, rows_per_step=2),)}
    experiment = replace(computed_with(load_experiment("baseline", TINY), "none", 1), phases)
    lowered = lower_steps(experiment, run_mesh(experiment), 400)
    for step, rows in zip(lowered, (4, 2), strict=True):
        state, batch = make_state(experiment, seed=3, token_count=400), random_batch(rows, 32, 400)
        assert step.as_text() == compile_step(state).lower(state, batch).as_text()


def test_on_a_cpu_the_memory_is_the_machine_s_and_nothing_is_compiled_to_choose(monkeypatch, capsys):
    monkeypatch.setattr("jaxformer.devices.device.usable_memory", lambda: 12_000_000_000)
    *fitted, text = fitted_here(small())
    assert tuple(fitted) == ("none", 1)
    assert re.fullmatch(
        r"an estimated [\d.]+ [MG]B of 9.90 GB: remat none, 1 micro-batch, the cheapest that fits", text
    )
    large = load_experiment("baseline_500m", {"training.micro_batches": "0"})
    assert fitted_here(large)[:2] != ("none", 1)
    assert "compiling" not in capsys.readouterr().out


def test_run_that_the_machine_has_too_little_memory_for_says_so(monkeypatch, capsys):
    monkeypatch.setattr("jaxformer.devices.device.usable_memory", lambda: 4_000_000_000)
    *_, text = fitted_here(load_experiment("baseline_500m"))
    assert text.endswith(" of 2.70 GB: remat block, 32 micro-batches, as much as that saves")
    error = capsys.readouterr().err
    assert re.match(
        r"jaxformer: the run may need more memory than there is, [\d.]+ GB of 2.70 GB, and be killed", error
    )
    assert "the least that it needs is" in error


def test_where_the_memory_is_not_known_the_fastest_is_taken_unseen(monkeypatch):
    monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda: 0)
    monkeypatch.setattr(jaxformer.plan.device_fit, "step_memory", None)
    assert fitted_here(small()) == ("none", 1, "remat none, 1 micro-batch, since its memory is not known")


def test_resumed_run_computes_as_it_began_on_the_same_device_and_as_it_is_reported(monkeypatch):
    monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda: 10**12)
    # What is chosen, and not how it is compiled, is told here.
    monkeypatch.setattr(jaxformer.plan.device_fit, "compiled_here", lambda *_: None)
    record = {
        "device": jax.devices()[0].device_kind,
        "config": {"model": {"remat": "block"}, "training": {"micro_batches": 4}},
    }

    def chosen(experiment, record):
        return fitted_here(experiment, record)[:2]

    assert chosen(small(), record) == ("block", 4)
    small_device = record | {"config": {"model": {"remat": "none"}, "training": {"micro_batches": 1}}}
    monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda: 5 * 10**8)
    assert chosen(small(), small_device) != ("none", 1), "what no longer fits is chosen anew"
    monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda: 10**12)
    assert chosen(small(), record | {"device": "another"}) == ("none", 1)
    assert chosen(small(), record | {"config": {}}) == ("none", 1), "a run of a version without the fields"
    assert chosen(small(**{"model.remat": "elementwise"}), record) == ("elementwise", 4)


def test_advice_fits_and_is_less_than_what_failed():
    by_xla = {"model.loss": "xla", "training.micro_batches": "1"}
    experiment = load_experiment("baseline_500m", {"model.remat": "none", **by_xla})
    text = advise(experiment, gpu(72))
    assert text == "set --training.micro_batches=1 --model.remat=elementwise: an estimated 63.3 GB of 72.0 GB"
    # It failed though it fits by the formula: the next step down.
    failed = load_experiment("baseline_500m", {"model.remat": "elementwise", **by_xla})
    text = advise(failed, gpu(72))
    assert text == "set --training.micro_batches=1 --model.remat=feed_forward: an estimated 42.2 GB of 72.0 GB"


def test_advice_names_the_least_where_nothing_fits_and_is_none_where_nothing_is_known():
    experiment = load_experiment("baseline_500m")
    assert advise(experiment, gpu(8)).startswith("the least that it needs is ")
    assert advise(experiment, gpu(0)) == ""


def test_first_step_without_memory_is_answered_with_settings_that_fit(experiment_files, monkeypatch, tmp_path, capfd):
    def no_memory(state, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.")

    monkeypatch.setattr(jaxformer.step, "train_step", no_memory)
    monkeypatch.setattr(jaxformer.plan.device_fit, "device_memory", lambda: 10**9)
    arguments = [f"--experiment={experiment_files['best_fit']}", f"--workdir={tmp_path}", "--model.remat=none"]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "too little memory (RESOURCE_EXHAUSTED" in error
    assert "set --training.micro_batches=" in error and "of 1.00 GB" in error


def test_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"unknown GPU 'H10'; did you mean H100\?; known are .*RTX 4090"):
        named_device(small(), "H10")


@pytest.mark.parametrize("loss", ["pallas", "pallas:128x128x64x8x3"])
def test_loss_kernels_are_refused_on_a_gpu_to_come_that_cannot_run_them(loss):
    experiment = replace(small(), {"model.loss": loss})
    with pytest.raises(
        UserError, match=rf"'{loss}' cannot run on V100 with float32 and .*: it needs a GPU with bfloat16"
    ):
        named_device(experiment, "V100")
    assert named_device(experiment, "H100").kind == "H100"
    with pytest.raises(UserError, match=r"with bfloat16 and model\.width 24: .* a width that 16 divides"):
        named_device(replace(experiment, {"model.width": 24, "model.heads": 2}), "H100")
