"""The proof finds what it is there to find: a leak in attention, ids beyond the vocabulary, a loss that is off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import model
from jaxformer.attention import dispatch
from jaxformer.config import UserError
from jaxformer.loss_kernels import Kernels, Tile
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.run import sanity_check
from jaxformer.run.sanity_check import batch_to_check, check_loss, check_sanity
from jaxformer.step import init_state

pytestmark = pytest.mark.device_free

V, T = 37, 12
MODEL = ModelConfig(vocabulary_size=V, width=12, depth=2, heads=2)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), steps=9)


LENGTHS = [[12], [3, 4, 2], [7, 5], [2, 2, 2, 2, 2]]


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(LENGTHS, T, V)


@pytest.fixture(scope="module")
def state():
    return init_state(MODEL, OPTIMIZER, seed=0)


def test_right_model_is_proved_on_the_rows_with_the_most_documents(state, batch):
    proof = check_sanity(state, batch, V)
    assert proof.documents == [5, 3]
    assert proof.loss == pytest.approx(np.log(V), rel=0.05)
    assert str(proof).startswith("no gradient flows between the 5 + 3 documents of 2 rows; all ids lie in")


def test_batch_to_prove_is_the_first_with_two_documents_in_a_row(make_batch):
    one, two = make_batch([[9], [5]], T, V), make_batch([[9], [5, 2]], T, V)
    assert batch_to_check(iter([one, two, one])) is two
    assert batch_to_check(iter([one] + [make_batch([[3]], T, V)] * 99)) is one


def test_no_more_rows_are_looked_at_than_a_step_computes_at_once(state, batch):
    assert check_sanity(state.replace(micro_batches=4), batch, V).documents == [5]


def test_row_of_one_document_has_nothing_to_leak(state, make_batch):
    assert str(check_sanity(state, make_batch([[9]], T, V), V)).startswith("no checked row holds two documents")


def test_rows_without_a_document_mask_are_proved_but_for_the_documents_and_the_proof_says_so(state, make_batch):
    batch = make_batch([[9], [12]], T, V)
    proof = check_sanity(state, batch, V, document_mask=False)
    assert str(proof).startswith("the documents of a row see one another, as configured (packing.document_mask=false);")
    assert "all ids lie in the vocabulary; the loss is 3.6" in str(proof)
    batch.tokens_BT[0, 3] = V
    with pytest.raises(UserError, match="token ids of a batch"):
        check_sanity(state, batch, V, document_mask=False)


# The mask that one sees instead of the right one: too early a start, or too late an end.
WRONG = {
    "no_mask": lambda starts: jnp.zeros_like(starts),
    "one_token_too_early": lambda starts: jnp.maximum(starts - 1, 0),
    "every_other_document": lambda starts: jnp.where(starts == 4, 0, starts),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_attention_that_sees_a_neighbour_is_found(wrong, state, batch, monkeypatch):
    def leaking(q, k, v, starts, ends, *, implementation):
        return dispatch.attend(q, k, v, wrong(starts), ends, implementation=implementation)

    monkeypatch.setattr(model, "attend", leaking)
    jax.clear_caches()
    with pytest.raises(UserError, match=r"a gradient of .* flows between documents of a row; report it"):
        check_sanity(state, batch, V)
    jax.clear_caches()


def test_no_gradient_at_all_is_not_taken_for_one_that_does_not_leak(state, batch):
    is_even = (batch.segment_ids_BT % 2 == 0).astype(np.float32)
    with pytest.raises(UserError, match="no gradient flows within the documents"):
        check_sanity(state, batch._replace(loss_weights_BT=batch.loss_weights_BT * is_even), V)


@pytest.mark.parametrize(("field", "value"), [("tokens_BT", V), ("tokens_BT", -1), ("targets_BT", V)])
def test_id_outside_of_the_vocabulary_is_found(field, value, state, batch):
    ids = getattr(batch, field).copy()
    ids[0, 3] = value
    with pytest.raises(UserError, match=f"ids of a batch, .* do not lie in the vocabulary of {V}"):
        check_sanity(state, batch._replace(**{field: ids}), V)


def test_loss_far_from_that_of_a_uniform_guess_is_found_before_the_first_step_only(state, batch):
    params = jax.tree.map(lambda x: 40 * x, state.params)
    with pytest.raises(UserError, match=f"and a uniform guess has ln {V} = 3.611"):
        check_sanity(state.replace(params=params), batch, V)
    check_sanity(state.replace(params=params, step=jnp.int32(5)), batch, V)
    check_sanity(state.replace(params=params), batch, V, is_drawn=False)


def test_loss_that_is_not_finite_is_found_at_any_step(state, batch):
    params = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), state.params)
    with pytest.raises(UserError, match="proof: "):
        check_sanity(state.replace(params=params, step=jnp.int32(5)), batch, V)


LOSS = ModelConfig(vocabulary_size=300, width=32, depth=1, heads=2, logit_soft_cap=5.0, z_loss=0.01)


@pytest.fixture
def kernels(monkeypatch):
    """Interpreted, as the kernels of this device."""
    sanity_check._loss_errors.clear_cache()
    kernels = Kernels(Tile(128, 64, 32, 4, 2), interpret=True)
    monkeypatch.setattr(sanity_check, "find_kernels", lambda *_: kernels)
    return kernels


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_of_the_loss_are_compared_with_xla(kernels, dtype):
    text = check_loss(LOSS, dtype, 290)
    assert text.startswith("pallas:128x64x32x4x2, whose logits stay on the chip; error ")
    assert float(text.split()[8]) < 1e-2


def test_loss_by_xla_is_not_compared_with_itself():
    assert check_loss(LOSS, "bfloat16", 290) == ""


@pytest.mark.parametrize(
    ("method", "result", "reason"),
    [
        ("partition", lambda out: out._replace(log_partition_N=out.log_partition_N + 2e-3), "the nats of the loss"),
        ("gradient", lambda out: out.at[:, 64:128].set(0), "the gradients of the loss"),
        ("gradient", lambda out: out * jnp.nan, "the gradients of the loss"),
        ("gradient", lambda out: 1 / 0, "fails on this device"),
    ],
)
def test_kernels_of_the_loss_that_are_wrong_are_refused(kernels, monkeypatch, method, result, reason):
    right = getattr(Kernels, method)
    monkeypatch.setattr(Kernels, method, lambda *args, **options: result(right(*args, **options)))
    with pytest.raises(UserError, match=reason):
        check_loss(LOSS, "bfloat16", 290)
