"""What every architecture promises, whatever its parts; see `cases`."""

import functools
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from parts.cases import (
    BASE,
    CASES,
    FIRST,
    LAST,
    ON_EIGHT_DEVICES,
    ROW,
    ROWS,
    T,
    config_of,
    initial,
    make_batch,
    probe,
    shown,
)

from jaxformer.evaluation.decoding import decode, next_token_logits
from jaxformer.evaluation.sampling import Sampling
from jaxformer.flops import forward_operations, parameter_count
from jaxformer.layers import SelfUpdated
from jaxformer.model import ModelConfig, abstract_model
from jaxformer.step import cast_kernels

V = BASE.vocabulary_size
FLOAT32 = 2e-5
DOCUMENT = (ROW, slice(FIRST, LAST))

every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """What is compiled here runs for moments."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def only(*where, value=1.0, like=(ROWS, T)):
    """Returns zeros but for one place."""
    x = np.zeros(like, np.float32)
    x[where] = value
    return x


@functools.cache
def params_of(name):
    return shown(initial(name))


@functools.cache
def of_document(name, changed=None):
    """Returns the probe of one document; `changed` says which tokens are others."""
    batch = make_batch()
    tokens_BT = batch.tokens_BT
    if changed == "neighbours":
        tokens_BT = np.where(only(*DOCUMENT) > 0, tokens_BT, (tokens_BT + 1 + np.arange(T)) % V)
    if changed == "last":
        tokens_BT = (tokens_BT + (only(ROW, LAST - 1) > 0)) % V
    cotangent_V = np.random.default_rng(1).standard_normal(V).astype(np.float32)
    batch = batch._replace(tokens_BT=tokens_BT.astype(np.int32), loss_weights_BT=only(*DOCUMENT))
    return probe(name, params_of(name), batch, only(*DOCUMENT)[..., None] * cotangent_V)


@every_case
def test_document_sees_nothing_of_its_neighbours(name):
    logits_BTV, sums, of_x_BTD = of_document(name)[:3]
    for one, other in zip((logits_BTV, of_x_BTD), of_document(name, "neighbours")[:3:2], strict=True):
        np.testing.assert_array_equal(one[DOCUMENT], other[DOCUMENT])
        assert np.any(one[ROW, :FIRST] != other[ROW, :FIRST]) or one is of_x_BTD
    assert np.abs(of_x_BTD[DOCUMENT]).min(axis=-1).max() > 0
    np.testing.assert_array_equal(np.where(only(*DOCUMENT)[..., None] > 0, 0, of_x_BTD), 0)
    for key, total in of_document(name, "neighbours")[1].items():
        np.testing.assert_array_equal(total, sums[key], err_msg=key)


@pytest.mark.device_free
@every_case
def test_logits_depend_on_no_later_token_and_their_gradient_on_all_earlier_ones(name):
    before, after = of_document(name)[0], of_document(name, "last")[0]
    np.testing.assert_array_equal(before[ROW, : LAST - 1], after[ROW, : LAST - 1])
    assert np.any(before[ROW, LAST - 1] != after[ROW, LAST - 1])
    batch = make_batch()._replace(loss_weights_BT=np.zeros((ROWS, T), np.float32))
    cotangent_BTV = only(ROW, LAST - 2, like=(ROWS, T, V), value=np.arange(V))
    of_x_BTD = probe(name, params_of(name), batch, cotangent_BTV)[2]
    reached_BT = np.any(np.asarray(of_x_BTD) != 0, axis=-1)
    np.testing.assert_array_equal(reached_BT, only(ROW, slice(FIRST, LAST - 1)) > 0)


@pytest.mark.device_free
@every_case
def test_packed_document_equals_the_document_alone(name):
    packed, batch = of_document(name), make_batch()
    length, alone = LAST - FIRST, np.zeros((ROWS, T), np.int32)
    tokens_BT = alone.copy()
    tokens_BT[0, :length] = batch.tokens_BT[DOCUMENT]
    starts_BT = alone + length * (np.arange(T) >= length)
    batch = batch._replace(
        tokens_BT=tokens_BT,
        positions_BT=np.arange(T, dtype=np.int32) - starts_BT,
        document_starts_BT=starts_BT.astype(np.int32),
        document_ends_BT=np.where(starts_BT > 0, T, length).astype(np.int32),
        loss_weights_BT=only(0, slice(0, length)),
    )
    cotangent_V = np.random.default_rng(1).standard_normal(V).astype(np.float32)
    alone = probe(name, params_of(name), batch, batch.loss_weights_BT[..., None] * cotangent_V)
    for one, other in zip(packed[:3:2], alone[:3:2], strict=True):
        np.testing.assert_allclose(one[DOCUMENT], other[0, :length], rtol=0, atol=10 * FLOAT32)
    for key, total in alone[1].items():
        np.testing.assert_allclose(total, packed[1][key], rtol=FLOAT32, err_msg=key)
    logits_TV = next_token_logits(model_of(name), tokens_BT[0, :length].tolist())
    np.testing.assert_allclose(logits_TV, packed[0][DOCUMENT], rtol=0, atol=FLOAT32)


@functools.cache
def model_of(name, dtype=jnp.float32):
    return nnx.merge(nnx.graphdef(abstract_model(config_of(name))), cast_kernels(params_of(name), dtype))


@every_case
def test_decoded_tokens_are_the_likeliest_of_the_whole_text(name):
    prompts = [[5, 2, 30, 11, 8], [1]]
    texts_BX = np.stack(list(decode(model_of(name), prompts, Sampling(tokens=9, temperature=0.0))), axis=1)
    for prompt, text in zip(prompts, texts_BX.tolist(), strict=True):
        logits_TV = next_token_logits(model_of(name), prompt + text)
        assert logits_TV[len(prompt) - 1 : -1].argmax(axis=1).tolist() == text
    assert len(np.unique(texts_BX)) > 2


@pytest.mark.device_free
@every_case
def test_bfloat16_is_near_float32(name):
    ids = np.random.default_rng(0).integers(0, V, 32).tolist()
    exact_TV, rounded_TV = (next_token_logits(model_of(name, dtype), ids) for dtype in (jnp.float32, jnp.bfloat16))
    error_T = np.abs(rounded_TV - exact_TV).max(axis=1) / exact_TV.std()
    # Where two experts are nearly as good, another one may be taken.
    assert 1e-4 < np.median(error_T) < 0.05 and np.isfinite(error_T).all(), error_T


@pytest.mark.device_free
@every_case
def test_parameters_that_the_plain_model_has_too_begin_as_there(name):
    group = config_of(name).group
    plain = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(initial("plain"))}
    shared = 0
    for path, leaf in nnx.to_flat_state(initial(name)):
        here, layers = path, slice(None)
        if "layers" in path:
            here, layers = ("blocks", *path[3:]), slice(path[2], None, group)
        if here in plain and plain[here][layers].shape == leaf[...].shape:
            shared += 1
            np.testing.assert_array_equal(leaf[...], plain[here][layers], err_msg=str(path))
    assert shared >= 4
    assert sum(leaf.size for leaf in jax.tree.leaves(initial(name))) == parameter_count(config_of(name))


@pytest.mark.device_free
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].keys() == {"residual"}])
def test_lanes_begin_as_the_plain_model_and_learn_to_differ(name):
    batch, cotangent_BTV = make_batch(), np.eye(V, dtype=np.float32)[None, :T].repeat(ROWS, 0)
    logits_BTV, _, _, gradient = probe(name, initial(name), batch, cotangent_BTV)
    plain_BTV = probe("plain", initial("plain"), batch, cotangent_BTV)[0]
    np.testing.assert_allclose(logits_BTV, plain_BTV, rtol=0, atol=1e-6)
    write_LJ = np.asarray(gradient["blocks"]["attention_residual"]["write"][...])
    assert np.ptp(write_LJ[0]) > 1e-3 * np.abs(write_LJ[0]).max()


def test_operations_counted_are_those_of_xla():
    model = {"vocabulary_size": 4096, "width": 1024, "depth": 1, "heads": 8, "scan_unroll": 1}
    for changes in ({}, CASES["lanes"], CASES["turns_and_own_code"] | {"feed_forward": None}):
        config, length = ModelConfig(**{**model, **changes, "window_pattern": "", "sliding_window": 0}), 16
        graphdef, params = nnx.split(abstract_model(config))
        tokens_1T = jax.ShapeDtypeStruct((1, length), jnp.int32)
        forward = jax.jit(lambda params, tokens, graphdef=graphdef: nnx.merge(graphdef, params)(tokens, tokens, tokens))
        counted = forward_operations(config, length)
        of_attention = length * sum(counted.per_key)  # XLA computes what is masked, too.
        xla = forward.lower(params, tokens_1T).cost_analysis()["flops"] / length
        assert counted.matmuls + of_attention == pytest.approx(xla, rel=0.01)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What came out on eight devices."""
    path = tmp_path_factory.mktemp("eight") / "out"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}",
        "PYTHONPATH": os.pathsep.join([str(tiny_run.REPOSITORY), str(tiny_run.REPOSITORY / "tests")]),
    }
    command = [sys.executable, "-m", "parts.on_eight_devices", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return pickle.loads(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_EIGHT_DEVICES)
def test_step_on_eight_devices_in_micro_batches_is_that_of_one_batch_on_one(name, eight):
    batch, params = make_batch(), params_of(name)
    logits_BTV = probe(name, params, batch, np.zeros((ROWS, T, V), np.float32))[0]
    weights_BT1 = batch.loss_weights_BT[..., None]
    is_target_BTV = np.eye(V, dtype=np.float32)[batch.targets_BT]
    cotangent_BTV = weights_BT1 * (jax.nn.softmax(logits_BTV) - is_target_BTV)
    _, sums, _, gradient = probe(name, params, batch, cotangent_BTV)
    weight = weights_BT1.sum()

    def updated(path, p):
        gradient_of_p = flat[path][...] / weight
        return p.rule(p[...], gradient_of_p) if isinstance(p, SelfUpdated) else p[...] - gradient_of_p

    flat = dict(nnx.to_flat_state(gradient))
    expected = [updated(path, p) for path, p in nnx.to_flat_state(params)]
    for ours, one in zip(eight[name]["params"], expected, strict=True):
        np.testing.assert_allclose(ours, one, rtol=0, atol=FLOAT32)
    nats_BTV = -jax.nn.log_softmax(logits_BTV) * is_target_BTV * weights_BT1
    np.testing.assert_allclose(eight[name]["loss"], nats_BTV.sum() / weight, rtol=FLOAT32)
    for key, total in sums.items():
        np.testing.assert_allclose(eight[name]["reported"][key], total / weight, rtol=FLOAT32, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_EIGHT_DEVICES)
def test_step_resumed_equals_the_uninterrupted_one_bit_by_bit(name, eight):
    assert eight[name]["resumed"]
