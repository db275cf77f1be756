"""Which implementation of the loss, tile included, is the fastest on the GPU at hand: timed once, and kept."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.config import replace
from jaxformer.devices.device import compute_capability
from jaxformer.devices.fastest import Fastest, Timer, take_fastest, time_ways
from jaxformer.devices.multihost import from_first
from jaxformer.devices.timing import milliseconds
from jaxformer.experiment.experiment import Experiment
from jaxformer.host.console import print_wrapped, show_status
from jaxformer.loss import cross_entropy, find_kernels
from jaxformer.loss_kernels import candidate_tiles
from jaxformer.plan.memory import Target
from jaxformer.run.identity import timed_with

# Tokens on which it is timed, at most: the chunk of `xla` at a vocabulary of 32,768.
_MOST_TOKENS = 1 << 13


def with_fastest_loss(
    experiment: Experiment, target: Target, *, record: dict | None = None, timer: Timer = milliseconds
) -> Experiment:
    """Returns the experiment with the implementation of its loss, where more than one can run and none is named.

    It is that with which a run began on the device, else the fastest, which is printed. Several processes time none:
    one in which it fails would leave the others waiting.

    Args:
        target: the device at hand.
        record: the `config.json` of the run so far.
        timer: of the losses on random features, forward and backward.
    """
    is_here = record and target.is_recorded(record)
    before = from_first(record.get("config", {}).get("model", {}).get("loss", "xla") if record and is_here else "auto")
    if before != "auto" and _is_open(experiment, target):
        return replace(experiment, {"model.loss": before})
    time = functools.partial(_time, experiment, target, timer) if jax.process_count() == 1 else lambda: None
    experiment, fastest = _with_loss(experiment, target, time)
    if fastest:
        print_wrapped(f"loss        {experiment.model.loss}, {fastest}")
    return experiment


def with_kept_loss(experiment: Experiment, target: Target) -> Experiment:
    """Returns the same for a plan: with what is kept to be the fastest, if something is."""
    return _with_loss(experiment, target, lambda: None)[0]


def _is_open(experiment: Experiment, target: Target) -> bool:
    model = experiment.model
    return model.loss == "auto" and find_kernels("auto", model.width, target.dtype) is not None


def _with_loss(
    experiment: Experiment, target: Target, time: Callable[[], Fastest | None]
) -> tuple[Experiment, Fastest | None]:
    if not _is_open(experiment, target):
        return experiment, None
    model = experiment.model
    key = {
        "tokens": _tokens(experiment, target),
        "dtype": jnp.dtype(target.dtype).name,
        "ids": experiment.tokenizer.vocabulary_size,
        "chunk": model.loss_chunk_tokens,
        **{name: getattr(model, name) for name in ("width", "vocabulary_size", "logit_soft_cap", "z_loss")},
    }
    fastest = take_fastest("loss", {**timed_with(), **key}, time)
    return (replace(experiment, {"model.loss": fastest.choice}) if fastest else experiment), fastest


def _tokens(experiment: Experiment, target: Target) -> int:
    training = experiment.training
    rows = training.rows_per_step // (target.devices * (training.micro_batches or 1))
    return min(_MOST_TOKENS, rows * experiment.packing.row_length)


def _time(experiment: Experiment, target: Target, timer: Timer) -> Fastest:
    """Returns the fastest, forward and backward, on random features."""
    show_status("timing the loss")
    model, N = experiment.model, _tokens(experiment, target)
    keys = jax.random.split(jax.random.key(0))
    features_ND = jax.random.normal(keys[0], (N, model.width), target.dtype)
    unembedding_VD = model.width**-0.5 * jax.random.normal(keys[1], (model.vocabulary_size, model.width), target.dtype)

    token_count = min(experiment.tokenizer.vocabulary_size, model.vocabulary_size)

    def computed_by(name: str) -> Callable[[], Any]:
        def objective(features_ND, unembedding_VD):
            return cross_entropy(
                features_ND,
                unembedding_VD,
                jnp.arange(N) % token_count,
                jnp.ones(N, jnp.float32),
                logit_soft_cap=model.logit_soft_cap,
                token_count=token_count,
                z_loss_coefficient=model.z_loss,
                chunk_tokens=model.loss_chunk_tokens,
                implementation=name,
            ).objective

        return functools.partial(jax.jit(jax.grad(objective, argnums=(0, 1))), features_ND, unembedding_VD)

    # None is left out for its size: `loss` pads the tokens to whole tiles.
    tiles = candidate_tiles(model.logit_soft_cap, compute_capability(jax.devices()[0]))
    ways = {name: (name, computed_by(name)) for name in (*(f"pallas:{tile}" for tile in tiles), "xla")}
    return time_ways("loss", ways, timer, advice="run with --model.loss=xla, and report it")
