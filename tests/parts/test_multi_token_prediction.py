"""Multi-token prediction, against a loop over tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.layers import Context
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.parts.multi_token_prediction import MultiTokenPrediction
from jaxformer.step import gradients, init_state, rows_of, train_step

pytestmark = pytest.mark.device_free

V, T = 11, 12
PART = MultiTokenPrediction(further=2, weight=0.25)
CONFIG = ModelConfig(vocabulary_size=V, width=16, depth=2, heads=2, feed_forward_width=20, auxiliary_loss=PART)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0), 9)


def make_state(config=CONFIG, **options):
    return init_state(config, OPTIMIZER, seed=0, **options)


def test_losses_equal_a_loop_over_tokens(make_batch):
    batch = make_batch([[5, 4, 2], [12]], T, V)
    model = make_state().model
    rows = rows_of(batch)
    features_ND, _ = model.features_and_sums(rows)
    losses = model.auxiliary_loss(model, features_ND, rows, batch.targets_BT).losses
    heads, attend = model.auxiliary_loss, model.attend_rows(rows)
    context = Context(rows, model.rotation(rows.positions_BT.reshape(-1)), lambda q, k, v: attend(q, k, v, 0, False)[0])
    for further, (block, norm) in enumerate(zip(heads.blocks_ahead, heads.norms, strict=True), 1):
        logits_BTV = np.asarray(norm(block(features_ND, context)[0]) @ model.unembedding_VD.T).reshape(2, T, V)
        expected = 0.0
        for b, t in np.ndindex(2, T):
            document = batch.segment_ids_BT[b, t]
            if document and t + further < T and batch.segment_ids_BT[b, t + further] == document:
                logits_V = logits_BTV[b, t]
                expected += np.log(np.exp(logits_V).sum()) - logits_V[batch.targets_BT[b, t + further]]
        np.testing.assert_allclose(losses[f"{further}_further"], 0.25 * expected, rtol=1e-5)


def test_objective_has_the_losses_and_the_loss_of_the_next_token_has_not(make_batch):
    batch = make_batch([[5, 4, 2], [12]], T, V)
    plain = make_state(dataclasses.replace(CONFIG, auxiliary_loss=None))
    (grads, sums), (_, alone) = (jax.jit(gradients)(state, batch) for state in (make_state(), plain))
    assert sums.nats == alone.nats and sums.weight == alone.weight == 23
    added = sum(total for name, total in sums.reported.items() if name.startswith("auxiliary_loss/"))
    np.testing.assert_allclose(sums.objective, alone.objective + added, rtol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    metrics = jax.jit(train_step)(make_state(micro_batches=2), batch)[1]
    np.testing.assert_allclose(
        metrics["reported"]["auxiliary_loss/2_further"], sums.reported["auxiliary_loss/2_further"] / 23, rtol=1e-5
    )
