"""The architecture against a numpy transformer, and its promises on documents, causality and positions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer.attention.document_mask import document_bounds
from jaxformer.config import UserError
from jaxformer.experiment.resolution import load_experiment
from jaxformer.layers import rotate
from jaxformer.loss import cross_entropy
from jaxformer.model import ModelConfig, Transformer

FLOAT32 = 1e-5
B, T, V = 2, 11, 41
BASE = ModelConfig(vocabulary_size=V, width=24, depth=2, heads=4, feed_forward_width=20)
OPTIONS = {
    "baseline": {},
    "grouped_query": {"key_value_heads": 2},
    "head_width": {"head_width": 10},
    "qk_norm": {"qk_norm": True, "norm_epsilon": 0.03},
    "swiglu": {"activation": "swiglu"},
    "relu2": {"activation": "relu2"},
    "layernorm": {"norm": "layernorm", "norm_epsilon": 0.03},
    "untied": {"tied_embeddings": False},
    "soft_cap": {"logit_soft_cap": 0.5},
    "learned_positions": {"learned_positions": 13},
    "sliding_window": {"sliding_window": 2},
}
# Every option once, for what takes long to compile.
MIXED = {
    "baseline": {},
    "modern": OPTIONS["grouped_query"] | OPTIONS["qk_norm"] | OPTIONS["swiglu"] | OPTIONS["untied"],
    "learned": (
        OPTIONS["learned_positions"]
        | OPTIONS["relu2"]
        | OPTIONS["layernorm"]
        | OPTIONS["soft_cap"]
        | OPTIONS["head_width"]
        | OPTIONS["sliding_window"]
    ),
}
# Two rows of documents; 0 is padding.
SEGMENT_IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0]], np.int32)
STARTS, ENDS = (np.asarray(bound) for bound in document_bounds(jnp.asarray(SEGMENT_IDS)))
POSITIONS = np.arange(T, dtype=np.int32) - STARTS
# Every token of its own, so that a row of the embedding table is the input at one place.
TOKENS = np.random.default_rng(0).permutation(V)[: B * T].reshape(B, T).astype(np.int32)


@functools.cache
def make_model(option, **changes):
    """Returns a model with parameters of our own: large enough that each shows in the logits, and no gain is 1."""
    config = dataclasses.replace(BASE, **(OPTIONS | MIXED)[option], **changes)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(params=3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype(np.float32), params)
    return nnx.merge(graphdef, params)


@nnx.jit
def logits_of(model, tokens, segment_ids, positions):
    return model(tokens, segment_ids, positions)


def numpy_transformer(params, config, tokens, positions, starts):
    """The logits (T, V) of one row in float64, by the formulas."""
    p = jax.tree.map(np.float64, nnx.to_pure_dict(params))
    K, R = config.K, config.heads // config.G

    def rms_norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale

    def layer_norm(x, scale):
        return (
            (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + config.norm_epsilon) * scale
        )

    norm = layer_norm if config.norm == "layernorm" else rms_norm

    def rope(x_TK):
        if config.learned_positions:
            return x_TK
        angles = positions[:, None] * config.rope_base ** -(np.arange(K // 2) / (K // 2))
        turned = (x_TK[:, : K // 2] + 1j * x_TK[:, K // 2 :]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1)

    activation = {
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu2": lambda x: np.maximum(x, 0) ** 2,
        "swiglu": lambda x: x[:, : config.F] / (1 + np.exp(-x[:, : config.F])) * x[:, config.F :],
    }[config.activation]
    t = np.arange(len(tokens))
    in_window = t > t[:, None] - (config.sliding_window or len(t))
    mask = np.where((t <= t[:, None]) & (t >= starts[:, None]) & in_window, 0, -np.inf)
    x = p["embedding"][tokens]
    if config.learned_positions:
        x = x + p["position_embedding"][positions]
    for layer in range(config.depth):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["blocks"])
        qkv = norm(x, block["attention_norm"]["scale"]) @ block["attention"]["qkv"]
        heads = np.split(qkv, qkv.shape[1] // K, axis=1)
        q, k, v = heads[: config.heads], heads[config.heads : config.heads + config.G], heads[-config.G :]
        if config.qk_norm:
            q = [rms_norm(head, block["attention"]["q_norm"]["scale"]) for head in q]
            k = [rms_norm(head, block["attention"]["k_norm"]["scale"]) for head in k]
        attended = []
        for h in range(config.heads):
            weights = np.exp(rope(q[h]) @ rope(k[h // R]).T / math.sqrt(K) + mask)
            attended.append(weights / weights.sum(axis=1, keepdims=True) @ v[h // R])
        x = x + np.concatenate(attended, axis=1) @ block["attention"]["out"]
        x = (
            x
            + activation(norm(x, block["feed_forward_norm"]["scale"]) @ block["feed_forward"]["up"])
            @ block["feed_forward"]["down"]
        )
    logits = norm(x, p["final_norm"]["scale"]) @ p["embedding" if config.tied_embeddings else "unembedding"].T
    return config.logit_soft_cap * np.tanh(logits / config.logit_soft_cap) if config.logit_soft_cap else logits


@pytest.mark.parametrize("option", OPTIONS)
def test_forward_pass_equals_a_numpy_transformer(option):
    model = make_model(option)
    logits = logits_of(model, TOKENS, SEGMENT_IDS, POSITIONS)
    for b in range(B):
        expected = numpy_transformer(nnx.state(model), model.config, TOKENS[b], POSITIONS[b], STARTS[b])
        np.testing.assert_allclose(logits[b], expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("option", OPTIONS)
def test_packed_document_ignores_its_neighbours(option):
    before = np.asarray(logits_of(make_model(option), TOKENS, SEGMENT_IDS, POSITIONS))
    changed = np.where(SEGMENT_IDS == 1, (TOKENS + 1) % V, TOKENS)
    after = np.asarray(logits_of(make_model(option), changed, SEGMENT_IDS, POSITIONS))
    np.testing.assert_array_equal(np.all(before == after, axis=2), SEGMENT_IDS != 1)


@pytest.mark.parametrize("option", MIXED)
def test_token_depends_on_itself_and_on_the_earlier_tokens_of_its_document_within_its_windows_reach_only(option):
    model = make_model(option)
    graphdef, embedding, others = nnx.split(model, lambda path, _: path == ("embedding",), ...)
    weights = np.random.default_rng(0).standard_normal(model.config.width).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def gradient(embedding):
        features = nnx.merge(graphdef, embedding, others).features(TOKENS, POSITIONS, STARTS, ENDS)
        return (features @ weights).reshape(B, T)

    gradient_BTVD = jax.tree.leaves(gradient(embedding))[0]
    gradient_BTBS = np.abs(gradient_BTVD[:, :, TOKENS]).sum(axis=-1)
    # Each layer looks a window further back.
    reach = model.config.depth * (model.config.sliding_window - 1) if model.config.sliding_window else T
    for b, t, other, s in np.ndindex(B, T, B, T):
        sees = b == other and STARTS[b, t] <= s <= t and t - s <= reach
        assert (gradient_BTBS[b, t, other, s] > 0) == sees, (b, t, other, s)


@pytest.mark.parametrize("option", MIXED)
def test_gradient_of_a_documents_loss_is_the_same_whatever_its_neighbours(option):
    graphdef, params = nnx.split(make_model(option))
    config = make_model(option).config
    targets = (TOKENS.reshape(-1) + 2) % V

    @jax.jit
    @jax.grad
    def gradient(params, tokens, weights):
        model = nnx.merge(graphdef, params)
        features = model.features(tokens, POSITIONS, STARTS, ENDS)
        return cross_entropy(
            features, model.unembedding_VD, targets, weights.reshape(-1), logit_soft_cap=config.logit_soft_cap
        ).objective

    changed = np.where(SEGMENT_IDS == 1, (TOKENS + 1) % V, TOKENS)
    of_neighbours, of_all = (SEGMENT_IDS > 1).astype(np.float32), (SEGMENT_IDS > 0).astype(np.float32)
    before, after = (jax.tree.leaves(gradient(params, tokens, of_neighbours)) for tokens in (TOKENS, changed))
    whole = jax.tree.leaves(gradient(params, changed, of_all))
    for x, y, z in zip(before, after, whole, strict=True):
        assert np.any(x != 0)
        np.testing.assert_array_equal(x, y)
        assert np.any(y != z)


@pytest.mark.parametrize("option", OPTIONS)
def test_packed_document_equals_the_document_alone(option):
    packed = logits_of(make_model(option), TOKENS, SEGMENT_IDS, POSITIONS)
    for row, (b, first, last) in enumerate([(0, 4, 9), (1, 6, 8)]):
        length = last - first
        alone = np.zeros((3, B, T), np.int32)
        alone[:, row, :length] = TOKENS[b, first:last], np.ones(length), np.arange(length)
        logits = logits_of(make_model(option), *alone)
        np.testing.assert_allclose(packed[b, first:last], logits[row, :length], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("depth", "window"), [(2, 5), (3, 3)])
def test_logits_change_with_a_token_within_reach_of_the_windows_and_with_none_before(depth, window):
    model = make_model("baseline", depth=depth, sliding_window=window)
    whole = np.ones((B, T), np.int32), np.tile(np.arange(T), (B, 1))
    changed, reach = TOKENS.copy(), depth * (window - 1)
    changed[:, 1] = (changed[:, 1] + 1) % V
    before, after = (np.asarray(logits_of(model, tokens, *whole)) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(np.any(before != after, axis=2), [[1 <= t <= 1 + reach for t in range(T)]] * B)
    assert 1 + reach < T - 1, "every token is within reach"


def test_window_as_long_as_the_row_equals_no_window_exactly():
    whole = np.ones((B, T), np.int32), np.tile(np.arange(T), (B, 1))
    for documents in (whole, (SEGMENT_IDS, POSITIONS)):
        unlimited = logits_of(make_model("baseline"), TOKENS, *documents)
        for window in (T, T + 4):
            logits = logits_of(make_model("baseline", sliding_window=window), TOKENS, *documents)
            np.testing.assert_array_equal(logits, unlimited)
    shorter = logits_of(make_model("baseline", sliding_window=T - 1), TOKENS, *whole)
    unlimited = logits_of(make_model("baseline"), TOKENS, *whole)
    np.testing.assert_array_equal(np.all(shorter == unlimited, axis=2), [[t < T - 1 for t in range(T)]] * B)


def test_rotary_attention_depends_on_relative_positions_only():
    logits = logits_of(make_model("baseline"), TOKENS, SEGMENT_IDS, POSITIONS)
    shifted = logits_of(make_model("baseline"), TOKENS, SEGMENT_IDS, POSITIONS + 50)
    np.testing.assert_allclose(shifted, logits, rtol=0, atol=FLOAT32)
    stretched = logits_of(make_model("baseline"), TOKENS, SEGMENT_IDS, POSITIONS * 2)
    assert np.abs(stretched - logits).max() > 100 * FLOAT32


def test_rotary_frequencies_are_rounded_once():
    """A power in float32 is off by 4e-7, which position 4,096 makes 1e-4 of."""
    config = ModelConfig(vocabulary_size=8, width=48, depth=1, heads=1)
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0)))
    positions = np.array([1, 511, 4096])
    cos, sin = jax.jit(model.rotation)(positions)
    frequencies = np.float32(config.rope_base ** (-np.arange(24) / 24))
    angles = np.float64(np.float32(positions)[:, None] * frequencies)[:, None]
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=1e-6)


def test_rotation_multiplies_pairs_of_features_by_unit_complex_numbers():
    model = make_model("head_width")
    positions = np.array([0, 1, 7, 300])
    x_NHK = np.random.default_rng(0).standard_normal((4, 3, 10)).astype(np.float32)
    turned = np.asarray(rotate(x_NHK, model.rotation(positions)))
    angles = positions[:, None, None] * 10_000.0 ** -(np.arange(5) / 5)[None, None, :]
    expected = (x_NHK[..., :5] + 1j * x_NHK[..., 5:]) * np.exp(1j * angles)
    # An angle of 300 has a float32 error of 2e-5.
    np.testing.assert_allclose(turned[..., :5] + 1j * turned[..., 5:], expected, rtol=0, atol=1e-4)


@pytest.mark.device_free
@pytest.mark.parametrize("changes", [{}, {"width": 960, "depth": 1}], ids=["baseline", "width_960"])
def test_loss_at_initialisation_is_that_of_a_uniform_guess(changes):
    config = dataclasses.replace(load_experiment("baseline").model, **changes)
    model = Transformer(config, rngs=nnx.Rngs(params=0))
    tokens = np.random.default_rng(0).integers(0, config.vocabulary_size, (3, 129), dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = np.tile(np.arange(128), (3, 1))
    log_probabilities = jax.nn.log_softmax(logits_of(model, inputs, np.ones_like(inputs), positions))
    loss = -np.take_along_axis(np.asarray(log_probabilities), targets[..., None], axis=2).mean()
    uniform = math.log(config.vocabulary_size)
    assert abs(loss / uniform - 1) < 0.02, f"{loss:.3f} nats instead of ln V = {uniform:.3f}"


def test_unrolling_the_scan_over_layers_changes_nothing():
    reference = logits_of(make_model("baseline", depth=3, scan_unroll=1), TOKENS, SEGMENT_IDS, POSITIONS)
    for unroll in (2, 7):
        model = make_model("baseline", depth=3, scan_unroll=unroll)
        logits = logits_of(model, TOKENS, SEGMENT_IDS, POSITIONS)
        np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-6)


# Embedding 41 x 24 = 984 and last norm 24; a block's norms 2 x 24, qkv 24 x 72, out 24 x 24, up and down 24 x 20 each.
BLOCK = 48 + 1728 + 576 + 2 * 480


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("baseline", 984 + 24 + 2 * BLOCK),
        ("grouped_query", 984 + 24 + 2 * (BLOCK - 24 * 2 * 2 * 6)),
        ("head_width", 984 + 24 + 2 * (48 + 24 * 120 + 40 * 24 + 2 * 480)),
        ("qk_norm", 984 + 24 + 2 * (BLOCK + 2 * 6)),
        ("swiglu", 984 + 24 + 2 * (BLOCK + 480)),
        ("relu2", 984 + 24 + 2 * BLOCK),
        ("layernorm", 984 + 24 + 2 * BLOCK),
        ("untied", 2 * 984 + 24 + 2 * BLOCK),
        ("learned_positions", 984 + 13 * 24 + 24 + 2 * BLOCK),
    ],
)
def test_number_of_parameters_equals_the_count_by_hand(option, expected):
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(make_model(option)))) == expected


@functools.cache
def initial_values(option):
    """Returns what the parameters of a seed begin with, by path."""
    config = dataclasses.replace(BASE, **(OPTIONS | MIXED | TWO_TABLES)[option])
    params = nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=3))))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves}


TWO_TABLES = {"two_tables": OPTIONS["untied"] | OPTIONS["learned_positions"]}
PAIRS = [(option, "baseline") for option in (*OPTIONS, *MIXED)]


@pytest.mark.parametrize(("one", "other"), [*PAIRS, ("two_tables", "untied"), ("two_tables", "learned_positions")])
def test_parameters_that_two_variants_share_begin_with_the_same_values(one, other):
    ours, theirs = initial_values(one), initial_values(other)
    shared = {name for name in ours if name in theirs and ours[name].shape == theirs[name].shape}
    assert {"embedding", "final_norm.scale", "blocks.attention_norm.scale", "blocks.feed_forward.down"} <= shared
    assert {"unembedding", "position_embedding"} & set(ours) & set(theirs) <= shared
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.smoke
def test_seed_gives_the_values_that_it_has_always_given():
    """Update them only where what was measured with earlier versions may be measured again."""
    expected = {
        "embedding": [-0.03121716, -0.00282717],
        "blocks.attention.qkv": [0.00234704, -0.02057942],
        "blocks.attention.out": [-0.01120364, -0.00637407],
        "blocks.feed_forward.up": [0.01870167, -0.00960935],
        "blocks.feed_forward.down": [0.00435704, 0.0005314],
        "unembedding": [0.00187879, 0.00156908],
    }
    found = {name: x.reshape(-1)[-2:] for name, x in initial_values("untied").items() if "norm" not in name}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-7, err_msg=name)


def test_layers_are_initialised_independently():
    qkv_LDX = np.asarray(
        nnx.to_pure_dict(nnx.state(Transformer(BASE, rngs=nnx.Rngs(params=3))))["blocks"]["attention"]["qkv"]
    )
    assert abs(np.corrcoef(qkv_LDX[0].ravel(), qkv_LDX[1].ravel())[0, 1]) < 0.1


def test_derived_sizes_are_what_is_left_at_zero():
    assert (BASE.G, BASE.K, dataclasses.replace(BASE, feed_forward_width=0).F) == (4, 6, 96)
    changed = dataclasses.replace(BASE, key_value_heads=1, head_width=8)
    assert (changed.G, changed.K, changed.F) == (1, 8, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, r"heads \(5\) must divide model.width \(24\)"),
        ({"heads": 0}, r"heads \(0\) must be at least 1"),
        ({"width": -24}, r"width \(-24\) must be at least 1"),
        ({"depth": 0}, r"depth \(0\) must be at least 1"),
        ({"vocabulary_size": 0}, r"vocabulary_size \(0\) must be at least 1"),
        ({"key_value_heads": 3}, r"key_value_heads \(3\) must divide model.heads \(4\)"),
        ({"key_value_heads": 8}, r"key_value_heads \(8\) must divide model.heads \(4\)"),
        ({"key_value_heads": -2}, r"key_value_heads \(-2\) must be at least 0"),
        ({"head_width": 5}, r"head width \(5\) must be even"),
        ({"heads": 8}, r"head width \(3\) must be even"),
        ({"head_width": -6}, r"head_width \(-6\) must be at least 0"),
        ({"feed_forward_width": -1}, r"feed_forward_width \(-1\) must be at least 0"),
        ({"learned_positions": -1}, r"learned_positions \(-1\) must be at least 0"),
        ({"sliding_window": -1}, r"model.sliding_window \(-1\) must be at least 0"),
        ({"activation": "gelo"}, r"model.activation = 'gelo' is unknown; did you mean gelu\?"),
        ({"norm": "layer_norm"}, r"model.norm = 'layer_norm' is unknown; did you mean layernorm\?"),
        ({"norm_epsilon": 0.0}, r"norm_epsilon \(0.0\) must be above 0"),
        ({"rope_base": 1.0}, r"rope_base \(1.0\) must be above 1"),
        ({"logit_soft_cap": -1.0}, r"logit_soft_cap \(-1.0\) must be at least 0"),
        ({"logit_soft_cap": math.nan}, r"logit_soft_cap \(nan\) must be finite"),
        ({"z_loss": math.inf}, r"z_loss \(inf\) must be finite"),
        ({"scan_unroll": -1}, r"scan_unroll \(-1\) must be at least 0"),
        ({"loss_chunk_tokens": -1}, r"loss_chunk_tokens \(-1\) must be at least 0"),
        ({"width": 24.0}, "model.width must be of type int, not 24.0"),
        ({"depth": True}, "model.depth must be of type int, not True"),
    ],
)
def test_model_that_cannot_be_is_refused_with_the_rule_and_the_values(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BASE, **changes)


def test_odd_head_width_is_accepted_with_learned_positions():
    assert dataclasses.replace(BASE, head_width=5, learned_positions=11).K == 5


@pytest.mark.parametrize(("norm", "activation"), [("rmsnorm", "gelu"), ("rmsnorm", "swiglu"), ("layernorm", "relu2")])
def test_a_scanned_block_keeps_two_arrays_of_hidden_features_for_the_backward_pass(norm, activation):
    config = ModelConfig(19, 12, 3, 2, feed_forward_width=26, norm=norm, activation=activation, scan_unroll=1)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(params=0)))
    backward = jax.vjp(lambda p: nnx.merge(graphdef, p).features(TOKENS, POSITIONS, STARTS, ENDS), params)[1]
    widths = [x.shape[-1] for x in jax.tree.leaves(backward) if x.ndim == 3 and x.shape[:2] == (3, B * T)]
    assert widths.count(26) + 2 * widths.count(52) <= (3 if activation == "swiglu" else 2), widths
