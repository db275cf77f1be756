"""Document-masked causal attention: a token sees itself and the earlier tokens of its own document, nothing else.

`attend` is the interface; each implementation is a function. One is chosen at the start of a run, on a GPU by timing
those that can run. It is compared with the reference there, and never changed silently:

- `xla`: einsum and a mask, the reference; any device, any dtype.
- `pallas`: our flash attention, which visits only the blocks inside the documents, forward and backward.
- `cudnn_packed`: cuDNN with the documents' offsets, where the packer bounds the documents of a row.

Axes: B row, T query, S key, H query heads, G key/value heads, R = H / G, K head width.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer.attention import cudnn, flash
from jaxformer.attention.document_mask import visible_share
from jaxformer.attention.reference import attend_einsum
from jaxformer.attention.support import IMPLEMENTATIONS, AttentionShape, why_not
from jaxformer.attention.trial import attention_error, fastest_tiles, forward_backward, random_inputs
from jaxformer.config import OneOf, UserError, check_fields, execution, require, require_one_of
from jaxformer.devices.fastest import Fastest, Timer, time_ways
from jaxformer.devices.timing import describe_failure, milliseconds

# What `auto` prefers if it can run and nothing was timed.
_PREFERENCE = ("pallas", "cudnn_packed", "xla")

_ADVICE = "run with --attention.implementation=xla, and report it"

# The most tokens on which attention is timed and compared, unless a row is longer: more do not fill a GPU better, and
# with gradients in float32 they may take more memory than a step.
_TRIAL_TOKENS = 1 << 16

# Largest `attention_error` of a correct implementation. Interpreted on 2 x 1024 tokens, `pallas` has 1.8e-2, 2.4e-3 and
# 4e-6 in these dtypes; a mask that is off by one token gives 1 and more.
TOLERANCES = {"bfloat16": 5e-2, "float16": 8e-3, "float32": 1e-4}


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is computed; it changes the speed of a run, not its results."""

    implementation: Annotated[str, OneOf("auto", *IMPLEMENTATIONS)] = execution("auto")
    """'xla', 'pallas' or 'cudnn_packed'; 'auto' takes one that can run, on a GPU the fastest: they are timed on the
    first batch, tiles included, once for each device, shape and version, and the result is cached.
    """

    def __post_init__(self):
        check_fields(self, "attention")


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention, with its static settings."""

    name: str
    """One of `IMPLEMENTATIONS`."""
    tiles: flash.Tiles | None = None
    """Tiles of `pallas`; None for the default."""
    segments: int = 0
    """Segments of `cudnn_packed`, the most documents of a row, padding counted as one."""
    interpret: bool = False
    """Run `pallas` as XLA operations, on any device and slowly: to test it."""

    def __post_init__(self):
        require_one_of("attention.implementation", self.name, IMPLEMENTATIONS)
        needs_segments = self.name == "cudnn_packed" and self.segments < 2
        require(
            not needs_segments, f"cudnn_packed needs segments ({self.segments}): the most documents of a row, and one"
        )

    def __call__(self, q_BTHK, k_BTGK, v_BTGK, document_starts_BT, document_ends_BT) -> jax.Array:
        """Returns `attend` by this implementation."""
        return attend(q_BTHK, k_BTGK, v_BTGK, document_starts_BT, document_ends_BT, implementation=self)


def implementation_from(record: dict) -> Implementation:
    """Returns the implementation that `dataclasses.asdict` wrote, after a round trip through JSON."""
    tiles = record["tiles"] and flash.Tiles(*(flash.Tile(*tile) for tile in record["tiles"]))
    return Implementation(**{**record, "tiles": tiles})


def attend(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    document_starts_BT: jax.Array,
    document_ends_BT: jax.Array,
    *,
    implementation: str | Implementation,
) -> jax.Array:
    """Returns the attention output (B, T, H, K), in q's dtype; logits and softmax are float32.

    Query head h reads key/value head h // (H / G). Logits are scaled by K ** -0.5.

    Args:
        document_starts_BT: int32, first position that the token sees (inclusive), nondecreasing along T.
        document_ends_BT: int32, end of the positions that see the token (exclusive), nondecreasing along T.
        implementation: an `Implementation`, or the name of one.
    """
    chosen = Implementation(implementation) if isinstance(implementation, str) else implementation
    inputs = (q_BTHK, k_BTGK, v_BTGK)
    match chosen.name:
        case "xla":
            return attend_einsum(*inputs, document_starts_BT)
        case "pallas":
            options = {"tiles": chosen.tiles, "interpret": chosen.interpret}
            return flash.flash_attention(*inputs, document_starts_BT, document_ends_BT, **options)
        case "cudnn_packed":
            bounds = (document_starts_BT, document_ends_BT)
            attended_BTHK = cudnn.attend_packed(*inputs, *bounds, segments=chosen.segments)
            return checkpoint_name(attended_BTHK, "attended")  # The others name what their backward pass keeps.
        case unknown:
            raise ValueError(f"no attention is called {unknown!r}")


class Choice(NamedTuple):
    """The chosen implementation, and how it was checked."""

    implementation: Implementation
    reason: str
    """Why it was chosen."""
    error: float | None = None
    """Its `attention_error` on the first batch; None where it was not compared."""
    visible: float | None = None
    """Share of the pairs of plain causal attention that the first batch's documents leave; None if not compared."""

    def __str__(self) -> str:
        text = f"{self.implementation.name}, {self.reason}"
        if self.error is not None:
            text += f"; error {self.error:.1e} against xla, forward and backward"
        if self.visible is not None:
            text += f"; {self.visible:.0%} of the causal pairs are visible"
        return text


