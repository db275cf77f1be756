"""Which loss is the fastest is timed where two can run, told, kept, and taken again by runs and plans."""

import jax.numpy as jnp
import pytest

from jaxformer.config import UserError, replace
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.resolution import load_experiment
from jaxformer.loss_kernels import TILES, Kernels, Tile, candidate_tiles
from jaxformer.plan import estimate, run_time, timed_loss
from jaxformer.plan.estimate import print_plan
from jaxformer.plan.memory import Target
from jaxformer.plan.run_time import Speed
from jaxformer.plan.timed_loss import with_fastest_loss, with_kept_loss
from jaxformer.run import continuation
from jaxformer.run.continuation import read_run

pytestmark = pytest.mark.device_free

HERE = Target("a GPU", "gpu", 10**9, "xla", jnp.float32)
TINY = {
    "packing.row_length": "32",
    "training.rows_per_step": "4",
    "model.width": "16",
    "model.heads": "2",
    "model.vocabulary_size": "416",
    "tokenizer.vocabulary_size": "400",
}
TILE, OTHER = [*TILES][3:1:-1]
KERNELS = Kernels(Tile(16, 64, 32, 4, 2))


@pytest.fixture(autouse=True)
def kernels_can_run(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timed_loss, "find_kernels", lambda name, width, dtype: None if width % 16 else KERNELS)


def tiny(**overrides):
    return load_experiment("baseline", TINY | {name.replace("__", "."): value for name, value in overrides.items()})


def timer_of(fastest):
    return lambda functions: ({name: 2.0 if name == fastest else 3.0 for name in functions}, {})


def never(functions):
    pytest.fail("the loss was timed")


@pytest.mark.parametrize("fastest", ["xla", TILE])
def test_the_fastest_is_told_kept_and_taken_by_the_next_run_and_by_plans(fastest, capsys):
    assert with_kept_loss(tiny(), HERE).model.loss == "auto"
    assert with_fastest_loss(tiny(), HERE, timer=timer_of(fastest)).model.loss == fastest
    assert f"loss        {fastest}, the fastest of {fastest} 2 ms," in capsys.readouterr().out
    assert with_fastest_loss(tiny(), HERE, timer=never).model.loss == fastest
    assert with_kept_loss(tiny(), HERE).model.loss == fastest


def test_a_plan_times_the_step_with_the_loss_that_is_kept(monkeypatch, capsys):
    with_fastest_loss(tiny(), HERE, timer=timer_of("xla"))
    timed = []
    monkeypatch.setattr(estimate, "device_to_come", lambda experiment: HERE)
    monkeypatch.setattr(run_time, "_matmul_rate", lambda target: 1e12)
    monkeypatch.setattr(run_time, "_time_steps", lambda experiment, share: timed.append(experiment) or Speed(1, 0, ""))
    print_plan(tiny(model__remat="none"))
    assert [one.model.loss for one in timed] == ["xla"] and "verdict" in capsys.readouterr().out


def test_a_run_that_is_resumed_by_its_folder_may_choose_anew_on_another_device(monkeypatch, tmp_path):
    began = tiny(model__loss=TILE)
    monkeypatch.setattr(continuation, "load_run", lambda workdir: (began, {"seed": 0, "lineage": {}}))
    assert read_run(tmp_path).experiment.model.loss == "auto"
    assert read_run(tmp_path, {"model.loss": TILE}).experiment.model.loss == TILE


@pytest.mark.parametrize(
    "change",
    [{"model.width": 32}, {"model.vocabulary_size": 512}, {"training.rows_per_step": 8}, {"model.z_loss": 1e-4}],
)
def test_another_shape_is_timed_anew(change):
    with_fastest_loss(tiny(), HERE, timer=timer_of("xla"))
    assert with_kept_loss(replace(tiny(), change), HERE).model.loss == "auto"
    assert with_fastest_loss(replace(tiny(), change), HERE, timer=timer_of(TILE)).model.loss == TILE


