"""The architecture, whole: a pre-norm decoder in Flax NNX.

tokens -> embedding -> L x [x += attention(norm(x)); x += feed_forward(norm(x))] -> norm -> unembedding -> logits

- RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al. 2021, arXiv 2104.09864), GELU
  feed-forward (in the tanh approximation), no biases, tied embeddings (Press & Wolf 2016, arXiv 1608.05859).
- Options, off by default: LayerNorm (Ba et al. 2016, arXiv 1607.06450) without a bias, grouped-query attention (Ainslie
  et al. 2023, arXiv 2305.13245), QK-norm (Henry et al. 2020, arXiv 2010.04245), SwiGLU (Shazeer 2020, arXiv
  2002.05202), squared ReLU (So et al. 2021, arXiv 2109.08668), learned positions, a sliding window (Beltagy et al.
  2020, arXiv 2004.05150), untied embeddings, logit soft-cap (Gemma Team 2024, arXiv 2408.00118).
- Models of one seed begin with the same values wherever a parameter's name and shape are the same, whatever their
  options: what differs between two variants is then the variant, not the draw.
- The L blocks are one block with stacked parameters under `lax.scan`.
- It computes in the dtype of its kernels: cast them and the matmuls and the residual stream follow. Norms, rotations,
  softmax and logits are float32 regardless, and so are the tables and their gradients: a frequent token's row sums over
  thousands of tokens, which bfloat16 cannot (4,096 times 0.01 gives 4 there).

Axes: B batch row, T query position, S key position, N = B x T tokens flattened, D model width, H query heads,
G key/value heads, K head width, F feed-forward width, V vocabulary, L layers. Tokens are flattened everywhere but in
attention: weight gradients then contract over one axis, which halves the time of a CPU step.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxformer.attention.dispatch import Implementation, attend
from jaxformer.attention.document_mask import document_bounds, limit_window
from jaxformer.attention.reference import MASKED
from jaxformer.config import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt32,
    check_fields,
    execution,
    require,
)

ACTIVATIONS = ("gelu", "swiglu", "relu2")
NORMS = ("rmsnorm", "layernorm")

# What the backward pass finds of a block, by `model.remat`, beside the block's input; all else it computes again. With
# heads of D / H and F = 4 D these are 20, 12 and 2 x D bytes per token in bfloat16, and log-sum-exps.
SAVED = {
    "elementwise": ("queries", "keys", "values", "attended", "log_sum_exp", "stream", "hidden"),
    "feed_forward": ("queries", "keys", "values", "attended", "log_sum_exp", "stream"),
    "block": (),
}
REMATS = ("auto", "none", *SAVED)

# Standard deviation of matrices at initialisation, as in GPT-2 (Radford et al. 2019); those that write to the residual
# stream are divided by the root of their number. At width 128 and 200 steps this validated 0.15 bits per byte better
# than 1 / sqrt(fan-in).
INITIAL_SCALE = 0.02

# The parameters with a row for each id.
VOCABULARY_TABLES = ("embedding", "unembedding")

# Depth up to which a CPU unrolls all blocks, which saves it an eighth of a step and costs compile time with each.
MOST_UNROLLED = 16


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model and its options."""

    vocabulary_size: PositiveInt32
    """Rows of the embedding table, tokens; at least the tokenizer's, a multiple of 128 is fastest. Rows beyond the
    tokenizer's stand for no token and have no probability, in training, validation, tasks and samples alike; without a
    gradient they stay the zeros that they begin with.
    """
    width: PositiveInt32
    """D, of the residual stream."""
    depth: PositiveInt32
    """L, blocks."""
    heads: PositiveInt32
    """H, query heads; must divide width unless head_width is given."""
    key_value_heads: NonNegativeInt = 0
    """G, heads that keys and values have, a divisor of heads; 0 for as many as heads."""
    head_width: NonNegativeInt = 0
    """K; 0 for width / heads."""
    feed_forward_width: NonNegativeInt = 0
    """F; 0 for 4 x width."""
    activation: Annotated[str, OneOf(*ACTIVATIONS)] = "gelu"
    """'gelu', 'swiglu' (three matrices instead of two: equal parameters need 2/3 of the width) or 'relu2'."""
    norm: Annotated[str, OneOf(*NORMS)] = "rmsnorm"
    """'rmsnorm' or 'layernorm', of the stream; queries and keys have RMSNorm, if any, whatever it is."""
    norm_epsilon: PositiveFloat = 1e-6
    """Added to the mean square of every norm, those of queries and keys too, under the root."""
    rope_base: Annotated[float, Bounds(above=1)] = 10_000.0
    """Base of the rotary wavelengths."""
    learned_positions: NonNegativeInt = 0
    """Length of a learned position table instead of rotary positions; 0 for rotary."""
    sliding_window: NonNegativeInt = 0
    """The most tokens that a token attends to, itself included; 0 for all of its document's so far."""
    qk_norm: bool = False
    """RMSNorm of queries and keys per head before the rotation."""
    tied_embeddings: bool = True
    """Unembed with the embedding table."""
    logit_soft_cap: NonNegativeFloat = 0.0
    """c in c * tanh(logit / c); 0 for none."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of the squared log-partition in the training objective (PaLM, arXiv 2204.02311); 0 for none."""
    scan_unroll: NonNegativeInt = execution(0)
    """Blocks per iteration of the scan over layers; 0 chooses 1, or on a CPU all of up to 16, unless they are
    recomputed.
    """
    loss_chunk_tokens: NonNegativeInt = execution(0)
    """Tokens whose logits exist at once in the loss; 0 chooses for the device."""
    remat: Annotated[str, OneOf(*REMATS)] = execution("auto")
    """What the backward pass computes again instead of keeping it: 'none'; 'elementwise', all but the matmuls and the
    attention, whose forward pass cuDNN needs again; 'feed_forward', also its first matmul; 'block', all; 'auto' chooses
    for the device's memory.
    """

    def __post_init__(self):
        check_fields(self, "model")
        require(
            self.head_width > 0 or self.width % self.heads == 0,
            f"model.heads ({self.heads}) must divide model.width ({self.width}), or set model.head_width",
        )
        require(
            self.heads % self.G == 0,
            f"model.key_value_heads ({self.key_value_heads}) must divide model.heads ({self.heads})",
        )
        require(
            self.learned_positions > 0 or self.K % 2 == 0,
            f"the head width ({self.K}) must be even for rotary positions",
        )

    @property
    def G(self) -> int:
        """Key/value heads."""
        return self.key_value_heads or self.heads

    @property
    def K(self) -> int:
        """Head width."""
        return self.head_width or self.width // self.heads

    @property
    def F(self) -> int:
        """Feed-forward width."""
        return self.feed_forward_width or 4 * self.width

    def effective(self) -> "ModelConfig":
        """Returns the same model with every number in place of the 0 that stands for it."""
        return dataclasses.replace(self, key_value_heads=self.G, head_width=self.K, feed_forward_width=self.F)


