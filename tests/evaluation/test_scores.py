"""Scores against numbers worked by hand, and standard errors against numpy and simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.scores import chance, estimate, estimate_ratio, score_items
from jaxformer.evaluation.tasks import load_task

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

FLOAT64 = 1e-12


def item(*texts: str, gold: int = 0) -> Item:
    return Item(tuple(Option("context", " " + text) for text in texts), gold)


def scores_of(one: Item, nats: list[float], is_greedy: bool = False) -> dict[str, float]:
    """Returns the scores of one item by name."""
    scores = score_items([one], [np.array(nats)], [is_greedy])
    return {name: float(values[0]) for name, values in scores._asdict().items()}


# Scores of items.


@pytest.mark.parametrize(
    ("texts", "nats", "gold", "acc", "acc_norm", "margin"),
    [
        # Per character: -1.5, -1.
        (("ab", "abcd"), [-3.0, -4.0], 0, 1, 0, -0.5),
        (("ab", "abcd"), [-3.0, -4.0], 1, 0, 1, 0.5),
        # Equal: the first is taken.
        (("ab", "cd", "ef"), [-3.0, -3.0, -3.0], 0, 1, 1, 0.0),
        (("ab", "cd", "ef"), [-3.0, -3.0, -3.0], 1, 0, 0, 0.0),
        (("ab", "cd", "ef"), [-5.0, -3.0, -3.0], 2, 0, 0, 0.0),
        # Per character: -2, -1, -3; the best other one is the second.
        (("a", "abcd", "ab"), [-2.0, -4.0, -6.0], 0, 1, 0, -1.0),
        (("a", "abcd", "ab"), [-2.0, -4.0, -6.0], 2, 0, 0, -2.0),
        (("a", "abcd", "ab"), [-2.0, -4.0, -6.0], 1, 0, 1, 1.0),
        # Two characters in six bytes against three in three: -1.5 and -1.2, where bytes would turn it round.
        (("\u20ac\u20ac", "abc"), [-3.0, -3.6], 0, 1, 0, -0.3),
        (("\u00e9", "ab"), [-1.0, -1.2], 1, 0, 1, 0.4),
        # A second space counts as a character: -2 / 2 against -1.8 / 1.
        ((" a", "b"), [-2.0, -1.8], 0, 0, 1, 0.8),
    ],
)
def test_scores_of_an_item_equal_those_worked_by_hand(texts, nats, gold, acc, acc_norm, margin):
    scores = scores_of(item(*texts, gold=gold), nats)
    assert (scores["acc"], scores["acc_norm"]) == (acc, acc_norm)
    assert scores["margin"] == pytest.approx(margin, abs=FLOAT64)


@pytest.mark.parametrize(
    ("text", "bits"), [("abcd", 2.0), ("\u20ac", 8 / 3), ("\u00e9", 4.0), ("a\u00e9", 8 / 3), (" a", 4.0)]
)
def test_bits_per_byte_are_those_of_the_right_option_per_utf8_byte(text, bits):
    nats = -8 * math.log(2)
    for options, gold in (((text, "other"), 0), (("other", text), 1), ((text,), 0)):
        log_likelihoods = [-1.0] * len(options)
        log_likelihoods[gold] = nats
        scores = scores_of(item(*options, gold=gold), log_likelihoods)
        assert scores["gold_bits_per_byte"] == pytest.approx(bits, rel=FLOAT64)


@pytest.mark.parametrize("is_greedy", [False, True])
def test_a_single_option_is_right_where_the_model_would_write_it(is_greedy):
    scores = scores_of(item("word"), [-2.0], is_greedy)
    assert scores["acc"] == scores["acc_norm"] == is_greedy
    assert math.isnan(scores["margin"])
    # Of several options the likeliest is taken, whatever the model itself would write.
    assert scores_of(item("a", "b"), [-2.0, -1.0], is_greedy)["acc"] == 0


def test_scores_are_in_the_order_of_the_items_and_float64():
    mixed = [item("a", "b", gold=1), item("word"), item("a", "bb", "ccc", gold=2)]
    scores = score_items(mixed, [np.array([-2.0, -1.0]), np.array([-3.0]), np.array([-1.0, -2.0, -9.0])], [0, 1, 1])
    np.testing.assert_array_equal(scores.acc, [1, 1, 0])
    np.testing.assert_allclose(scores.margin, [1, np.nan, -2], rtol=FLOAT64)
    assert {values.dtype for values in scores} == {np.dtype(np.float64)}
    assert {values.shape for values in scores} == {(3,)}


def test_items_and_log_likelihoods_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        score_items([item("a", "b")], [], [True])


texts_and_nats = st.lists(
    st.tuples(st.text(min_size=1, max_size=6).filter(lambda t: t.isprintable()), st.integers(-40, 0)),
    min_size=2,
    max_size=5,
)


@given(texts_and_nats, st.data())
def test_the_sign_of_the_margin_agrees_with_acc_norm(options, data):
    gold = data.draw(st.integers(0, len(options) - 1))
    scores = scores_of(item(*(text for text, _ in options), gold=gold), [float(nats) for _, nats in options])
    if scores["margin"] > 0:
        assert scores["acc_norm"] == 1
    elif scores["margin"] < 0:
        assert scores["acc_norm"] == 0
    else:
        values = [nats / len(text) for text, nats in options]
        assert scores["acc_norm"] == (values.index(max(values)) == gold)


@given(texts_and_nats, st.data())
def test_one_option_is_right_by_each_accuracy_whichever_is_gold(options, data):
    each = [
        scores_of(item(*(t for t, _ in options), gold=gold), [float(n) for _, n in options])
        for gold in range(len(options))
    ]
    for name in ("acc", "acc_norm"):
        assert sum(scores[name] for scores in each) == 1


def many_items(count: int) -> tuple[list[Item], np.random.Generator]:
    """Returns items of 2 to 5 options with the right one anywhere."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        texts = ["x" * int(rng.integers(1, 9)) for _ in range(rng.integers(2, 6))]
        made.append(item(*texts, gold=int(rng.integers(len(texts)))))
    return made, rng


