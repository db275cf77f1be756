"""A mixture of experts in place of the feed-forward: each token goes through a few of many feed-forwards.

Experts are small and may be joined by shared ones that every token goes through (Dai et al. 2024, arXiv 2401.06066). A
router scores all experts and the best few are taken, each weighted by its share of the scores. No token is dropped and
there is no capacity: a token's output depends only on that token, not on the rest of its row or batch.

The load of the experts is balanced in one of two ways, or both: by a loss, as in Switch Transformer (Fedus et al. 2021,
arXiv 2101.03961), here within each document; and by a bias on the choice of experts, which is moved against the load,
not by a gradient (Wang et al. 2024, arXiv 2408.15664). DeepSeek-V3 (arXiv 2412.19437) has the second, a little of the
first, and sigmoid scores.

Axes: E expert, A = N x k assignments of a token to one of its k experts, C row of a block of assignments; and as in
`model`. X is the features that feed the activation, or any axis without another name.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxformer.config import NonNegativeFloat, NonNegativeInt, OneOf, PositiveInt32, check_fields, require
from jaxformer.layers import Context, Kernel, Rows, SelfUpdated, Sums, activate, find_activation, make_kernel
from jaxformer.model import FeedForward, LayerPart, ModelConfig, residual_scale

# Keeps denominators above 0: sums of scores, and the tokens of a document without weight.
_TINY = 1e-20


@dataclass(frozen=True)
class MixtureOfExperts(LayerPart):
    """Feed-forwards among which a router chooses for each token, independently of other tokens."""

    is_cached: ClassVar[bool] = True

    experts: PositiveInt32 = 8
    """E, among which the router chooses."""
    top_k: PositiveInt32 = 2
    """k, experts that each token is sent to."""
    shared: NonNegativeInt = 0
    """Additional experts that every token goes through."""
    width: NonNegativeInt = 0
    """Width of each expert; 0 for the model's feed-forward width divided by the experts of a token, shared ones
    included: a token then uses as many parameters as in the plain feed-forward.
    """
    scores: Annotated[str, OneOf("softmax", "sigmoid")] = "softmax"
    """Function of the router's logits; the weights of a token's experts are their scores divided by the sum of these.
    A single expert is weighted by the score itself, since otherwise the router would not learn.
    """
    balance_loss: NonNegativeFloat = 0.01
    """Coefficient of the loss that balances the experts within each document; balanced experts have the loss 1."""
    bias_rate: NonNegativeFloat = 0.0
    """How far a step moves the bias of each expert against its load; 0 for no bias. DeepSeek-V3 has 0.001."""

    def __post_init__(self):
        check_fields(self, "MixtureOfExperts")
        require(
            self.top_k <= self.experts,
            f"MixtureOfExperts.top_k ({self.top_k}) must be at most experts ({self.experts})",
        )

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the layer of one block."""
        active = self.top_k + self.shared
        require(
            self.width > 0 or config.F % active == 0,
            f"the experts of a token, MixtureOfExperts.top_k + shared ({active}), must divide the feed-forward's width "
            f"({config.F}); or set MixtureOfExperts.width",
        )
        return _Experts(self, self.width or config.F // active, config, rngs=rngs)


class _Experts(nnx.Module):
    def __init__(self, part: MixtureOfExperts, width: int, config: ModelConfig, *, rngs: nnx.Rngs):
        E, D = part.experts, config.width
        self.part, self.activation = part, find_activation(config.activation)
        X = self.activation.matrices * width
        self.router = make_kernel(rngs, D, E)
        self.up = Kernel(make_kernel(rngs, E * D, X)[...].reshape(E, D, X))
        self.down = Kernel(make_kernel(rngs, E * width, D, residual_scale(config))[...].reshape(E, width, D))
        of_shared = dataclasses.replace(config, feed_forward_width=part.shared * width)
        self.shared = FeedForward(of_shared, rngs=rngs) if part.shared else None
        self.bias = SelfUpdated(jnp.zeros(E), rule=_Against(part.bias_rate)) if part.bias_rate else None

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream.

        The weighted sum over experts and the sums are float32. So is the router, except its matrix, which has been
        rounded to the compute dtype.
        """
        k, (N, D) = self.part.top_k, x_ND.shape
        logits_NE = x_ND.astype(jnp.float32) @ self.router[...].astype(jnp.float32)
        scores_NE = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[self.part.scores](logits_NE)
        biases_E = jnp.zeros(self.part.experts) if self.bias is None else self.bias[...]
        experts_Nk = jax.lax.top_k(jax.lax.stop_gradient(scores_NE) + biases_E[None, :], k)[1]
        gates_Nk = jnp.take_along_axis(scores_NE, experts_Nk, axis=1)
        gates_Nk = gates_Nk if k == 1 else gates_Nk / (gates_Nk.sum(axis=1, keepdims=True) + _TINY)

        experts_A = experts_Nk.reshape(-1)
        order_A, sizes_E = jnp.argsort(experts_A, stable=True), jnp.bincount(experts_A, length=self.part.experts)
        hidden_AX = checkpoint_name(grouped_matmul(x_ND[order_A // k], self.up[...], sizes_E), "hidden")
        sorted_AD = grouped_matmul(activate(self.activation, hidden_AX), self.down[...], sizes_E)
        y_NkD = jnp.zeros_like(sorted_AD).at[order_A].set(sorted_AD, unique_indices=True).reshape(N, k, D)
        y_ND = (gates_Nk[:, :, None] * y_NkD).sum(axis=1).astype(x_ND.dtype)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND, context)[0]
        return y_ND, self._sums(scores_NE, experts_Nk, context.rows)

    def _sums(self, scores_NE: jax.Array, experts_Nk: jax.Array, rows: Rows) -> Sums:
        """Returns the loss `balance`, and as metrics the tokens of each expert and the router's entropy in nats."""
        part, weights_N1 = self.part, rows.weights_BT.reshape(-1, 1)
        shares_NE = scores_NE / (scores_NE.sum(axis=1, keepdims=True) + _TINY)
        chosen_NE = weights_N1 * jax.nn.one_hot(experts_Nk, part.experts).sum(axis=1)
        load_E = chosen_NE.sum(axis=0)
        entropy_N1 = jax.scipy.special.entr(shares_NE).sum(axis=1, keepdims=True)
        balance = jnp.float32(0)
        if part.balance_loss:
            load_NE = _within_documents(chosen_NE, rows) / (_within_documents(weights_N1, rows) + _TINY)
            imbalance_NE = load_NE * shares_NE * (part.experts / part.top_k)
            balance = part.balance_loss * jnp.sum(weights_N1 * imbalance_NE)
        if self.bias is not None:  # Its value is 0, and its gradient is the load.
            balance += load_E @ (self.bias[...] - jax.lax.stop_gradient(self.bias[...]))
        return Sums({"balance": balance}, {"load": load_E, "router_entropy": jnp.sum(weights_N1 * entropy_N1)})


def _within_documents(x_NX: jax.Array, rows: Rows) -> jax.Array:
    """Returns for each token the sum over its document."""
    document_N = rows.document_N
    return jax.ops.segment_sum(x_NX, document_N, num_segments=document_N.shape[0])[document_N]


def _in_blocks(x_AD: jax.Array, kernels_EDX: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns `grouped_matmul` by blocks of C rows of one expert each; the last rows of an expert are zeros.

    The number of blocks does not depend on the sizes: with C = A / 4 E they have a quarter more rows than needed, and
    an expert's kernel is copied for five of them on average.
    """
    (A, D), E = x_AD.shape, sizes_E.shape[0]
    C = max(1, A // (4 * E))
    blocks_E = -(-sizes_E // C)
    ends_E, last_blocks_E, blocks = jnp.cumsum(sizes_E), jnp.cumsum(blocks_E), A // C + E
    moved_E = (last_blocks_E - blocks_E) * C - (ends_E - sizes_E)
    rows_A = jnp.arange(A)
    rows_A += moved_E[jnp.sum(rows_A[:, None] >= ends_E[None, :], axis=1)]
    x_XCD = jnp.zeros((blocks * C, D), x_AD.dtype).at[rows_A].set(x_AD, unique_indices=True).reshape(blocks, C, D)
    expert_X = jnp.minimum(jnp.sum(jnp.arange(blocks)[:, None] >= last_blocks_E[None, :], axis=1), E - 1)
    # Gathered in float32, so that an expert's gradient is summed over its blocks in float32.
    kernels_XDF = kernels_EDX.astype(jnp.float32)[expert_X].astype(kernels_EDX.dtype)
    return jnp.einsum("XCD,XDF->XCF", x_XCD, kernels_XDF).reshape(blocks * C, -1)[rows_A]


def _by_platform(function: Callable, *inputs: jax.Array) -> Any:
    """Returns `function(grouped matmul)(*inputs)`.

    If a device has no instruction for `jax.lax.ragged_dot`, XLA multiplies all rows with all experts. For 1,024 tokens
    of width 128, each with 2 of 8 experts of width 256, forward and backward pass on a CPU took 28 ms in blocks, and
    300 ms with it, as long as a plain loop over the experts. A plain feed-forward of equal operations took 19 ms.
    """
    in_blocks = function(_in_blocks)
    return jax.lax.platform_dependent(*inputs, cpu=in_blocks, cuda=in_blocks, default=function(jax.lax.ragged_dot))


@jax.custom_vjp
def grouped_matmul(x_AD: jax.Array, kernels_EDX: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns the products `y_AX` of rows, sorted by expert, with their expert's kernel.

    Args:
        sizes_E: number of rows of each expert; they sum to A.
    """
    return _by_platform(lambda multiply: multiply, x_AD, kernels_EDX, sizes_E)


def _forward(x_AD, kernels_EDX, sizes_E):
    return grouped_matmul(x_AD, kernels_EDX, sizes_E), (x_AD, kernels_EDX, sizes_E)


def _backward(inputs, cotangent_AX):
    def gradient(multiply):
        return lambda x, kernels, sizes, y: jax.vjp(lambda *given: multiply(*given, sizes), x, kernels)[1](y)

    return *_by_platform(gradient, *inputs, cotangent_AX), None


# Otherwise the residuals of all platforms would be kept for the gradient.
grouped_matmul.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Against:
    """Moves biases by a fixed amount: down for experts with more than the mean load, up for the others."""

    rate: float

    def __call__(self, biases: jax.Array, load: jax.Array) -> jax.Array:
        return biases + self.rate * jnp.sign(load.mean(axis=-1, keepdims=True) - load)
