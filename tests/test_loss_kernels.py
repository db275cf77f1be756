"""The loss's kernels, interpreted on the CPU, against XLA's way and float64; how they lower for CUDA.

That the compiled kernels compute the same takes a GPU to show, and is not claimed here.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.loss import cross_entropy, find_kernels, token_scores
from jaxformer.loss_kernels import TILES, Kernels, Tile, candidate_tiles, why_not

# Of 300 ids 64 do not divide the last, of 53 tokens 16 the last.
N, D, V = 53, 48, 300
KERNELS = Kernels(Tile(16, 64, 32, 4, 2), interpret=True)
TOKENS = {"token_count": 211}  # The last tile of ids is masked whole.
CASES = (
    *({}, {"logit_soft_cap": 1.5}, {"z_loss_coefficient": 0.1}, TOKENS),
    TOKENS | {"logit_soft_cap": 1.5, "z_loss_coefficient": 0.1},
)
# Largest error of sums and gradients, relative to the largest value.
TOLERANCES = {"float32": 2e-6, "bfloat16": 2**-7}


@pytest.fixture(scope="module", autouse=True)
def cpu():
    """Where a GPU is at hand too: its float32 matmuls are not float32 by default."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def make_inputs(dtype="float32", scale=0.4, width=D, vocabulary_size=V):
    rng = np.random.default_rng(0)
    features = (scale * rng.standard_normal((N, width))).astype(jnp.dtype(dtype))
    unembedding = rng.standard_normal((vocabulary_size, width)).astype(jnp.dtype(dtype))
    targets = rng.integers(0, TOKENS["token_count"], N, dtype=np.int32)
    weights = rng.choice([0.0, 0.3, 1.0, 2.0], N).astype(np.float32)
    return features, unembedding, targets, weights


def sums_and_gradients(implementation, inputs, chunk_tokens=32, **options):
    def objective(features, unembedding):
        sums = cross_entropy(
            features, unembedding, *inputs[2:], **options, chunk_tokens=chunk_tokens, implementation=implementation
        )
        return 3 * sums.objective / sums.weight, sums

    grads, sums = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(*inputs[:2])
    return [*sums[:3], *grads]


def assert_close(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    actual, expected = np.float64(actual), np.float64(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_sums_and_gradients_equal_those_of_xla(dtype, options):
    inputs = make_inputs(dtype)
    ours, theirs = (sums_and_gradients(each, inputs, **options) for each in (KERNELS, "xla"))
    for x, y in zip(ours[:3], theirs[:3], strict=True):
        assert_close(x, y, TOLERANCES["float32"])
    for x, y in zip(ours[3:], theirs[3:], strict=True):
        assert_close(x, y, TOLERANCES[dtype])
    is_weighted = inputs[3] > 0
    np.testing.assert_array_equal(np.any(np.asarray(ours[3], np.float32) != 0, axis=1), is_weighted)
    assert not np.any(np.asarray(ours[4], np.float32)[options.get("token_count", V) :])


@pytest.mark.parametrize("options", [{}, TOKENS | {"logit_soft_cap": 1.5}], ids=["plain", "all"])
@pytest.mark.parametrize("count", [None, 20])
def test_token_scores_equal_those_of_xla(count, options):
    features, unembedding, targets, _ = make_inputs("bfloat16")
    logits = np.asarray(features, np.float32) @ np.asarray(unembedding[: TOKENS["token_count"]], np.float32).T
    targets = np.where(np.arange(N) % 2, targets, logits.argmax(axis=1)).astype(np.int32)
    ours, theirs = (
        token_scores(features, unembedding, targets, count=count, chunk_tokens=16, implementation=each, **options)
        for each in (KERNELS, "xla")
    )
    assert_close(ours.nats_N[:count], theirs.nats_N[:count], TOLERANCES["float32"])
    np.testing.assert_array_equal(ours.is_likeliest_N[:count], theirs.is_likeliest_N[:count])
    assert 0 < np.mean(ours.is_likeliest_N[:count]) < 1


@pytest.mark.parametrize("sizes", [{}, {"width": 16}, {"vocabulary_size": 256}, {"vocabulary_size": 220}], ids=str)
@pytest.mark.parametrize("tile", [candidate_tiles(0.0, None)[0], Tile(32, 32, 16, 4, 2)], ids=str)
def test_any_tile_and_sizes_give_the_same(sizes, tile):
    inputs = make_inputs(**sizes)
    ours, theirs = (sums_and_gradients(each, inputs, 0, **TOKENS) for each in (Kernels(tile, True), "xla"))
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x, y, TOLERANCES["float32"])


def test_tokens_in_groups_that_take_turns_are_all_computed(monkeypatch):
    monkeypatch.setattr("jaxformer.loss_kernels._GROUP_BYTES", 48 * D * 4)  # Of three tiles, and the last of fewer.
    inputs = make_inputs()
    ours, theirs = (sums_and_gradients(each, inputs, 64) for each in (KERNELS, "xla"))
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x, y, TOLERANCES["float32"])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_soft_cap_of_extreme_logits_is_the_cap(sign):
    features, unembedding, targets, weights = make_inputs()
    features[:], unembedding[:] = 0, 0
    features[:, 0], unembedding[:, 0] = 1, sign * 1e30 * (np.arange(V) == targets[0])
    inputs = features, unembedding, targets, weights
    _, nats, _, *gradients = sums_and_gradients(KERNELS, inputs, logit_soft_cap=30.0)
    log_partition = np.log(np.exp(30.0 * sign) + V - 1)
    nats_N = log_partition - 30.0 * sign * (targets == targets[0])
    np.testing.assert_allclose(nats, weights @ nats_N, rtol=1e-6)
    assert all(np.isfinite(each).all() for each in gradients)