def test_who_knows_the_answers_is_always_right():
    known, rng = many_items(300)
    nats = []
    for one in known:
        values = -100 - rng.random(len(one.options))
        values[one.gold] = -1e-3
        nats.append(values)
    scores = score_items(known, nats, [False] * 300)
    assert estimate(scores.acc) == estimate(scores.acc_norm) == (1.0, 0.0)
    assert (scores.margin > 0).all()


def test_equal_scores_take_the_first_option():
    equal, _ = many_items(300)
    scores = score_items(equal, [np.full(len(one.options), -7.0) for one in equal], [True] * 300)
    first = np.mean([one.gold == 0 for one in equal])
    assert 0 < scores.acc.mean() == first < 1


def test_who_guesses_is_right_by_chance():
    guessed, rng = many_items(4000)
    nats = [-rng.random(len(one.options)) * [len(option.text) for option in one.options] for one in guessed]
    found = estimate(score_items(guessed, nats, [False] * 4000).acc_norm)
    assert abs(found.mean - chance(guessed)) < 2 * found.standard_error
    assert found.standard_error == pytest.approx(math.sqrt(found.mean * (1 - found.mean) / 4000), rel=1e-3)


def test_chance_is_the_mean_over_items_of_one_in_so_many_options():
    assert chance([item("a", "b")]) == 0.5
    assert chance([item("a", "b"), item("a", "b", "c", "d"), item(*"abcde")]) == pytest.approx(
        (1 / 2 + 1 / 4 + 1 / 5) / 3
    )


# Estimates.


def test_the_standard_error_of_a_mean_is_that_of_the_sample():
    values = np.random.default_rng(0).normal(3.0, 2.0, 57)
    found = estimate(values)
    assert found.mean == pytest.approx(np.sum(values) / 57, rel=FLOAT64)
    variance = np.sum((values - found.mean) ** 2) / 56
    assert found.standard_error == pytest.approx(math.sqrt(variance / 57), rel=FLOAT64)
    assert estimate(np.array([1.0, 0.0, 0.0, 1.0])).standard_error == pytest.approx(math.sqrt(1 / 3) / 2, rel=FLOAT64)


def test_the_standard_error_of_one_item_is_unknown():
    found = estimate(np.array([0.25]))
    assert found.mean == 0.25
    assert math.isnan(found.standard_error)


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns numerators and denominators that go together, as nats and tokens do."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 50, count)
    return 3.0 * x + rng.normal(0, 4, count), x


def test_a_ratio_of_equal_denominators_is_a_mean():
    y, _ = pairs(23)
    found, mean = estimate_ratio([(y, np.full(23, 4))]), estimate(y / 4)
    assert found.mean == pytest.approx(mean.mean, rel=FLOAT64)
    assert found.standard_error == pytest.approx(mean.standard_error, rel=FLOAT64)


