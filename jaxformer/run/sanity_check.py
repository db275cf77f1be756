"""Checks, before the first step and on a batch of the run, for errors that would otherwise stay silent."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.attention.trial import largest_distance
from jaxformer.config import UserError, require
from jaxformer.data.packing import Batch
from jaxformer.loss import cross_entropy, find_kernels, token_scores
from jaxformer.loss_kernels import Kernels
from jaxformer.model import ModelConfig, Transformer
from jaxformer.step import TrainState, rows_of, with_model

# Rows of the batch to check, those with the most documents.
_ROWS = 2

# Share by which the loss before the first step may differ from that of a uniform guess; here it is within 2 %.
_FROM_UNIFORM = 0.1

_ADVICE = "report it; --attention.implementation=xla may avoid it, --training.startup_proof=false skips the check"


# Largest differences of correct loss kernels from `xla`: of a token's nats, and of a token's or an id's gradient, over
# its norm. Interpreted, they are 1e-5 and 1e-2 in bfloat16; leaving out a tile of ids gives 8e-3 and 1 at V = 32,768.
_LOSS_TOLERANCES = (1e-3, 5e-2)

# Batches searched for a row that holds two documents.
_BATCHES = 64


class Proof(NamedTuple):
    """The findings."""

    documents: list[int]
    """Documents of each checked row; without a document mask all its text is one."""
    loss: float
    """Loss of those rows, nats per target."""
    document_mask: bool = True
    """Whether documents are masked from each other."""

    def __str__(self) -> str:
        together = [count for count in self.documents if count > 1]
        rows = f"{len(together)} row{'s' * (len(together) > 1)}"
        text = f"no gradient flows between the {' + '.join(map(str, together))} documents of {rows}"
        if not together:
            text = "no checked row holds two documents"
        if not self.document_mask:
            text = "the documents of a row see one another, as configured (packing.document_mask=false)"
        return f"{text}; all ids lie in the vocabulary; the loss is {self.loss:.3f}"


def batch_to_check(batches: Iterator[Batch], most: int = _BATCHES) -> Batch:
    """Returns the first of the next batches in which a row holds two documents, or the first of all if none does.

    Args:
        most: batches to search.
    """
    first = next(batches)
    others = (next(batches) for _ in range(min(most, _BATCHES) - 1))
    return next((batch for batch in itertools.chain([first], others) if batch.segment_ids_BT.max() > 1), first)


def check_sanity(
    state: TrainState, batch: Batch, token_count: int, *, document_mask: bool = True, is_drawn: bool = True
) -> Proof:
    """Checks a state and a batch, with the attention of the state's model; returns the findings.

    The ids must be the tokenizer's. The loss of every other document of a row must have exactly zero gradient in the
    stream of the documents between. Before the first step, freshly drawn parameters must have a loss near that of a
    uniform guess.

    Args:
        token_count: ids that the tokenizer has.
        document_mask: whether the batch was packed with one; without, each row is one document, separated only from
            its padding, and the findings say so.
        is_drawn: whether a state before its first step has freshly drawn parameters.

    Raises:
        UserError: one of them does not hold.
    """
    for name, ids_BT in (("token", batch.tokens_BT), ("target", batch.targets_BT)):
        low, high = int(ids_BT.min()), int(ids_BT.max())
        require(
            low >= 0 and high < token_count,
            f"proof: {name} ids of a batch, {low} to {high}, do not lie in the vocabulary of "
            f"{token_count}; delete the token shards and run again to prepare them again",
        )
    # No more rows than a device computes at once in a step, so that memory is enough.
    devices = len(state.mesh.local_devices) if state.mesh else 1
    count = min(_ROWS, len(batch.tokens_BT) // devices // state.micro_batches)
    most = np.argsort(-batch.segment_ids_BT.max(axis=1), kind="stable")[:count]
    rows = Batch(*(x[most] for x in batch))
    loss, *gradients = jax.device_get(_gradients(state, rows))
    for parity, largest_BT in enumerate(gradients):
        is_ours = _of_parity(rows.segment_ids_BT, parity)
        leak = largest_BT[~is_ours].max(initial=0.0)
        require(
            bool(leak == 0),  # NaN is none.
            f"proof: a gradient of {leak:.2g} flows between documents of a row; {_ADVICE}",
        )
        require(
            not is_ours.any() or bool(largest_BT[is_ours].max() > 0),
            f"proof: no gradient flows within the documents of a row; {_ADVICE}",
        )
    uniform = math.log(token_count)
    is_near = abs(loss - uniform) <= _FROM_UNIFORM * uniform
    require(
        bool(is_near) if int(state.step) == 0 and is_drawn else math.isfinite(loss),
        f"proof: the loss of a batch is {loss:.4g}, and a uniform guess has ln {token_count} = "
        f"{uniform:.4g}; {_ADVICE}",
    )
    return Proof(rows.segment_ids_BT.max(axis=1).tolist(), float(loss), document_mask)


def check_loss(config: ModelConfig, dtype: Any, token_count: int) -> str:
    """Returns as text how far a run's loss is from `xla` on random features; '' if it is `xla`.

    Args:
        dtype: of the features.
        token_count: as in `check_sanity`.

    Raises:
        UserError: it fails, or the error exceeds rounding.
    """
    kernels = find_kernels(config.loss, config.width, dtype, config.logit_soft_cap)
    if kernels is None:
        return ""
    name, advice = f"pallas:{kernels.tile}", "run with --model.loss=xla, and report it"
    try:
        errors = jax.device_get(_loss_errors(config, jnp.dtype(dtype), token_count, kernels))
    except Exception as failure:
        if "RESOURCE_EXHAUSTED" in str(failure):  # The other implementation needs even more.
            raise
        raise UserError(f"the loss {name!r} fails on this device ({failure}): {advice}") from failure
    for what, error, tolerance in zip(("nats", "gradients"), errors, _LOSS_TOLERANCES, strict=True):
        require(
            bool(error <= tolerance),  # NaN is not.
            f"the {what} of the loss {name!r} differ from xla's by {error:.2g}, more than the {tolerance:g} of "
            f"rounding: {advice}",
        )
    return f"{name}, whose logits stay on the chip; error {max(errors):.1e} against xla, forward and backward"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _loss_errors(config: ModelConfig, dtype: Any, token_count: int, kernels: Kernels) -> tuple[jax.Array, jax.Array]:
    """Returns the errors of `_LOSS_TOLERANCES`."""
    N, (V, D) = 1000, (config.vocabulary_size, config.width)  # No tile divides N.
    keys = jax.random.split(jax.random.key(0), 3)
    features_ND = jax.random.normal(keys[0], (N, D), dtype)
    unembedding_VD = 2 * D**-0.5 * jax.random.normal(keys[1], (V, D), dtype)
    targets_N = jax.random.randint(keys[2], (N,), 0, token_count)
    weights_N = (jnp.arange(N) % 3).astype(jnp.float32)
    options = {"logit_soft_cap": config.logit_soft_cap, "token_count": token_count, "chunk_tokens": N}

    def computed_by(implementation):
        def objective(features_ND, unembedding_VD):
            given = features_ND, unembedding_VD, targets_N, weights_N
            z_loss = {"z_loss_coefficient": config.z_loss, "implementation": implementation}
            return cross_entropy(*given, **options, **z_loss).objective

        scores = token_scores(features_ND, unembedding_VD, targets_N, **options, implementation=implementation)
        return scores.nats_N, jax.grad(objective, argnums=(0, 1))(features_ND, unembedding_VD)

    (nats_N, ours), (right_N, theirs) = computed_by(kernels), computed_by("xla")
    distances = [largest_distance(x, y.astype(jnp.float32)) for x, y in zip(ours, theirs, strict=True)]
    return jnp.max(jnp.abs(nats_N - right_N)), jnp.max(jnp.stack(distances))


@jax.jit
def _gradients(state: TrainState, rows: Batch):
    """Returns the loss, and for each parity of the segment's number the largest gradient at each token (B, T)."""
    return with_model(state, _largest_gradients, rows, split_rows=False)