class Kernel(nnx.Param):
    """A matrix that multiplies: decayed by the optimizer and cast to the compute dtype."""


class Table(nnx.Param):
    """A matrix that is looked up: decayed by the optimizer, float32 always."""


class Scale(nnx.Param):
    """A vector of per-feature gains: float32 always, never decayed."""


class RMSNorm(nnx.Module):
    """Divides the last axis by its root mean square, in float32, and scales it by a learned gain.

    An epsilon is added to the mean square, under the root.
    """

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = Scale(jnp.ones(width, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, of any shape (..., width), normalised along its last axis."""
        return _rms_norm(x, self.scale[...], self.epsilon)


class LayerNorm(RMSNorm):
    """Subtracts the last axis's mean, in float32, and goes on as RMSNorm; the paper's bias is left out."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, of any shape (..., width), normalised along its last axis."""
        x_float = x.astype(jnp.float32)
        return super().__call__(x_float - jnp.mean(x_float, axis=-1, keepdims=True)).astype(x.dtype)


class Block(nnx.Module):
    """One layer, in two halves around attention, so that training and cached decoding share it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, H, G, K, F = config.width, config.heads, config.G, config.K, config.F
        self.config = config
        self.attention_norm = _norm(config)
        self.qkv = _kernel(rngs, D, (H + 2 * G) * K)
        if config.qk_norm:
            self.q_norm = RMSNorm(K, config.norm_epsilon)
            self.k_norm = RMSNorm(K, config.norm_epsilon)
        residual_scale = (2 * config.depth) ** -0.5
        self.attention_out = _kernel(rngs, H * K, D, residual_scale)
        self.feed_forward_norm = _norm(config)
        self.up = _kernel(rngs, D, 2 * F if config.activation == "swiglu" else F)
        self.down = _kernel(rngs, F, D, residual_scale)

    def queries_keys_values(self, x_ND, rotation_N1K):
        """Returns `q_NHK, k_NGK, v_NGK`, rotated to their positions."""
        H, G, K = self.config.heads, self.config.G, self.config.K
        # Rotated together: on a CPU a step of the smallest model takes 4 % less time than with queries and keys apart.
        qk_NX, v_NX = jnp.split(self.attention_norm(x_ND) @ self.qkv[...], [(H + G) * K], axis=1)
        qk_NXK = qk_NX.reshape(-1, H + G, K)
        if self.config.qk_norm:
            q_NHK, k_NGK = jnp.split(qk_NXK, [H], axis=1)
            qk_NXK = jnp.concatenate([self.q_norm(q_NHK), self.k_norm(k_NGK)], axis=1)
        q_NHK, k_NGK = jnp.split(rotate(qk_NXK, rotation_N1K), [H], axis=1)
        v_NGK = v_NX.reshape(-1, G, K)
        return checkpoint_name(q_NHK, "queries"), checkpoint_name(k_NGK, "keys"), checkpoint_name(v_NGK, "values")

    def residuals(self, x_ND, attended_NHK):
        """Returns the stream after the attention's output and the feed-forward are added."""
        x_ND = x_ND + attended_NHK.reshape(x_ND.shape[0], -1) @ self.attention_out[...]
        x_ND = checkpoint_name(x_ND, "stream")
        hidden_NF = checkpoint_name(self.feed_forward_norm(x_ND) @ self.up[...], "hidden")
        hidden_NF = activate(hidden_NF, self.config.activation)
        return x_ND + hidden_NF @ self.down[...]


class Transformer(nnx.Module):
    """The decoder.

    Args:
        attention: the implementation that `attend` uses, or its name.
        token_count: ids that stand for a token, the first rows of the table; None for all. The others have no
            probability.
    """

    merge_layer: Callable = staticmethod(nnx.merge)
    """Makes a layer's block of its graph definition and parameters, which may be parts (`mesh.Parts`)."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        attention: str | Implementation = "xla",
        token_count: int | None = None,
    ):
        self.config = config
        self.attention = attention
        self.token_count = config.vocabulary_size if token_count is None else token_count
        require(
            0 < self.token_count <= config.vocabulary_size,
            f"the tokens ({token_count}) must not exceed model.vocabulary_size ({config.vocabulary_size})",
        )
        # The final norm has unit size, so logits start with a deviation of this times sqrt(D): held at 0.45 or less, it
        # keeps the first loss within 2 % of ln V at any width.
        table_scale = min(INITIAL_SCALE, 0.45 * config.width**-0.5)
        table_shape = (config.vocabulary_size, config.width)
        is_token_V1 = jnp.arange(config.vocabulary_size)[:, None] < self.token_count

        def drawn_table(key):
            return Table(jnp.where(is_token_V1, table_scale * jax.random.normal(key, table_shape), 0))

        self.embedding = drawn_table(rngs.params())

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked_blocks(rngs):
            return Block(config, rngs=rngs)

        self.blocks = stacked_blocks(rngs)
        self.final_norm = _norm(config)
        # Keys follow each other: the options' come last, and each is taken whether it is used or not, so that no option
        # changes what another parameter begins with.
        unembedding_key, positions_key = rngs.params(), rngs.params()
        if not config.tied_embeddings:
            self.unembedding = drawn_table(unembedding_key)
        if config.learned_positions:
            shape = (config.learned_positions, config.width)
            self.position_embedding = Table(INITIAL_SCALE * jax.random.normal(positions_key, shape))

    def __call__(self, tokens_BT: jax.Array, segment_ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Returns float32 `logits_BTV`.

        Args:
            tokens_BT: int32 token ids in [0, V).
            segment_ids_BT: int32, equal within a document and different in neighbouring ones; 0 is padding.
            positions_BT: int32, position in the document.
        """
        starts_BT, ends_BT = document_bounds(segment_ids_BT)
        features_ND = self.features(tokens_BT, positions_BT, starts_BT, ends_BT)
        return self.logits(features_ND).reshape(*tokens_BT.shape, -1)

    def logits(self, features_ND: jax.Array) -> jax.Array:
        """Returns float32 `logits_NV` of features, MASKED at ids that stand for no token."""
        return unembed(features_ND, self.unembedding_VD, self.config.logit_soft_cap, self.token_count)

    @property
    def unembedding_VD(self) -> jax.Array:
        """The matrix that turns features into logits, in the compute dtype."""
        return (self.embedding if self.config.tied_embeddings else self.unembedding)[...].astype(self.compute_dtype)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of the kernels, in which matmuls compute."""
        return self.blocks.qkv[...].dtype

    def embed(self, tokens_N: jax.Array | np.ndarray, positions_N: jax.Array | np.ndarray) -> jax.Array:
        """Returns the stream `x_ND` at the first block."""
        x_ND = self.embedding[...][tokens_N]
        if self.config.learned_positions:
            x_ND = x_ND + self.position_embedding[...][positions_N]
        return x_ND.astype(self.compute_dtype)

    def features(self, tokens_BT, positions_BT, document_starts_BT, document_ends_BT) -> jax.Array:
        """Returns `features_ND`, the normed stream after the last block: what the unembedding multiplies."""
        x_ND = self.embed(tokens_BT.reshape(-1), positions_BT.reshape(-1))
        return self.transform(x_ND, positions_BT, document_starts_BT, document_ends_BT)

    def transform(self, x_ND, positions_BT, document_starts_BT, document_ends_BT) -> jax.Array:
        """Returns `features_ND` of the stream at the first block, N = B x T."""
        attention = self.attend_documents(document_starts_BT, document_ends_BT)
        return self.apply_blocks(x_ND, positions_BT.reshape(-1), attention, unroll=self._unroll())[0]

    def attend_documents(self, document_starts_BT, document_ends_BT) -> Callable:
        """Returns the attention, for `apply_blocks`, of rows of documents; it keeps nothing."""
        B, T = document_starts_BT.shape
        if self.config.sliding_window:
            window = self.config.sliding_window
            document_starts_BT, document_ends_BT = limit_window(document_starts_BT, document_ends_BT, window)

        def attention(q, k, v, _):
            attended_BTHK = attend(
                q.reshape(B, T, *q.shape[1:]),
                k.reshape(B, T, *k.shape[1:]),
                v.reshape(B, T, *v.shape[1:]),
                document_starts_BT,
                document_ends_BT,
                implementation=self.attention,
            )
            return attended_BTHK.reshape(B * T, *q.shape[1:]), None

        return attention

    def apply_blocks(
        self, x_ND, positions_N, attention: Callable, inputs: Any = None, *, unroll: int = 1
    ) -> tuple[jax.Array, Any]:
        """Returns the normed stream after the last block, and what the attention of each layer kept.

        Args:
            attention: `(q_NHK, k_NGK, v_NGK, inputs of the layer) -> (attended_NHK, kept)`.
            inputs: a tree of arrays with an axis of the layers in front, as what was kept has.
            unroll: blocks per iteration of the scan.
        """
        rotation_N1K = self.rotation(positions_N)
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x_ND, params_and_inputs):
            params, inputs = params_and_inputs
            block = self.merge_layer(graphdef, params)
            q, k, v = block.queries_keys_values(x_ND, rotation_N1K)
            attended_NHK, kept = attention(q, k, v, inputs)
            return block.residuals(x_ND, attended_NHK), kept

        x_ND, kept = jax.lax.scan(self._remat(layer), x_ND, (stacked, inputs), unroll=unroll)
        return self.final_norm(x_ND), kept

    def rotation(self, positions_N: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Returns float32 (cos, sin) of shape (N, 1, K / 2), or None where positions are learned."""
        if self.config.learned_positions:
            return None
        half = self.config.K // 2
        # Rounded once, and so the same on every device: a float32 power is off by 4e-7, and each device has its own.
        frequencies_1k = np.asarray(self.config.rope_base ** (-np.arange(half) / half), np.float32)[None, :]
        angles_N1k = (positions_N.astype(jnp.float32)[:, None] * frequencies_1k)[:, None, :]
        return jnp.cos(angles_N1k), jnp.sin(angles_N1k)

    def _remat(self, layer):
        """Returns the layer with what `model.remat` says computed again in the backward pass."""
        if self.config.remat not in SAVED:
            return layer
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED[self.config.remat])
        # Between two loops there is nothing to be merged again; in one graph there is.
        return jax.checkpoint(layer, policy=policy, prevent_cse=self._unroll() == self.config.depth)

    def _unroll(self) -> int:
        depth = self.config.depth
        if self.config.scan_unroll:
            return min(self.config.scan_unroll, depth)
        # XLA on a CPU would merge again what is to be recomputed, if it stood in one graph with what was computed.
        is_unrolled = depth <= MOST_UNROLLED and self.config.remat not in SAVED
        return depth if jax.default_backend() == "cpu" and is_unrolled else 1


def abstract_model(config: ModelConfig, **options) -> Transformer:
    """Returns a model with shapes and dtypes in place of its parameters; the options are those of `Transformer`."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0), **options))


# The backward pass makes the insides of these again from their inputs. Kept by the scan they were half of the memory of
# a step: 24 of 49 GB at 500 million parameters and 16,384 tokens. Between unrolled blocks XLA may keep them still.
_from_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


@functools.partial(_from_inputs, static_argnums=2)
def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    x_float = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x_float * x_float, axis=-1, keepdims=True) + epsilon)
    return (x_float * inverse * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


@functools.partial(_from_inputs, static_argnums=1)
def activate(hidden_NF: jax.Array, activation: str) -> jax.Array:
    """Returns the feed-forward's hidden features after the activation, half as many for 'swiglu'."""
    match activation:
        case "gelu":
            return jax.nn.gelu(hidden_NF)
        case "relu2":
            return jnp.square(jax.nn.relu(hidden_NF))
        case "swiglu":
            gate_NF, value_NF = jnp.split(hidden_NF, 2, axis=-1)
            return jax.nn.silu(gate_NF) * value_NF
    raise ValueError(f"unknown activation {activation!r}")


def rotate(x_NHK: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Rotates the pairs (i, i + K / 2) of the last axis by their position's angle, in float32."""
    if rotation is None:
        return x_NHK
    cos_N1k, sin_N1k = rotation
    first, second = jnp.split(x_NHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos_N1k - second * sin_N1k, second * cos_N1k + first * sin_N1k], axis=-1)
    return turned.astype(x_NHK.dtype)


def unembed(
    features_ND: jax.Array, unembedding_VD: jax.Array, soft_cap: float = 0.0, token_count: int | None = None
) -> jax.Array:
    """Returns float32 `logits_NV`.

    Args:
        soft_cap: c in c * tanh(logit / c); 0 for none.
        token_count: ids at and beyond it have the logit MASKED, and so no probability; None for all. They are
            computed all the same, since a matmul of a multiple of 128 columns is the fastest.
    """
    logits_NV = jnp.einsum("ND,VD->NV", features_ND, unembedding_VD, preferred_element_type=jnp.float32)
    logits_NV = soft_cap * jnp.tanh(logits_NV / soft_cap) if soft_cap else logits_NV
    V = unembedding_VD.shape[0]
    if token_count is None or token_count == V:
        return logits_NV
    return jnp.where(jnp.arange(V)[None, :] < token_count, logits_NV, MASKED)


def _norm(config: ModelConfig) -> RMSNorm:
    return {"rmsnorm": RMSNorm, "layernorm": LayerNorm}[config.norm](config.width, config.norm_epsilon)


def _kernel(rngs: nnx.Rngs, fan_in: int, fan_out: int, scale: float = 1.0) -> Kernel:
    return Kernel(scale * INITIAL_SCALE * jax.random.normal(rngs.params(), (fan_in, fan_out)))
