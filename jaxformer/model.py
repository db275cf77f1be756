"""The whole architecture: a pre-norm decoder in Flax NNX.

tokens -> embedding -> L x [x += attention(norm(x)); x += feed_forward(norm(x))] -> norm -> unembedding -> logits

The building blocks are in `layers.py`. Each place of the figure can be replaced: `ModelConfig` takes your own value, a
`Part`, for the attention, the feed-forward, the norm, the activation, the way in which a layer's output joins the
stream, and the scaling with size; `jaxformer/parts` has some. A layer returns its output, and sums to add to the loss
or to report (`Sums`).

- RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al. 2021, arXiv 2104.09864), GELU
  feed-forward (in the tanh approximation), no biases, tied embeddings (Press & Wolf 2016, arXiv 1608.05859).
- Options, off by default: LayerNorm (Ba et al. 2016, arXiv 1607.06450) without a bias, grouped-query attention (Ainslie
  et al. 2023, arXiv 2305.13245), QK-norm (Henry et al. 2020, arXiv 2010.04245), SwiGLU (Shazeer 2020, arXiv
  2002.05202), squared ReLU (So et al. 2021, arXiv 2109.08668), learned positions, a sliding window (Beltagy et al.
  2020, arXiv 2004.05150) in all layers or by a pattern, untied embeddings, logit soft-cap (Gemma Team 2024, arXiv
  2408.00118).
- Models of one seed begin with the same values wherever a parameter's name and shape are the same, whatever their
  options: what differs between two variants is then the variant, not the draw.
- The L blocks are one block with stacked parameters under `lax.scan`; where kinds of layers alternate, one group of
  them.
- It computes in the dtype of its kernels, and in float32 where `layers.py` says so.

Axes: B batch row, T query position, S key position, N = B x T tokens flattened, D model width, H query heads,
G key/value heads, K head width, F feed-forward width, V vocabulary, L layers. Tokens are flattened everywhere but in
attention: weight gradients then contract over one axis, which halves the time of a CPU step.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxformer.attention.dispatch import Implementation, attend
from jaxformer.attention.document_mask import document_bounds, limit_window
from jaxformer.config import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt32,
    added,
    check_fields,
    execution,
    require,
)
from jaxformer.layers import (
    ACTIVATIONS,
    INITIAL_SCALE,
    Activation,
    Context,
    Kernel,
    LayerNorm,
    Norm,
    RMSNorm,
    Rows,
    Sums,
    Table,
    activate,
    by_place,
    find_activation,
    make_kernel,
    rotate,
    unembed,
    where,
)
from jaxformer.loss_kernels import TILES
from jaxformer.record import Part
from jaxformer.table import look_up

# What is kept of a block for the backward pass, by `model.remat`, beside its input; all else is recomputed. With
# heads of D / H and F = 4 D these are 20, 12 and 2 x D bytes per token in bfloat16, and log-sum-exps.
SAVED = {
    "elementwise": ("queries", "keys", "values", "attended", "log_sum_exp", "stream", "hidden"),
    "feed_forward": ("queries", "keys", "values", "attended", "log_sum_exp", "stream"),
    "block": (),
}
REMATS = ("auto", "none", *SAVED)


# What its parts are named in a compiled step, for a profile.
SCOPES = ("embedding", "attention", "feed_forward", "norm", "residual")

# The parameters with a row for each id.
VOCABULARY_TABLES = ("embedding", "unembedding")

# Fields that may differ from those the weights were trained with: parameters keep their meaning, as when rows grow
# longer.
FIT_ANY_WEIGHTS = ("rope_base", "sliding_window", "window_pattern", "logit_soft_cap")

# Depth up to which a CPU unrolls all blocks, which saves it an eighth of a step and costs compile time with each.
MOST_UNROLLED = 16


class LayerPart(Part):
    """An attention, or a feed-forward, in place of the model's own."""

    is_cached: ClassVar[bool] = False
    """Whether its output at a token depends on earlier tokens only through one call of `Context.attend`, if at all.
    Text is then continued from a cache of keys and values; else all of it is recomputed for each token.
    """

    def make(self, config: "ModelConfig", *, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a module for one block: `(x_ND, context) -> (y_ND, Sums)`, of the normed stream and a `Context`.

        Args:
            rngs: for what it draws; nothing else is drawn from it.
        """
        raise NotImplementedError


class Residual(Part):
    """How the output of an attention or a feed-forward joins the stream; by default it is added."""

    def make(self, config: "ModelConfig", *, rngs: nnx.Rngs, index: jax.Array) -> nnx.Module:
        """Returns a module: `(stream, layer) -> (stream, Sums)`, whose `layer` is `x_ND -> (y_ND, Sums)`.

        Args:
            rngs: for what it draws.
            index: number of the attention or feed-forward, from 0 at the bottom of the model to 2 L - 1; traced.
        """
        raise NotImplementedError

    def expand(self, x_ND: jax.Array) -> Any:
        """Returns the stream at the first block, an array or a tree of them, whose first axis is N."""
        return x_ND

    def collapse(self, stream: Any) -> jax.Array:
        """Returns `x_ND` of the stream after the last block."""
        return stream


class AuxiliaryLoss(Part):
    """A loss on the features beside that of the next token, with parameters of its own if it needs any."""

    def make(self, config: "ModelConfig", *, key: jax.Array) -> nnx.Module:
        """Returns a module: `(model, features_ND, rows, targets_BT) -> Sums`, called in training alone.

        Args:
            key: for what it draws.
        """
        raise NotImplementedError


class Scaling(Part):
    """How initial values and logits scale with the width and depth of a model; the methods here are the default."""

    def of_kernels(self, width: int, depth: int) -> float:
        """Returns the factor of the initial values of the matrices that multiply."""
        return 1.0

    def of_writing(self, width: int, depth: int) -> float:
        """Returns a further factor for those that write to the stream; there are two in each layer."""
        return (2 * depth) ** -0.5

    def of_tables(self, width: int, depth: int) -> float:
        """Returns the initial standard deviation of the embeddings."""
        # The final norm has unit size, so logits start with a deviation of this times sqrt(D): held at 0.45 or less, it
        # keeps the first loss within 2 % of ln V at any width.
        return min(INITIAL_SCALE, 0.45 * width**-0.5)

    def of_logits(self, width: int, depth: int) -> float:
        """Returns the factor of the logits."""
        return 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model and its options."""

    vocabulary_size: PositiveInt32
    """Rows of the embedding table, tokens; at least the tokenizer's, a multiple of 128 is fastest. Rows beyond the
    tokenizer's stand for no token: they have no probability, in training or evaluation, get no gradient, and stay 0.
    """
    width: PositiveInt32
    """D, of the residual stream."""
    depth: PositiveInt32
    """L, blocks."""
    heads: PositiveInt32
    """H, query heads; must divide width unless head_width is given."""
    key_value_heads: NonNegativeInt = 0
    """G, heads of keys and values, a divisor of heads; 0 for as many as heads."""
    head_width: NonNegativeInt = 0
    """K; 0 for width / heads."""
    feed_forward_width: NonNegativeInt = 0
    """F; 0 for 4 x width."""
    activation: Annotated[str, OneOf(*ACTIVATIONS)] | Activation = "gelu"
    """'gelu', 'swiglu' (three matrices instead of two: equal parameters need 2/3 of the width) or 'relu2'."""
    norm: Annotated[str, OneOf("rmsnorm", "layernorm")] | Norm = "rmsnorm"
    """'rmsnorm' or 'layernorm', of the stream; queries and keys have RMSNorm, if any, whatever it is."""
    norm_epsilon: PositiveFloat = 1e-6
    """Added to the mean square under the root in every norm, also of queries and keys."""
    rope_base: Annotated[float, Bounds(above=1)] = 10_000.0
    """Base of the rotary wavelengths."""
    learned_positions: NonNegativeInt = 0
    """Length of a learned position table instead of rotary positions; 0 for rotary."""
    sliding_window: NonNegativeInt = 0
    """The most tokens that a token attends to, itself included; 0 for all of its document's so far."""
    window_pattern: str = ""
    """Which layers have the sliding window, repeated from the first layer on: in 'SSSL' every fourth attends to all of
    the document so far; '' gives the window to all.
    """
    qk_norm: bool = False
    """RMSNorm of queries and keys per head before the rotation."""
    tied_embeddings: bool = True
    """Unembed with the embedding table."""
    logit_soft_cap: NonNegativeFloat = 0.0
    """c in c * tanh(logit / c); 0 for none."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of the squared log-partition in the training objective (PaLM, arXiv 2204.02311); 0 for none."""
    attention: LayerPart | tuple[LayerPart | None, ...] | None = None
    """Your own attention; a tuple alternates over the layers, with None for the model's."""
    feed_forward: LayerPart | tuple[LayerPart | None, ...] | None = None
    """Your own feed-forward, or a tuple that alternates."""
    residual: Residual | None = None
    """How a layer's output joins the stream; None adds it."""
    auxiliary_loss: AuxiliaryLoss | None = None
    """A loss that is minimised beside the cross-entropy."""
    scaling: Scaling | None = added(None)
    """How initial values and logits scale with the size of the model; None as `Scaling` says."""
    scan_unroll: NonNegativeInt = execution(0)
    """Blocks per iteration of the scan over layers. 0 chooses 1 or all: all on a CPU, up to 16 and without
    recomputation, and in a run on a GPU where that takes no more memory, or was timed to be the fastest.
    """
    loss_chunk_tokens: NonNegativeInt = execution(0)
    """Tokens whose logits exist at once in the loss; 0 chooses for the device."""
    loss: Annotated[str, OneOf("auto", "xla", *TILES)] = execution("auto")
    """How the loss is computed: 'xla'; 'pallas', kernels whose logits never reach a GPU's memory, by their default tile
    or by one that is named (tokens x ids x features x warps x stages); 'auto' takes the kernels where the device, the
    width and the dtype admit them, and in a run what was timed to be the fastest of all.
    """
    remat: Annotated[str, OneOf(*REMATS)] = execution("auto")
    """What the backward pass recomputes instead of keeping it: 'none'; 'elementwise', all but the matmuls and the
    attention, whose forward pass cuDNN needs again; 'feed_forward', also its first matmul; 'block', all; 'auto' chooses
    for the device's memory, and in a long run on a GPU times a few that fit.
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
        require(
            set(self.window_pattern) <= {"S", "L"},
            f"model.window_pattern ({self.window_pattern!r}) must be letters S, with the window, and L, without",
        )
        require(
            len(self.window_pattern) <= self.depth,
            f"model.window_pattern ({self.window_pattern!r}) must have at most model.depth ({self.depth}) letters",
        )
        require(
            not self.window_pattern or self.sliding_window > 0,
            "model.window_pattern needs model.sliding_window, which is 0; set it",
        )
        for name in ("attention", "feed_forward"):
            turns = getattr(self, name)
            if isinstance(turns, tuple):
                require(
                    len(turns) > 0 and self.depth % len(turns) == 0,
                    f"model.{name} alternates {len(turns)} parts, which must divide model.depth ({self.depth})",
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

    @property
    def has_unembedding(self) -> bool:
        """Whether the unembedding is a table of its own."""
        return not self.tied_embeddings

    @property
    def unused_in_forward_pass(self) -> frozenset[str]:
        """Fields that do not affect the logits."""
        return frozenset({"z_loss"} | ({"rope_base"} if self.learned_positions else set()))

    @property
    def most_positions(self) -> int:
        """The most tokens of a row, or of a text; 0 for no limit."""
        return self.learned_positions

    @property
    def group(self) -> int:
        """Layers after which the kinds of layers repeat."""
        turns = [part for part in (self.attention, self.feed_forward) if isinstance(part, tuple)]
        return math.lcm(*map(len, turns))

    @property
    def have_window(self) -> tuple[bool, ...]:
        """Whether each layer has the sliding window."""
        pattern = (self.window_pattern or "S") if self.sliding_window else "L"
        return tuple(pattern[layer % len(pattern)] == "S" for layer in range(self.depth))

    def parts_of(self, layer: int) -> tuple[LayerPart | None, LayerPart | None]:
        """Returns the attention and the feed-forward of a layer, each None for the model's own."""
        turns = (part if isinstance(part, tuple) else (part,) for part in (self.attention, self.feed_forward))
        attention, feed_forward = (parts[layer % len(parts)] for parts in turns)
        return attention, feed_forward

    @property
    def is_cached(self) -> bool:
        """Whether text can be continued from a cache of keys and values."""
        return all(part is None or part.is_cached for layer in range(self.group) for part in self.parts_of(layer))

    def effective(self) -> "ModelConfig":
        """Returns the same model with every number in place of the 0 that stands for it."""
        pattern = self.window_pattern if "L" in self.window_pattern else ""
        return dataclasses.replace(
            self, key_value_heads=self.G, head_width=self.K, feed_forward_width=self.F, window_pattern=pattern
        )


class Attention(nnx.Module):
    """Causal attention of H query heads over G key/value heads, with rotary positions."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, H, G, K = config.width, config.heads, config.G, config.K
        self.H, self.G, self.K = H, G, K
        self.qkv = make_kernel(rngs, D, (H + 2 * G) * K)
        self.out = make_kernel(rngs, H * K, D, residual_scale(config))
        self.q_norm = RMSNorm(K, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(K, config.norm_epsilon) if config.qk_norm else None

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream."""
        H, G, K = self.H, self.G, self.K
        qkv_NX = x_ND @ self.qkv[...]
        # Slices, since the gradient of a split takes a kernel of its own on a GPU. Queries and keys are
        # rotated together: on a CPU a step of the smallest model takes 4 % less time than with the two apart.
        qk_NXK = qkv_NX[:, : (H + G) * K].reshape(-1, H + G, K)
        v_NGK = qkv_NX[:, (H + G) * K :].reshape(-1, G, K)
        if self.q_norm and self.k_norm:
            qk_NXK = jnp.concatenate([self.q_norm(qk_NXK[:, :H]), self.k_norm(qk_NXK[:, H:])], axis=1)
        qk_NXK = rotate(qk_NXK, context.rotation_N1K)
        q_NHK, k_NGK = qk_NXK[:, :H], qk_NXK[:, H:]
        attended_NHK = context.attend(q_NHK, k_NGK, v_NGK)
        return attended_NHK.reshape(-1, H * K) @ self.out[...], Sums()


class FeedForward(nnx.Module):
    """Two matmuls with an activation between them, or three with a gated one."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.activation = find_activation(config.activation)
        self.up = make_kernel(rngs, config.width, self.activation.matrices * config.F)
        self.down = make_kernel(rngs, config.F, config.width, residual_scale(config))

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream."""
        hidden_NX = checkpoint_name(x_ND @ self.up[...], "hidden")
        return activate(self.activation, hidden_NX) @ self.down[...], Sums()


@jax.named_scope("residual")
def add(x_ND: jax.Array, layer: Callable[[jax.Array], tuple[jax.Array, Sums]]) -> tuple[jax.Array, Sums]:
    """Returns the stream with a layer's output added, and the layer's sums: the residual rule."""
    y_ND, sums = layer(x_ND)
    return x_ND + y_ND, sums


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each of the normed stream.

    Args:
        layer: its number in the group of layers that is repeated.
        key: for drawing its parameters; each place has keys of its own, so that a part in one place does not change the
            initial values of another.
        index: its number in the model; traced.
    """

    def __init__(self, config: ModelConfig, layer: int, *, key: jax.Array, index: jax.Array):
        attention, feed_forward = config.parts_of(layer)
        self.attention_norm = make_norm(config)
        self.attention = _make_layer(attention, Attention, config, key, 0)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = _make_layer(feed_forward, FeedForward, config, key, 2)
        make = config.residual and functools.partial(config.residual.make, config)
        self.attention_residual = make(rngs=_part_rngs(key, 4), index=2 * index) if make else add
        self.feed_forward_residual = make(rngs=_part_rngs(key, 5), index=2 * index + 1) if make else add

    def __call__(self, stream: Any, context: Context) -> tuple[Any, Sums]:
        """Returns the stream after the block, `x_ND` unless a `Residual` makes more of it, and the sums."""

        @jax.named_scope("attention")
        def attention(x_ND):
            return self.attention(self.attention_norm(x_ND), context)

        @jax.named_scope("feed_forward")
        def feed_forward(x_ND):
            return self.feed_forward(self.feed_forward_norm(x_ND), context)

        stream, of_attention = self.attention_residual(stream, attention)
        stream = checkpoint_name(stream, "stream")
        stream, of_feed_forward = self.feed_forward_residual(stream, feed_forward)
        return stream, by_place(attention=of_attention, feed_forward=of_feed_forward)


class Group(nnx.Module):
    """The alternating layers, in their order, where there is more than one kind."""

    def __init__(self, layers: list[Block]):
        self.layers = nnx.List(layers)


def _make_layer(part: LayerPart | None, own: Callable, config: ModelConfig, key: jax.Array, first: int) -> nnx.Module:
    """Returns a part's module, or the model's own, which draws with the keys from number `first` on."""
    if part is not None:
        return part.make(config, rngs=_part_rngs(key, first))
    rngs = nnx.Rngs(params=key)
    rngs.params.count[...] = jnp.uint32(first)
    return own(config, rngs=rngs)


def _part_rngs(key: jax.Array, number: int) -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.fold_in(key, number))


def _with_layers(function: Callable, graphdef: nnx.GraphDef, params: nnx.State, *inputs: Any) -> Any:
    return function(nnx.merge(graphdef, params), *inputs)


class Transformer(nnx.Module):
    """The decoder.

    Args:
        attention: the implementation that `attend` uses, or its name.
        token_count: ids that stand for a token, the first rows of the table; None for all. The others have no
            probability.
    """

    with_layers: Callable = staticmethod(_with_layers)
    """Calls a function with a group of layers, made of its graph definition and its parameters, which may be parts of
    them (`mesh.with_whole`).
    """

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
        scaling, size = config.scaling or Scaling(), (config.width, config.depth)
        table_scale, kernel_scale, self.logit_scale = (
            of(*size) for of in (scaling.of_tables, scaling.of_kernels, scaling.of_logits)
        )
        table_shape = (config.vocabulary_size, config.width)
        is_token_V1 = jnp.arange(config.vocabulary_size)[:, None] < self.token_count

        def drawn_table(key):
            return Table(jnp.where(is_token_V1, table_scale * jax.random.normal(key, table_shape), 0))

        self.embedding = drawn_table(rngs.params())

        keys_XP = jax.random.split(rngs.params(), config.depth).reshape(-1, config.group)

        @nnx.vmap
        def stacked_blocks(keys_P, first):
            layers = [Block(config, j, key=keys_P[j], index=first + j) for j in range(config.group)]
            return Group(layers) if config.group > 1 else layers[0]

        self.blocks = stacked_blocks(keys_XP, jnp.arange(0, config.depth, config.group))
        self.final_norm = make_norm(config)
        # The options' keys come last, and each is taken whether it is used or not, so that no option changes the
        # initial values of another parameter.
        unembedding_key, positions_key = rngs.params(), rngs.params()
        if config.has_unembedding:
            self.unembedding = drawn_table(unembedding_key)
        if config.learned_positions:
            shape = (config.learned_positions, config.width)
            self.position_embedding = Table(INITIAL_SCALE * jax.random.normal(positions_key, shape))
        self.auxiliary_loss = config.auxiliary_loss and config.auxiliary_loss.make(config, key=rngs.params())
        if kernel_scale != 1:
            nnx.update(self, jax.tree.map(lambda x: kernel_scale * x, nnx.state(self, Kernel)))

    def __call__(self, tokens_BT: jax.Array, segment_ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Returns float32 `logits_BTV`.

        Args:
            tokens_BT: int32 token ids in [0, V).
            segment_ids_BT: int32, equal within a document and different in neighbouring ones; 0 is padding.
            positions_BT: int32, position in the document.
        """
        features_ND = self.features(tokens_BT, positions_BT, *document_bounds(segment_ids_BT))
        return self.logits(features_ND).reshape(*tokens_BT.shape, -1)

    def logits(self, features_ND: jax.Array) -> jax.Array:
        """Returns float32 `logits_NV` of features, MASKED at ids that stand for no token."""
        return unembed(features_ND, self.unembedding_VD, self.config.logit_soft_cap, self.token_count)

    @property
    def unembedding_VD(self) -> jax.Array:
        """The matrix that turns features into logits, in the compute dtype."""
        table_VD = (self.unembedding if self.config.has_unembedding else self.embedding)[...]
        return (table_VD if self.logit_scale == 1 else self.logit_scale * table_VD).astype(self.compute_dtype)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of the kernels, in which matmuls compute."""
        return jax.tree.leaves(nnx.state(self.blocks, Kernel))[0].dtype

    @jax.named_scope("embedding")
    def embed(self, tokens_N: jax.Array | np.ndarray, positions_N: jax.Array | np.ndarray) -> jax.Array:
        """Returns the stream `x_ND` at the first block."""
        x_ND = look_up(self.embedding[...], tokens_N)
        if self.config.learned_positions:
            x_ND = x_ND + look_up(self.position_embedding[...], positions_N)
        return x_ND.astype(self.compute_dtype)

    def features(self, tokens_BT, positions_BT, document_starts_BT, document_ends_BT) -> jax.Array:
        """Returns `features_ND`, the normed stream after the last block: what the unembedding multiplies."""
        weights_BT = jnp.ones(tokens_BT.shape, jnp.float32)  # For sums that are not used here.
        rows = Rows(tokens_BT, positions_BT, document_starts_BT, document_ends_BT, weights_BT)
        return self.features_and_sums(rows)[0]

    def features_and_sums(self, rows: Rows) -> tuple[jax.Array, Sums]:
        """Returns `features_ND`, and the sums of all layers: each with an axis of layers in front."""
        return self.transform(self.embed(rows.tokens_BT.reshape(-1), rows.positions_BT.reshape(-1)), rows)

    def transform(self, x_ND: jax.Array, rows: Rows) -> tuple[jax.Array, Sums]:
        """Returns `features_and_sums` of the embedded tokens."""
        features_ND, sums, _ = self.apply_blocks(x_ND, rows, self.attend_rows(rows), unroll=self._unroll())
        return features_ND, sums

    def attend_rows(self, rows: Rows) -> Callable:
        """Returns the attention, for `apply_blocks`, of rows of documents; it keeps nothing."""
        B, T = rows.starts_BT.shape
        limits = rows.starts_BT, rows.ends_BT
        limited = limit_window(*limits, self.config.sliding_window) if self.config.sliding_window else limits

        def attention(q, k, v, _, has_window):
            starts_BT, ends_BT = (where(has_window, one, all_) for one, all_ in zip(limited, limits, strict=True))
            q_BTHK, k_BTGK, v_BTGK = (x.reshape(B, T, *x.shape[1:]) for x in (q, k, v))
            attended_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, starts_BT, ends_BT, implementation=self.attention)
            return attended_BTHK.reshape(B * T, *q.shape[1:]), None

        return attention

    def apply_blocks(
        self, x_ND: jax.Array, rows: Rows, attention: Callable, inputs: Any = None, *, unroll: int = 1
    ) -> tuple[jax.Array, Sums, Any]:
        """Returns the normed stream after the last block, the sums of the layers, and what their attention kept.

        Args:
            attention: `(q_NHK, k_NGK, v_NGK, inputs, has_window) -> (attended_NHK, kept)`, called wherever a layer
                attends; `has_window` is a bool, traced where only some layers have the sliding window.
            inputs: for each layer of a group, a list with a tree of arrays for each of its calls of the attention; the
                first axis of the arrays is that of the groups. What was kept comes back in the same form.
            unroll: groups per iteration of the scan.
        """
        config, rotation_N1K = self.config, self.rotation(rows.positions_BT.reshape(-1))
        graphdef, stacked = nnx.split(self.blocks)
        windows_XP = np.array(config.have_window).reshape(-1, config.group)
        differ = len(set(config.have_window)) > 1

        def apply_group(blocks, stream, inputs, windows_P):
            kept, sums = [], []
            for j, block in enumerate(blocks.layers if isinstance(blocks, Group) else [blocks]):
                has_window = windows_P[j] if differ else config.have_window[0]

                def attend_and_keep(q, k, v, j=j, has_window=has_window):
                    q, k, v = map(checkpoint_name, (q, k, v), ("queries", "keys", "values"))
                    attended_NHK, new = attention(q, k, v, inputs and inputs[j][len(kept[j])], has_window)
                    kept[j].append(new)
                    return attended_NHK

                kept.append([])
                stream, of_block = block(stream, Context(rows, rotation_N1K, attend_and_keep))
                sums.append(of_block)
            return stream, (kept, sums)

        def step(stream, group):
            params, *others = group
            return self.with_layers(apply_group, graphdef, params, stream, *others)

        residual = config.residual or Residual()
        stream, (kept, sums) = jax.lax.scan(
            self._remat(step), residual.expand(x_ND), (stacked, inputs, windows_XP), unroll=unroll
        )
        return self.final_norm(residual.collapse(stream)), _by_layer(sums), kept

    def rotation(self, positions_N: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Returns float32 (cos, sin) of shape (N, 1, K / 2), or None where positions are learned."""
        return make_rotation(self.config, positions_N, self.config.K)

    def _remat(self, layer):
        """Returns the layer with what `model.remat` names recomputed in the backward pass."""
        if self.config.remat not in SAVED:
            return layer
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED[self.config.remat])
        # XLA may merge the recomputation with the original in one graph, but not between two loops.
        return jax.checkpoint(
            layer, policy=policy, prevent_cse=self._unroll() == self.config.depth // self.config.group
        )

    def _unroll(self) -> int:
        depth, groups = self.config.depth, self.config.depth // self.config.group
        if self.config.scan_unroll:
            return min(self.config.scan_unroll, groups)
        # In one graph XLA on a CPU would merge the recomputation with the original.
        is_unrolled = depth <= MOST_UNROLLED and self.config.remat not in SAVED
        return groups if jax.default_backend() == "cpu" and is_unrolled else 1