def test_the_standard_error_of_a_ratio_is_worked_by_hand():
    # r = 18 / 6 = 3; y - 3 x = 1, -2, 1, whose variance is 3; sqrt(3 x 3) / 6.
    assert estimate_ratio([(np.array([4.0, 4.0, 10.0]), np.array([1, 2, 3]))]) == pytest.approx((3.0, 0.5), rel=FLOAT64)
    # Another stratum: r = 36 / 12 = 3; y - 3 x = 2, -2, whose variance is 8; sqrt(3 x 3 + 2 x 8) / 12.
    strata = [(np.array([4.0, 4.0, 10.0]), np.array([1, 2, 3])), (np.array([8.0, 10.0]), np.array([2, 4]))]
    assert estimate_ratio(strata) == pytest.approx((3.0, 5 / 12), rel=FLOAT64)
    # Strata whose own ratios are not r = 24 / 12 = 2: y - 2 x = 2, 0, 4 and 0, -6; sqrt(3 x 4 + 2 x 18) / 12.
    strata[1] = (np.array([4.0, 2.0]), np.array([2, 4]))
    assert estimate_ratio(strata) == pytest.approx((2.0, math.sqrt(48) / 12), rel=FLOAT64)


def test_strata_that_differ_add_no_variance_between_them():
    # Within each stratum every ratio is the same for all, so that nothing is uncertain but what r itself is.
    x = np.full(5, 2)
    strata = [(np.full(5, 2.0), x), (np.full(5, 6.0), x)]
    assert estimate_ratio(strata) == pytest.approx((2.0, 0.0), abs=FLOAT64)
    merged = estimate_ratio([tuple(np.concatenate(each) for each in zip(*strata, strict=True))])
    assert merged.mean == 2.0
    assert merged.standard_error > 0.3


@pytest.mark.parametrize("unit", [math.log(2), 1000.0])
def test_a_ratio_scales_with_the_unit_of_numerators_and_inversely_with_that_of_denominators(unit):
    strata = [pairs(11), pairs(7, seed=1)]
    found = np.array(estimate_ratio(strata))
    np.testing.assert_allclose(estimate_ratio([(y / unit, x) for y, x in strata]), found / unit, rtol=FLOAT64)
    np.testing.assert_allclose(estimate_ratio([(y, x / unit) for y, x in strata]), found * unit, rtol=FLOAT64)
    np.testing.assert_allclose(estimate_ratio([(y / unit, x / unit) for y, x in strata]), found, rtol=FLOAT64)


def test_a_constant_ratio_is_certain_whatever_the_denominators():
    _, x = pairs(19)
    assert estimate_ratio([(2.5 * x, x)]) == pytest.approx((2.5, 0.0), abs=FLOAT64)


def test_a_stratum_of_one_leaves_the_standard_error_unknown():
    one, many = (np.array([3.0]), np.array([2])), pairs(11)
    for strata in ([one], [many, one], [one, many]):
        found = estimate_ratio(strata)
        assert found.mean == pytest.approx(sum(y.sum() for y, _ in strata) / sum(x.sum() for _, x in strata))
        assert math.isnan(found.standard_error)


def test_the_standard_error_of_a_ratio_is_the_spread_of_ratios_of_new_samples():
    drawn = [[pairs(120, seed), pairs(80, 10_000 + seed)] for seed in range(1500)]
    found = np.array([estimate_ratio(strata) for strata in drawn])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.06)


EVALS = Path(__file__).parents[3] / "shared" / "data" / "evals"


@pytest.mark.skipif(not EVALS.is_dir(), reason="needs the evaluation sets")
@pytest.mark.parametrize(
    ("name", "file"),
    [("hellaswag", "hellaswag_val_raw1000"), ("arc_easy", "arc_easy_test"), ("winogrande", "winogrande_xl_dev")],
)
def test_who_knows_the_real_answers_is_always_right_and_who_knows_nothing_by_chance(name, file):
    asked = load_task(name, str(EVALS / f"{file}.jsonl")).items
    lengths = [np.array([len(option.text) for option in one.options], np.float64) for one in asked]

    def acc(nats, asked=asked):
        scores = score_items(asked, nats, [False] * len(asked))
        return estimate(scores.acc), estimate(scores.acc_norm)

    known = [np.where(np.arange(len(n)) == one.gold, -1e-3, -9.0) * n for n, one in zip(lengths, asked, strict=True)]
    assert acc(known)[1] == (1.0, 0.0) and acc([n / m for n, m in zip(known, lengths, strict=True)])[0] == (1.0, 0.0)
    first = np.mean([one.gold == 0 for one in asked])
    assert acc([np.full(len(n), -7.0) for n in lengths])[0].mean == acc([-n for n in lengths])[1].mean == first
    rng = np.random.default_rng(0)
    shuffled = [one._replace(gold=int(rng.integers(len(one.options)))) for one in asked]
    for found in acc(known, shuffled):
        assert abs(found.mean - chance(asked)) < 2 * found.standard_error
