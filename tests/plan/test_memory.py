"""The memory of a step by formula, against the compiler's, and what the blocks keep, against a count by hand."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import optax
import pytest

from jaxformer.config import replace
from jaxformer.experiment.experiment import run_mesh
from jaxformer.experiment.resolution import load_experiment
from jaxformer.model import ModelConfig
from jaxformer.optimizer import Optimizer
from jaxformer.plan.compiled_step import compiled_bytes, lower_steps
from jaxformer.plan.memory import Target, saved_activations, step_memory

pytestmark = pytest.mark.device_free

# What XLA needs on an H100, or on each of several, for a step of a size, bytes: rows of 2,048, remat, micro-batches,
# and what differs from pallas on one device (`tools/check_memory.py`); the loss is by XLA.
COMPILED = [
    ("baseline_27m", 16, "elementwise", 1, 4.15e9, {}),
    ("baseline_100m", 16, "elementwise", 1, 9.97e9, {}),
    ("baseline_100m", 16, "elementwise", 4, 5.26e9, {}),
    ("baseline_100m", 16, "block", 1, 3.91e9, {}),
    ("baseline_100m", 32, "block", 1, 5.88e9, {"attention": "xla"}),
    ("baseline_100m", 64, "elementwise", 1, 6.59e9, {"data": 8}),
    ("baseline_100m", 64, "elementwise", 1, 5.37e9, {"fsdp": 8}),
    ("baseline_100m", 128, "block", 8, 1.42e9, {"data": 2, "fsdp": 4}),
    ("baseline_500m", 32, "elementwise", 1, 63.38e9, {}),
    ("baseline_500m", 32, "feed_forward", 4, 19.60e9, {}),
    ("baseline_500m", 32, "block", 1, 15.78e9, {}),
    ("baseline_500m", 32, "block", 1, 16.76e9, {"attention": "xla"}),
    ("baseline_500m", 64, "block", 4, 2.38e9, {"fsdp": 8}),
    ("mixture_of_experts@baseline_27m", 16, "elementwise", 1, 4.54e9, {}),
    ("hyper_connections@baseline_27m", 16, "elementwise", 1, 5.38e9, {}),
    ("hyper_connections@baseline_27m", 16, "block", 1, 2.96e9, {}),
    ("manifold_hyper_connections@baseline_27m", 16, "elementwise", 1, 5.39e9, {}),
    ("latent_attention@baseline_27m", 16, "elementwise", 1, 4.29e9, {}),
    ("hybrid_attention@baseline_27m", 16, "none", 1, 5.33e9, {}),
    ("hybrid_attention@baseline_27m", 16, "elementwise", 1, 3.00e9, {}),
    ("value_embeddings@baseline_27m", 16, "elementwise", 1, 4.65e9, {}),
    ("multi_token_prediction@baseline_27m", 16, "elementwise", 1, 4.78e9, {}),
]

# The same with kernels for the loss.
WITH_LOSS_KERNELS = [
    ("baseline_27m", 16, "elementwise", 1, 3.08e9, {}),
    ("baseline_100m", 16, "elementwise", 4, 4.22e9, {}),
    ("baseline_100m", 16, "block", 1, 3.12e9, {}),
    ("baseline_500m", 32, "block", 1, 15.77e9, {}),
]


@pytest.mark.parametrize(
    ("loss", "name", "rows", "remat", "micro_batches", "compiled", "other"),
    [
        *(("xla", *each) for each in COMPILED),
        *(("auto", *each) for each in WITH_LOSS_KERNELS),
        *((name, *WITH_LOSS_KERNELS[0]) for name in ("pallas", "pallas:128x128x64x8x3")),
    ],
)
def test_formula_is_within_a_tenth_of_what_was_compiled_for_a_gpu(
    loss, name, rows, remat, micro_batches, compiled, other
):
    values = {"training.rows_per_step": rows, "training.micro_batches": micro_batches, "model.remat": remat}
    target = Target("H100", "gpu", 0, **{"attention": "pallas", "dtype": jnp.bfloat16, **other})
    experiment = replace(load_experiment(name), values | {"model.loss": loss})
    assert step_memory(experiment, target).peak == pytest.approx(compiled, rel=0.1)


@pytest.mark.parametrize(("remat", "micro_batches"), [("elementwise", 1), ("block", 2)])
def test_formula_is_within_a_tenth_of_what_is_compiled_here(remat, micro_batches):
    values = {
        "model.scan_unroll": 1,
        "model.remat": remat,
        "packing.row_length": 64,
        "training.rows_per_step": 32,
        "training.micro_batches": micro_batches,
        "training.compute_dtype": "float32",
        "attention.implementation": "xla",
    }
    experiment = replace(load_experiment("baseline"), values)
    (step,) = lower_steps(experiment, run_mesh(experiment), 4096)
    total = compiled_bytes(step.compile())
    assert step_memory(experiment, Target("cpu", "cpu", 0, "xla", jnp.float32)).peak == pytest.approx(total, rel=0.1)


@dataclass(frozen=True)
class OneMoment(Optimizer):
    def transform(self, config, model):
        return optax.trace(decay=0.9)


def test_optimizer_of_ones_own_takes_what_its_state_does():
    baseline, target = load_experiment("baseline"), Target("cpu", "cpu", 0, "xla", jnp.float32)
    adamw, own = (
        step_memory(replace(baseline, {"optimizer.name": name, "model.remat": "none"}), target)
        for name in ("adamw", OneMoment())
    )
    # A count of steps has 4 bytes: one of AdamW, and one of each schedule.
    assert (adamw.optimizer, own.optimizer) == (2 * adamw.parameters + 8, adamw.parameters + 4)


# Of a token, in bfloat16: queries, keys, values, what attention returns, the stream before either half, and the hidden
# features, four times as wide; a log-sum-exp in float32 for each head.
@pytest.mark.parametrize(
    ("remat", "features", "heads"), [("elementwise", 4 + 2 + 4, 1), ("feed_forward", 4 + 2, 1), ("block", 1, 0)]
)
def test_blocks_keep_what_their_remat_names_and_no_more(remat, features, heads):
    T, D, H, L = 128, 96, 3, 5
    model = ModelConfig(vocabulary_size=7, width=D, depth=L, heads=H, remat=remat)
    kept = saved_activations(model, T, "pallas", jnp.bfloat16)
    assert kept.attention + kept.feed_forward + kept.stream == L * T * (2 * features * D + 4 * heads * H)
    assert kept.feed_forward == (L * T * 2 * 4 * D if remat == "elementwise" else 0)


@pytest.mark.parametrize("F", [48, 96])
def test_the_sum_of_what_blocks_keep_is_right_where_a_feed_forward_is_as_narrow_as_the_stream(F):
    T, D, H, L = 128, 96, 3, 5
    model = ModelConfig(vocabulary_size=7, width=D, depth=L, heads=H, feed_forward_width=F, remat="elementwise")
    assert sum(saved_activations(model, T, "pallas", jnp.bfloat16)) == L * T * (2 * (6 * D + F) + 4 * H)


def test_grouped_queries_keep_fewer_keys_and_values():
    model = ModelConfig(vocabulary_size=7, width=96, depth=5, heads=6, remat="feed_forward")
    grouped = dataclasses.replace(model, key_value_heads=2)
    kept = [saved_activations(each, 128, "pallas", jnp.bfloat16).attention for each in (model, grouped)]
    assert kept[0] - kept[1] == 5 * 128 * 2 * (2 * 4 * 16)