def choose_implementation(
    config: AttentionConfig,
    shape: AttentionShape,
    document_starts_BT: jax.Array | None = None,
    document_ends_BT: jax.Array | None = None,
    *,
    recorded: Implementation | None = None,
    others: Sequence[AttentionShape] = (),
    take: Callable[[Mapping, Callable[[], Fastest]], Fastest | None] | None = None,
    timer: Timer = milliseconds,
) -> Choice:
    """Returns the implementation for this device and these shapes, compared with `xla` on the bounds of a batch.

    Without bounds it is neither compared nor timed.

    Args:
        recorded: the implementation with which the run started on this device; a resumed run uses the same, unless
            another is configured by name.
        others: further shapes on which it must be able to run.
        take: returns the fastest, given a shape and a function that times it, from the cache if there, as
            `take_fastest` does. None takes the preferred one, untimed.
        timer: times those that can run.

    Raises:
        UserError: the one configured by name cannot run here, or the chosen one fails the comparison.
    """
    device = jax.devices()[0]
    reasons = {
        name: next(filter(None, (why_not(name, each, device) for each in (shape, *others))), "")
        for name in IMPLEMENTATIONS
    }
    is_open = config.implementation == "auto"
    names, reason = [config.implementation], "as configured"
    if is_open:
        names = [name for name in _PREFERENCE if not reasons[name]]
        reason = f"since pallas {reasons['pallas']}" if reasons["pallas"] else "which visits only the documents' blocks"
    else:
        refused = reasons[config.implementation]
        require(not refused, f"attention.implementation = {config.implementation!r} cannot run here: {refused}")
    implementation = _default(names[0], shape)
    if recorded and recorded.name in names:
        implementation, reason = recorded, "as the run began"
    if document_starts_BT is None or document_ends_BT is None:
        return Choice(implementation, reason)
    bounds = document_starts_BT, document_ends_BT
    if is_open and take and implementation is not recorded and names != ["xla"]:
        # The reference would only cost time and memory if something else runs.
        among = [name for name in names if name != "xla"]
        on_trial = _on_trial(shape, *bounds)
        key = {**on_trial[0]._asdict(), "dtype": jnp.dtype(shape.dtype).name, "among": among}
        if fastest := take(key, functools.partial(_fastest, among, *on_trial, timer)):
            implementation, reason = implementation_from(fastest.choice), str(fastest)
    return Choice(implementation, reason, compare_with_xla(implementation, shape, *bounds), visible_share(bounds[0]))


def compare_with_xla(
    implementation: Implementation, shape: AttentionShape, document_starts_BT: jax.Array, document_ends_BT: jax.Array
) -> float | None:
    """Returns the `attention_error` of an implementation on the bounds of a batch; None for `xla` itself.

    Raises:
        UserError: it fails, or the error is larger than rounding explains.
    """
    if implementation.name == "xla":
        return None
    try:
        error = _error(implementation, shape, document_starts_BT, document_ends_BT)
    except Exception as failure:
        if "RESOURCE_EXHAUSTED" in str(failure):  # Another implementation would take more memory.
            raise
        raise UserError(f"attention {implementation.name!r} fails on this device ({failure}): {_ADVICE}") from failure
    tolerance = TOLERANCES[jnp.dtype(shape.dtype).name]
    require(
        error <= tolerance,
        f"attention {implementation.name!r} differs from xla by {error:.2g} on the first batch, more than the "
        f"{tolerance:g} of rounding: {_ADVICE}",
    )
    return error


def _default(name: str, shape: AttentionShape) -> Implementation:
    return Implementation(name, segments=shape.documents_per_row + 1 if name == "cudnn_packed" else 0)


def _on_trial(shape: AttentionShape, starts_BT, ends_BT) -> tuple[AttentionShape, jax.Array, jax.Array]:
    """Returns a shape and the bounds of a batch, cut to the rows that are timed and compared."""
    rows = min(shape.rows, max(1, _TRIAL_TOKENS // shape.row_length))
    return shape._replace(rows=rows), starts_BT[:rows], ends_BT[:rows]


def _error(implementation: Implementation, shape: AttentionShape, *bounds) -> float:
    shape, *bounds = _on_trial(shape, *bounds)
    return attention_error(implementation, Implementation("xla"), random_inputs(*shape[:6]), *bounds)


def _fastest(names: Sequence[str], shape: AttentionShape, starts_BT, ends_BT, timer: Timer) -> Fastest:
    """Returns the fastest implementation, forward and backward."""
    inputs = random_inputs(*shape[:6])
    candidates, failures = {name: _default(name, shape) for name in names}, {}
    if "pallas" in candidates:
        try:
            candidates["pallas"] = Implementation("pallas", tiles=fastest_tiles(inputs, starts_BT, ends_BT, timer))
        except Exception as failure:
            failures["pallas"] = describe_failure(failure)
    ways = {
        name: (dataclasses.asdict(each), functools.partial(forward_backward, each, *inputs, starts_BT, ends_BT))
        for name, each in candidates.items()
    }
    return time_ways("attention", ways, timer, failed=failures, advice=_ADVICE)
