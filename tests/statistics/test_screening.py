"""Two-level designs: what their columns are, what their effects hold, and how often changes without effect survive."""

import itertools

import numpy as np
import pytest
from simulated_studies import at_most

from jaxformer.statistics.screening import (
    EXPECTED_FALSE,
    ROWS,
    estimate_effects,
    interaction_weights,
    make_design,
    screen,
    smallest_rows,
)

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

DESIGNS = [(smallest_rows(changes), changes) for changes in range(3, 24)]
DESIGNS += [(2 * rows, changes) for rows in ROWS for changes in (rows // 2 + 1, rows)]


@pytest.mark.parametrize(("rows", "changes"), DESIGNS)
def test_each_change_is_on_in_half_of_the_rows_whatever_others_are(rows, changes):
    signs_RN = make_design(changes, rows).signs_RN
    assert (signs_RN.T @ signs_RN == rows * np.eye(changes)).all() and (signs_RN.sum(0) == 0).all()
    assert (signs_RN[0] == -1).all(), "the first row is the parent"
    assert len(np.unique(signs_RN, axis=0)) == rows, "no experiment is run twice"


@pytest.mark.parametrize(("rows", "changes", "resolution"), [(12, 11, 3), (16, 9, 3), (16, 8, 4), (24, 11, 4)])
def test_effects_hold_the_interactions_that_the_weights_name(rows, changes, resolution):
    design, rng = make_design(changes, rows), np.random.default_rng(0)
    weights_NP, pairs = interaction_weights(design)
    effects_N, interactions_P = rng.normal(size=changes), rng.normal(size=len(pairs))
    values_R = design.on_RN @ effects_N
    for (first, second), value in zip(pairs, interactions_P, strict=True):
        values_R = values_R + value * (design.on_RN[:, first] & design.on_RN[:, second])
    found_N = estimate_effects(design, values_R[:, None])
    np.testing.assert_allclose(found_N, effects_N + weights_NP @ interactions_P, atol=1e-12)
    is_other_NP = np.array([[n not in pair for pair in pairs] for n in range(changes)])
    assert (design.resolution == 4) == (not weights_NP[is_other_NP].any()) == (resolution == 4)


def test_the_error_is_that_of_least_squares_with_seeds_as_blocks():
    design, rng = make_design(8, 12), np.random.default_rng(1)
    values_RS = rng.normal(size=(12, 3)) + 5 * rng.normal(size=3)
    effects = screen(design, values_RS).effects
    # Each row a mean of its own beside the seeds: what is left is the seeds' error.
    columns = [np.kron(np.eye(12), np.ones((3, 1))), np.kron(np.ones((12, 1)), np.eye(3))]
    _, (left_over,), *_ = np.linalg.lstsq(np.hstack(columns)[:, :-1], values_RS.reshape(-1, 1), rcond=None)
    assert (
        effects[0].seed_variance == pytest.approx(4 / 36 * left_over / 22) and effects[0].seed_degrees_of_freedom == 22
    )
    changes = np.kron(np.hstack([np.ones((12, 1)), design.signs_RN]), np.ones((3, 1)))
    coefficients, (additive,), *_ = np.linalg.lstsq(
        np.hstack([changes, columns[1][:, :-1]]), values_RS.reshape(-1, 1), rcond=None
    )
    np.testing.assert_allclose([each.mean for each in effects], 2 * coefficients[1:9, 0])
    excess = max((additive - left_over) / 3 - left_over / 22, 0)
    assert effects[0].item_variance == pytest.approx(4 / 36 * excess) and effects[0].item_degrees_of_freedom == 3


@pytest.mark.parametrize(("rows", "interactions"), [(12, 0.0), (24, 0.0), (12, 1.0)])
def test_no_more_false_survivors_are_expected_than_stated(rows, interactions):
    design, rng, studies = make_design(9, rows), np.random.default_rng(2), 150
    # What two changes do together, of mean 0 over whether each is on: their own effects are 0 on average.
    pairs = itertools.combinations(range(9), 2)
    products_RP = np.stack([design.signs_RN[:, i] * design.signs_RN[:, j] for i, j in pairs], 1)
    number = 0
    for _ in range(studies):
        values_RS = rng.normal(size=(rows, 2)) + rng.normal(size=2)
        values_RS += interactions * (products_RP @ rng.normal(size=products_RP.shape[1]))[:, None]
        number += len(screen(design, values_RS).survivors)
    assert number / studies <= 9 * at_most(EXPECTED_FALSE / 9, 9 * studies)


def test_interactions_are_seen_in_rows_that_are_left_over():
    rng = np.random.default_rng(3)
    for rows, changes in ((20, 9), (24, 11)):
        design = make_design(changes, rows)
        values_RS = 0.1 * rng.normal(size=(rows, 2)) + (design.on_RN[:, :1] & design.on_RN[:, 1:2])
        assert screen(design, values_RS).interactions_p < 0.01
        assert screen(design, values_RS - values_RS.mean(1, keepdims=True)).interactions_p > 0.5
    assert np.isnan(screen(make_design(11, 12), rng.normal(size=(12, 2))).interactions_p), "no row is left over"


def test_a_real_improvement_survives_first():
    design, rng = make_design(11, 12), np.random.default_rng(4)
    values_RS = rng.normal(size=(12, 2)) - 3.0 * design.on_RN[:, 4:5] + 3.0 * design.on_RN[:, 6:7]
    survivors = screen(design, values_RS).survivors
    assert survivors[0] == 4 and 6 not in survivors


def test_one_seed_shows_no_error_and_its_best_quarter_survives():
    design, rng = make_design(11, 12), np.random.default_rng(4)
    values_RS = 0.1 * rng.normal(size=(12, 1)) - design.on_RN[:, 4:5] - 2 * design.on_RN[:, 9:10]
    found = screen(design, values_RS)
    assert found.survivors[:2] == (9, 4) and len(found.survivors) <= 3 and np.isnan(found.interactions_p)
    assert not any(each.seeds_counted for each in found.effects)
    assert screen(design, 0.0 * values_RS + 5 * design.on_RN.sum(1, keepdims=True)).survivors == (), "none looks better"


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [(11, 14, "designs have 8, 12, 16"), (12, 12, "room for 11 changes"), (4, 12, "would repeat each other")],
)
def test_what_is_no_design_is_named(changes, rows, message):
    with pytest.raises(ValueError, match=message):
        make_design(changes, rows)