def test_another_dtype_is_timed_anew():
    with_fastest_loss(tiny(), HERE, timer=timer_of("xla"))
    assert with_kept_loss(tiny(), HERE._replace(dtype=jnp.bfloat16)).model.loss == "auto"


@pytest.mark.parametrize("named", ["xla", "pallas", TILE])
def test_what_is_named_is_taken_and_nothing_timed(named):
    assert with_fastest_loss(tiny(model__loss=named), HERE, timer=never).model.loss == named


@pytest.mark.parametrize(("soft_cap", "capability", "tiles"), [(0.0, 9.0, 4), (30.0, 9.0, 2), (0.0, 10.0, 2)])
def test_every_tile_that_does_not_spill_is_timed_beside_xla(monkeypatch, soft_cap, capability, tiles):
    monkeypatch.setattr(timed_loss, "compute_capability", lambda device: capability)
    timed, model = [], {"model__logit_soft_cap": str(soft_cap)}
    with_fastest_loss(
        tiny(**model), HERE, timer=lambda functions: (timed.extend(functions), timer_of("xla")(functions))[1]
    )
    assert timed == [*(f"pallas:{tile}" for tile in candidate_tiles(soft_cap, capability)), "xla"]
    assert len(timed) == tiles + 1


@pytest.mark.parametrize("name", ["palas", "pallas:", "pallas:128x64x64x8x3", "pallas:128x128", "xla:128x128x64x8x3"])
def test_a_wrong_name_or_tile_is_refused_with_those_that_are_known(name):
    with pytest.raises(UserError, match=rf"^model\.loss = '{name}' is unknown.*; choose from auto, .*{TILE}.*, xla$"):
        tiny(model__loss=name)


def test_nothing_is_timed_where_the_kernels_cannot_run():
    assert with_fastest_loss(tiny(model__width="24"), HERE, timer=never).model.loss == "auto"


def test_a_resumed_run_goes_on_with_what_it_began_with_on_the_same_device():
    with_fastest_loss(tiny(), HERE, timer=timer_of(TILE))
    for before in ("xla", "pallas", OTHER):
        record = {"device": "a GPU", "config": {"model": {"loss": before}}}
        assert with_fastest_loss(tiny(), HERE, record=record, timer=never).model.loss == before
        assert with_fastest_loss(tiny(model__loss=TILE), HERE, record=record, timer=never).model.loss == TILE
    before_it_was_chosen = {"device": "a GPU", "config": {"model": {}}}
    assert with_fastest_loss(tiny(), HERE, record=before_it_was_chosen, timer=never).model.loss == "xla"
    elsewhere = record | {"device": "another"}
    assert with_fastest_loss(tiny(), HERE, record=elsewhere, timer=never).model.loss == TILE


def test_what_was_kept_before_tiles_had_names_is_taken(tmp_path):
    with_fastest_loss(tiny(), HERE, timer=timer_of(TILE))
    path = tmp_path / "cache" / "fastest.jsonl"
    path.write_text(path.read_text().replace(TILE, "pallas"))
    assert with_fastest_loss(tiny(), HERE, timer=never).model.loss == "pallas"


def test_what_is_timed_is_a_gradient_and_what_fails_is_named(capsys):
    computed = {}

    def timer(functions):
        computed["xla"] = functions["xla"]()
        return milliseconds(functions, rounds=1)

    assert with_fastest_loss(tiny(), HERE, timer=timer).model.loss == "xla", "kernels run on no CPU"
    assert f"{TILE} failed (" in capsys.readouterr().out
    assert [x.shape for x in computed["xla"]] == [(128, 16), (416, 16)]
    assert all(float(jnp.abs(x).max()) > 0 for x in computed["xla"])


def test_where_none_runs_that_is_an_error_in_a_line():
    with pytest.raises(UserError, match=r"nothing that was timed runs on this device.*--model\.loss=xla"):
        with_fastest_loss(tiny(), HERE, timer=lambda functions: ({}, dict.fromkeys(functions, "no")))