@pytest.mark.parametrize("logits", [(1e4, 1e4), (-1e4, -1e4), (1e4, -1e4), (0.0, 0.0)], ids=str)
def test_extreme_logits_are_finite_and_right(logits):
    features, unembedding, targets, weights = make_inputs()
    features[:], unembedding[:] = 0, 0
    is_first_V = np.arange(V) == targets[0]
    features[:, 0], unembedding[:, 0] = 1, np.where(is_first_V, *logits)
    _, nats, weight, d_features, d_unembedding = sums_and_gradients(KERNELS, (features, unembedding, targets, weights))
    probabilities_V = is_first_V * 1.0 if logits[0] != logits[1] else np.full(V, 1 / V)
    nats_N = np.where(targets == targets[0], 0, 2e4) if logits[0] != logits[1] else np.full(N, np.log(V))
    # The log-partition is rounded to 1e-3 where it is 1e4.
    tolerance = 1e-3 if logits[0] else 1e-6
    np.testing.assert_allclose(nats, weights @ nats_N, rtol=tolerance)
    is_target_NV = targets[:, None] == np.arange(V)[None, :]
    expected_V = 3 * (weights @ (probabilities_V[None, :] - is_target_NV)) / weight
    np.testing.assert_allclose(d_unembedding[:, 0], expected_V, atol=tolerance * np.abs(expected_V).max())
    assert np.isfinite(d_features).all()


@pytest.mark.parametrize("fill", [-50.0, 50.0])
def test_masked_ids_have_no_part_however_likely(fill):
    features, unembedding, targets, weights = make_inputs()
    other = unembedding.copy()
    other[TOKENS["token_count"] :] *= fill
    ours, theirs = (
        sums_and_gradients(KERNELS, (features, each, targets, weights), **TOKENS) for each in (unembedding, other)
    )
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def test_same_inputs_give_the_same_bits():
    first, second = (sums_and_gradients(KERNELS, make_inputs("bfloat16")) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class Device:
    """A GPU that is not here."""

    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


def test_auto_takes_the_kernels_where_they_can_run(monkeypatch):
    cases = (
        ("9.0", 384, "bfloat16", ""),
        ("8.9", 384, "float16", ""),
        ("7.5", 384, "float16", "compute capability 8.0"),
        ("9.0", 384, "float32", "bfloat16 or float16"),
        ("9.0", 24, "bfloat16", "a width that 16 divides"),
    )
    for capability, width, dtype, reason in cases:
        device = Device(capability)
        refused = why_not(width, dtype, device)
        assert reason in refused and bool(refused) == bool(reason)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        kernels = find_kernels("auto", width, dtype)
        assert (kernels is None) == bool(reason)
        assert find_kernels("xla", width, dtype) is None
        by_name = {name: find_kernels(name, width, dtype) for name in TILES}
        assert by_name.pop("pallas") == Kernels(Tile(128, 256, 64, 8, 3))
        assert by_name == {"pallas:" + "x".join(map(str, each.tile)): each for each in by_name.values()}
    monkeypatch.undo()
    assert find_kernels("auto", 384, jnp.bfloat16) is None, "this is a CPU"


@pytest.mark.parametrize(("capability", "soft_cap"), [("10.0", 0.0), ("12.0", 0.0), ("9.0", 30.0), ("8.0", 30.0)])
def test_the_default_is_a_small_tile_with_a_soft_cap_and_from_capability_10_on(monkeypatch, capability, soft_cap):
    monkeypatch.setattr(jax, "devices", lambda: [Device(capability)])
    for name in ("auto", "pallas"):
        assert find_kernels(name, 384, "bfloat16", soft_cap) == Kernels(Tile(128, 128, 64, 8, 3))


def lower_for_cuda(function, *arguments) -> str:
    """Returns the text of the module that a GPU's XLA would get; Pallas asks for a device, and this one need not be."""
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.filterwarnings("ignore:.*Triton:DeprecationWarning")
@pytest.mark.parametrize("tile", candidate_tiles(0.0, None), ids=str)
@pytest.mark.parametrize(
    ("dtype", "options"), [("bfloat16", {}), ("float16", TOKENS | {"logit_soft_cap": 3.0})], ids=str
)
def test_the_loss_lowers_for_cuda_as_two_kernels_whose_loads_are_pipelined(dtype, options, tile):
    shapes = [((N, D), dtype), ((V, D), dtype), ((N,), "int32"), ((N,), "float32")]
    arguments = [jax.ShapeDtypeStruct(*each) for each in shapes]

    def total(*arguments):
        return cross_entropy(*arguments, **options, implementation=Kernels(tile)).objective

    for function, names in (
        (total, ["cross_entropy_forward"]),
        (jax.grad(total, argnums=(0, 1)), ["cross_entropy_forward", "cross_entropy_gradient"]),
    ):
        module = lower_for_cuda(function, *arguments)
        found = re.findall(r'custom_call @__gpu\$xla.gpu.triton\(.*?[ {]name = "(\w+)"', module)
        assert found == names
        assert module.count(r"\00for\00") == len(names) and r"\00condition\00" not in module