def _largest_gradients(model: Transformer, rows: Batch):
    # One block in a loop compiles in a fifth of the time of all in a row.
    model.config = dataclasses.replace(model.config, scan_unroll=1)

    def objective(features_ND):
        sums = cross_entropy(
            features_ND,
            model.unembedding_VD,
            rows.targets_BT.reshape(-1),
            rows.loss_weights_BT.reshape(-1),
            logit_soft_cap=model.config.logit_soft_cap,
            token_count=model.token_count,
            chunk_tokens=model.config.loss_chunk_tokens,
            implementation=model.config.loss,
        )
        return sums.objective, sums

    x_ND = model.embed(rows.tokens_BT.reshape(-1), rows.positions_BT.reshape(-1))
    features_ND, pullback = jax.vjp(lambda x_ND: model.transform(x_ND, rows_of(rows))[0], x_ND)
    d_features_ND, sums = jax.grad(objective, has_aux=True)(features_ND)

    def at_parity(parity):
        is_ours_N1 = _of_parity(rows.segment_ids_BT, parity).reshape(-1, 1)
        (gradient_ND,) = pullback(jnp.where(is_ours_N1, d_features_ND, 0))
        return jnp.max(jnp.abs(gradient_ND.astype(jnp.float32)), axis=1).reshape(rows.tokens_BT.shape)

    # In sequence, as one program.
    largest_2BT = jax.lax.map(at_parity, jnp.arange(2))
    return sums.nats / sums.weight, largest_2BT[0], largest_2BT[1]


def _of_parity(segment_ids_BT, parity):
    return (segment_ids_BT > 0) & (segment_ids_BT % 2 == parity)
