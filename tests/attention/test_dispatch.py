"""Attention against a float64 oracle, and what its document mask promises."""

import dataclasses
import datetime
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention import dispatch
from jaxformer.attention.dispatch import (
    TOLERANCES,
    AttentionConfig,
    Implementation,
    attend,
    choose_implementation,
    implementation_from,
)
from jaxformer.attention.document_mask import document_bounds
from jaxformer.attention.flash import Tiles, default_tiles
from jaxformer.attention.flash_kernels import Tile
from jaxformer.attention.support import IMPLEMENTATIONS, AttentionShape, why_not
from jaxformer.config import UserError

B, H, G, K = 2, 6, 3, 5
FLOAT32 = 2e-6
# The rounding of one weight and of one output, each relative to the largest value.
BFLOAT16 = 2**-8

attend_xla = jax.jit(functools.partial(attend, implementation="xla"))


def oracle(q, k, v, starts):
    """Attention by its definition, one query and one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen, g = slice(starts[b, t], t + 1), h // (q.shape[2] // k.shape[2])
        logits = k[b, seen, g] @ q[b, t, h] * q.shape[3] ** -0.5
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ v[b, seen, g]
    return out


def make_inputs(T, seed=0, scale=1.0):
    """Returns float32 q, k, v and the bounds of random documents in each row."""
    rng = np.random.default_rng(seed)
    q, k, v = (scale * rng.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (H, G, G))
    segment_ids = np.cumsum(rng.random((B, T)) < 5 / T, axis=1).astype(np.int32)
    return (q, k, v), tuple(np.asarray(bound) for bound in document_bounds(jnp.asarray(segment_ids)))


# Chunks have 64 queries or an eighth of the row: one, one that is full, three with a last one of 3, and eight.
@pytest.mark.parametrize("T", [11, 64, 131, 526])
def test_attention_equals_its_definition(T):
    (q, k, v), (starts, ends) = make_inputs(T)
    np.testing.assert_allclose(attend_xla(q, k, v, starts, ends), oracle(q, k, v, starts), rtol=0, atol=FLOAT32)


def test_gradient_equals_the_difference_quotient_of_the_definition():
    (q, k, v), (starts, ends) = make_inputs(131)
    rng = np.random.default_rng(1)
    cotangent = rng.standard_normal(q.shape)

    def objective(q, k, v):
        return jnp.sum(attend_xla(q, k, v, starts, ends) * cotangent.astype(np.float32))

    grads = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(q, k, v)
    for argument, gradient in enumerate(grads):
        direction = rng.standard_normal(gradient.shape)
        ahead, behind = ([np.float64(x) for x in (q, k, v)] for _ in range(2))
        ahead[argument] += 1e-6 * direction
        behind[argument] -= 1e-6 * direction
        slope = np.sum((oracle(*ahead, starts) - oracle(*behind, starts)) * cotangent) / 2e-6
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(gradient * direction) - slope) < 1e-6 * scale


def test_document_ignores_its_neighbours_exactly():
    T, changed = 131, slice(40, 97)
    (q, k, v), _ = make_inputs(T)
    segment_ids = np.repeat([[1, 2, 3]], B, axis=0).repeat([40, 57, 34], axis=1)
    starts, ends = document_bounds(jnp.asarray(segment_ids))
    before = np.asarray(attend_xla(q, k, v, starts, ends))
    for x in (q, k, v):
        x[:, changed] = 100 * x[:, changed] + 7
    after = np.asarray(attend_xla(q, k, v, starts, ends))
    is_same = np.all(before == after, axis=(0, 2, 3))
    np.testing.assert_array_equal(is_same, segment_ids[0] != 2)


def test_gradient_of_a_document_by_its_neighbours_is_exactly_zero():
    (q, k, v), _ = make_inputs(131)
    segment_ids = np.repeat([[1, 2, 3]], B, axis=0).repeat([40, 57, 34], axis=1)
    starts, ends = document_bounds(jnp.asarray(segment_ids))
    is_second = (segment_ids == 2)[:, :, None, None]

    def objective(q, k, v):
        return jnp.sum(jnp.square(attend_xla(q, k, v, starts, ends)) * is_second)

    for gradient in jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(q, k, v):
        is_used = np.any(gradient != 0, axis=(2, 3))
        # A document's first token sees one key, so that its query changes nothing.
        np.testing.assert_array_equal(is_used[:, 41:], segment_ids[:, 41:] == 2)
        assert not is_used[:, :40].any()


def test_bfloat16_inputs_are_accumulated_in_float32():
    # Logits of up to 40: rounded to bfloat16 they would be wrong by 0.1, and the weights by a tenth.
    (q, k, v), (starts, ends) = make_inputs(131, scale=4.0)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    out = attend_xla(q, k, v, starts, ends)
    assert out.dtype == jnp.bfloat16
    expected = oracle(q, k, v, starts)
    np.testing.assert_allclose(np.float64(out), expected, rtol=0, atol=BFLOAT16 * np.abs(np.float64(v)).max())


def test_an_implementation_is_named_or_given_as_a_value():
    (q, k, v), bounds = make_inputs(11)
    by_value = attend(q, k, v, *bounds, implementation=Implementation("xla"))
    np.testing.assert_array_equal(by_value, attend(q, k, v, *bounds, implementation="xla"))
    np.testing.assert_array_equal(by_value, Implementation("xla")(q, k, v, *bounds))


def test_pallas_is_interpreted_only_where_that_is_asked_for():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 20, heads, 32)).astype(np.float32) for heads in (4, 2, 2))
    bounds = document_bounds(jnp.asarray([[1] * 7 + [2] * 13]))
    tiles = Tiles(*[Tile(16, 16, 4, 2)] * 3)
    out = attend(q, k, v, *bounds, implementation=Implementation("pallas", tiles, interpret=True))
    np.testing.assert_allclose(out, oracle(q, k, v, bounds[0]), rtol=0, atol=FLOAT32)
    with pytest.raises(ValueError, match="interpret"):
        attend(q, k, v, *bounds, implementation="pallas")


def test_an_implementation_survives_being_written_as_json():
    for implementation in (
        Implementation("xla"),
        Implementation("pallas", tiles=default_tiles(64, None)),
        Implementation("cudnn_packed", segments=9),
    ):
        record = json.loads(json.dumps(dataclasses.asdict(implementation)))
        assert implementation_from(record) == implementation


def test_a_run_that_recorded_an_implementation_that_is_gone_is_refused_in_one_line():
    record = {"name": "cudnn_causal", "tiles": None, "segments": 0, "interpret": False}
    with pytest.raises(UserError, match=r"^attention.implementation = 'cudnn_causal' is unknown; choose from .*$"):
        implementation_from(record)


def test_unknown_implementation_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'xlaa'.*did you mean xla\?"):
        AttentionConfig(implementation="xlaa")
    (q, k, v), (starts, ends) = make_inputs(3)
    with pytest.raises(UserError, match="'flash'"):
        attend(q, k, v, starts, ends, implementation="flash")


HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
AMPERE = SimpleNamespace(platform="gpu", device_kind="NVIDIA A10", compute_capability="8.6")
TURING = SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5")
RADEON = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
SHAPE = AttentionShape(8, 512, 4, 4, 64, jnp.bfloat16)
BOUNDED, SINGLE = SHAPE._replace(documents_per_row=6), SHAPE._replace(documents_per_row=1)


@pytest.mark.parametrize(
    ("device", "shape", "runs"),
    [
        (HOPPER, SHAPE, ["xla", "pallas"]),
        (HOPPER, BOUNDED, ["xla", "pallas", "cudnn_packed"]),
        (HOPPER, SINGLE, ["xla", "pallas", "cudnn_packed"]),
        (HOPPER, SINGLE._replace(window=100), ["xla", "pallas"]),
        (HOPPER, SINGLE._replace(dtype=jnp.float32), ["xla"]),
        (HOPPER, SINGLE._replace(head_width=96), ["xla", "cudnn_packed"]),
        (HOPPER, SINGLE._replace(head_width=60), ["xla"]),
        (HOPPER, SHAPE._replace(head_width=32, dtype=jnp.float16, key_value_heads=2), ["xla", "pallas"]),
        (AMPERE, SINGLE, ["xla", "pallas"]),
        (TURING, SINGLE, ["xla"]),
        (RADEON, SINGLE, ["xla"]),
        (CPU, SINGLE, ["xla"]),
    ],
)
def test_what_runs_is_what_the_device_and_the_shapes_admit(device, shape, runs):
    assert [name for name in IMPLEMENTATIONS if not why_not(name, shape, device)] == runs


def test_grouped_queries_are_refused_where_jax_packs_them_wrongly(monkeypatch):
    grouped = BOUNDED._replace(key_value_heads=2)
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "grouped" in why_not("cudnn_packed", grouped, HOPPER)
    assert not why_not("cudnn_packed", BOUNDED, HOPPER)
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert not why_not("cudnn_packed", grouped, HOPPER)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pallas", "needs an NVIDIA GPU, and this is a cpu"),
        ("cudnn_packed", "needs an NVIDIA GPU"),
    ],
)
def test_what_was_asked_for_by_name_and_cannot_run_is_an_error(name, reason):
    with pytest.raises(UserError, match=rf"attention.implementation = '{name}' cannot run here: {reason}"):
        choose_implementation(AttentionConfig(implementation=name), SHAPE)


def test_auto_says_why_it_takes_the_plain_one():
    choice = choose_implementation(AttentionConfig(), SHAPE)
    assert choice.implementation == Implementation("xla")
    assert "pallas needs an NVIDIA GPU" in str(choice)


TUNED = Implementation("pallas", tiles=default_tiles(64, None))


def timer_of(**times):
    """Returns a timer of which the named functions take these milliseconds, and the others fail."""

    def timer(functions):
        failures = {name: "RuntimeError: cuDNN is not detected." for name in functions if name not in times}
        return {name: times[name] for name in functions if name in times}, failures

    return timer


def take_now(key, time):
    """Takes what is timed, and keeps nothing."""
    return time()


@pytest.fixture
def on_hopper(monkeypatch):
    """Lets this machine pass for a GPU on which `pallas` is interpreted."""
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    monkeypatch.setattr(
        dispatch, "attend", lambda *inputs, implementation: attend(*inputs, implementation=interpreted(implementation))
    )

    def interpreted(implementation):
        tiles = Tiles(*[Tile(32, 32, 4, 2)] * 3)
        return Implementation("pallas", tiles, interpret=True) if implementation.name == "pallas" else implementation

    monkeypatch.setattr(dispatch, "fastest_tiles", lambda inputs, starts, ends, timer: TUNED.tiles)


SMALL = AttentionShape(2, 70, 2, 1, 32, jnp.bfloat16)
SMALL_BOUNDS = document_bounds(jnp.asarray(np.repeat([[1, 2, 3]], 2, axis=0).repeat([20, 7, 43], axis=1)))


def test_on_a_gpu_auto_takes_pallas_and_compares_it_with_xla(on_hopper):
    choice = choose_implementation(AttentionConfig(), SMALL, *SMALL_BOUNDS)
    assert choice.implementation == Implementation("pallas")
    assert 0 < choice.error < TOLERANCES["bfloat16"]
    assert choice.visible == pytest.approx((20 * 21 + 7 * 8 + 43 * 44) / (70 * 71))
    assert f"error {choice.error:.1e} against xla, forward and backward" in str(choice)
    assert "48% of the causal pairs are visible" in str(choice)


def test_a_choice_that_computes_something_else_stops_the_run(on_hopper, monkeypatch):
    right = dispatch.attend

    def leaking(q, k, v, starts, ends, *, implementation):
        starts = starts - (starts > 0) if implementation.name == "pallas" else starts
        return right(q, k, v, starts, ends, implementation=implementation)

    monkeypatch.setattr(dispatch, "attend", leaking)
    with pytest.raises(UserError, match=r"'pallas' differs from xla by .* --attention.implementation=xla"):
        # Other shapes than in the test above, which JAX would find compiled.
        choose_implementation(AttentionConfig(), SMALL._replace(heads=4), *SMALL_BOUNDS)


def test_too_little_memory_for_a_choice_is_no_reason_to_advise_another_that_takes_more(on_hopper, monkeypatch):
    def no_memory(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(dispatch, "_error", no_memory)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        choose_implementation(AttentionConfig(), SMALL, *SMALL_BOUNDS)


PACKED = SMALL._replace(documents_per_row=3, key_value_heads=2)


def test_on_a_gpu_auto_times_what_can_run_and_takes_the_fastest(on_hopper):
    options = {"take": take_now, "timer": timer_of(cudnn_packed=3.0, pallas=1.25, xla=0.1)}
    choice = choose_implementation(AttentionConfig(), PACKED, *SMALL_BOUNDS, **options)
    assert choice.implementation == TUNED
    # The reference is not timed: nothing real is slower.
    today = datetime.date.today().isoformat()
    assert choice.reason == f"the fastest of pallas 1.25 ms, cudnn_packed 3 ms, as timed on {today}"
    assert choice.error is not None
    options["timer"] = timer_of(pallas=1.25)
    reason = choose_implementation(AttentionConfig(), PACKED, *SMALL_BOUNDS, **options).reason
    failed = "cudnn_packed failed (RuntimeError: cuDNN is not detected.)"
    assert reason == f"the fastest of pallas 1.25 ms, {failed}, as timed on {today}"


def test_kernels_that_fail_with_every_tile_are_named_and_not_timed(on_hopper, monkeypatch):
    def fails(inputs, starts, ends, timer):
        raise RuntimeError("no such target\nat all")

    monkeypatch.setattr(dispatch, "fastest_tiles", fails)
    key, seen = {}, []

    def take(shape, time):
        key.update(shape)
        seen.append(time())
        return None

    options = {"take": take, "timer": timer_of(cudnn_packed=3.0, pallas=1.0)}
    choice = choose_implementation(AttentionConfig(), PACKED, *SMALL_BOUNDS, **options)
    assert choice.implementation == Implementation("pallas"), "what is not taken is left to the preference"
    assert seen[0].choice["name"] == "cudnn_packed" and seen[0].failures == {"pallas": "RuntimeError: no such target"}
    assert key["rows"] == 2 and key["dtype"] == "bfloat16" and key["among"] == ["pallas", "cudnn_packed"]
    with pytest.raises(UserError, match=r"nothing that was timed runs on this device: .*no such target.*=xla"):
        choose_implementation(AttentionConfig(), SMALL, *SMALL_BOUNDS, take=take_now, timer=timer_of())


def test_nothing_is_timed_where_it_is_named_or_only_the_reference_runs_or_there_is_no_batch(on_hopper, monkeypatch):
    def take(key, time):
        pytest.fail("it was timed")

    named = AttentionConfig(implementation="pallas")
    assert choose_implementation(named, SMALL, *SMALL_BOUNDS, take=take).reason == "as configured"
    assert choose_implementation(AttentionConfig(), SMALL, take=take).implementation == Implementation("pallas")
    monkeypatch.setattr(jax, "devices", lambda: [CPU])
    choice = choose_implementation(AttentionConfig(), SMALL, *SMALL_BOUNDS, take=take)
    assert choice.implementation == Implementation("xla") and "needs an NVIDIA GPU" in choice.reason


def test_attention_is_timed_and_compared_on_no_more_rows_than_fill_a_gpu(on_hopper, monkeypatch):
    monkeypatch.setattr(dispatch, "_TRIAL_TOKENS", 100)
    keys = []
    choice = choose_implementation(
        AttentionConfig(),
        SMALL,
        *SMALL_BOUNDS,
        take=lambda key, time: keys.append(key) or time(),
        timer=timer_of(pallas=1),
    )
    assert keys[0]["rows"] == 1 and choice.implementation == TUNED and choice.error < TOLERANCES["bfloat16"]


def test_an_implementation_that_fails_when_it_is_compared_ends_in_one_line(on_hopper):
    shape = SMALL._replace(documents_per_row=3, key_value_heads=2)
    config = AttentionConfig(implementation="cudnn_packed")
    with pytest.raises(UserError, match=r"'cudnn_packed' fails on this device .*--attention.implementation=xla"):
        choose_implementation(config, shape, *SMALL_BOUNDS)


def test_a_resumed_run_keeps_what_it_began_with(on_hopper):
    options = {"take": take_now, "timer": timer_of(cudnn_packed=1.0)}
    choice = choose_implementation(AttentionConfig(), PACKED, *SMALL_BOUNDS, recorded=TUNED, **options)
    assert choice.implementation == TUNED
    assert choice.reason == "as the run began"
    assert choice.error is not None
    # What cannot run here any more is chosen anew, and what is asked for by name comes first.
    packed = Implementation("cudnn_packed", segments=4)
    choice = choose_implementation(AttentionConfig(), SMALL, *SMALL_BOUNDS, recorded=packed)
    assert choice.implementation == Implementation("pallas")
    choice = choose_implementation(AttentionConfig(implementation="xla"), SMALL, *SMALL_BOUNDS, recorded=TUNED)
    assert choice.implementation == Implementation("xla")


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        (SHAPE, "pallas"),
        (SHAPE._replace(head_width=96), "xla"),
        (BOUNDED._replace(head_width=96), "cudnn_packed"),
        (BOUNDED._replace(head_width=96, rows=2**15, row_length=2**16), "xla"),
    ],
)
def test_auto_takes_what_skips_blocks_before_what_does_not(on_hopper, shape, first):
    assert choose_implementation(AttentionConfig(), shape).implementation.name == first


def test_what_cannot_run_on_the_batches_of_every_phase_is_not_taken(on_hopper):
    bounded = BOUNDED._replace(head_width=96)
    too_long = bounded._replace(rows=2**15, row_length=2**16)
    assert choose_implementation(AttentionConfig(), bounded, others=[too_long]).implementation.name == "xla"
    with pytest.raises(UserError, match=r"'cudnn_packed' cannot run here: counts positions in 32 bits"):
        choose_implementation(AttentionConfig(implementation="cudnn_packed"), bounded, others=[too_long])


def test_packed_attention_needs_room_for_a_document_and_padding():
    with pytest.raises(UserError, match=r"cudnn_packed needs segments \(0\)"):
        Implementation("cudnn_packed")


def test_the_bound_on_documents_reaches_cudnn_with_one_more_for_padding(on_hopper):
    config = AttentionConfig(implementation="cudnn_packed")
    assert choose_implementation(config, BOUNDED).implementation == Implementation("cudnn_packed", segments=7)