def abstract_model(config: ModelConfig, **options) -> Transformer:
    """Returns a model with shapes and dtypes in place of its parameters; the options are those of `Transformer`."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0), **options))


def _by_layer(sums: list[Sums]) -> Sums:
    """Returns the sums of a group's layers, stacked over the groups, each with the layers that report its name."""

    def merged(trees: list[Mapping[str, jax.Array]]):
        # If only some layers of a group report a name, or in another shape, it has one value for each such layer.
        alike = collections.defaultdict(list)
        for tree in trees:
            for name, x in tree.items():
                alike[name, x.shape].append(x)
        names = collections.Counter(name for name, _ in alike)
        return {
            name if names[name] == 1 else f"{name}_{'x'.join(map(str, shape[1:]))}": jnp.stack(x, axis=1).reshape(
                -1, *shape[1:]
            )
            for (name, shape), x in alike.items()
        }

    return Sums(merged([one.losses for one in sums]), merged([one.metrics for one in sums]))


def make_rotation(config: ModelConfig, positions_N: jax.Array, width: int) -> tuple[jax.Array, jax.Array] | None:
    """Returns float32 (cos, sin) of shape (N, 1, width / 2), for `rotate`, or None where positions are learned."""
    if config.learned_positions:
        return None
    half = width // 2
    # Rounded once, and so the same on every device: a float32 power is off by 4e-7, and each device has its own.
    frequencies_1k = np.asarray(config.rope_base ** (-np.arange(half) / half), np.float32)[None, :]
    angles_N1k = (positions_N.astype(jnp.float32)[:, None] * frequencies_1k)[:, None, :]
    return jnp.cos(angles_N1k), jnp.sin(angles_N1k)


def make_norm(config: ModelConfig) -> nnx.Module:
    """Returns the norm of the stream."""
    if isinstance(config.norm, Norm):
        return config.norm.make(config.width, config.norm_epsilon)
    return {"rmsnorm": RMSNorm, "layernorm": LayerNorm}[config.norm](config.width, config.norm_epsilon)


def plain_block(config: ModelConfig) -> ModelConfig:
    """Returns the configuration with blocks without parts, for a part that has a block of its own."""
    return dataclasses.replace(config, attention=None, feed_forward=None, residual=None, auxiliary_loss=None)


def residual_scale(config: ModelConfig) -> float:
    """Returns the factor of the initial values of the matrices that write to the stream."""
    return (config.scaling or Scaling()).of_writing(config.width, config.depth)
