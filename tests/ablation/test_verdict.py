"""Verdicts follow the rule that is printed, and name the seeds that would decide."""

import inspect
import math

import pytest

from jaxformer.ablation import verdict as rules
from jaxformer.ablation.cost import Cost
from jaxformer.ablation.verdict import RULES, Measured, Rule, Verdict, Word, decide, kept_by_chance
from jaxformer.config import UserError
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.power import seeds_needed

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

SAME = Cost(1.0, (0.99, 1.01), 1.0, 0.5, 0.4)


def findings(mean, error=0.001, *, df=30.0, cost=SAME, worth=1.2, margin=0.004, seeds=3, **options):
    return Measured(Difference(mean, error**2, df), seeds, margin, cost, worth, **options)


def verdict(mean, error=0.001, **options):
    return decide(findings(mean, error, **options), Rule())


@pytest.mark.parametrize(
    ("found", "word", "reason"),
    [
        (verdict(-0.01), Word.KEEP, "is better"),
        (verdict(0.01), Word.REVERT, "is worse"),
        (verdict(-0.01, 0.01), Word.UNDECIDED, "-0.0100 ["),
        (verdict(-0.01, df=1.0), Word.UNDECIDED, ""),
        (verdict(0.0), Word.EQUIVALENT, "the parent stays"),
        # Surely better or worse, by less than the margin.
        (verdict(-0.0005, 1e-5), Word.KEEP, "is better"),
        (verdict(0.0005, 1e-5), Word.REVERT, "is worse"),
        (verdict(0.0005, 1e-5, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.CHEAPER, "0.900 x the time"),
        (verdict(-0.0005, 1e-5, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.KEEP, "is better"),
        (verdict(0.0, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5), worse_tasks=["boolq"]), Word.UNDECIDED, "at boolq"),
        (verdict(0.0, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.CHEAPER, "0.900 x the time"),
        (verdict(0.0, cost=Cost(0.9, (0.7, 1.1), 1.0, 0.5, 0.5)), Word.EQUIVALENT, ""),
        (verdict(0.0, cost=Cost(1.0, (0.9, 1.1), 0.8, 0.5, 0.5)), Word.CHEAPER, "0.800 x the parameters"),
        (verdict(0.0, cost=Cost(1.2, (1.1, 1.3), 0.8, 0.5, 0.5)), Word.EQUIVALENT, ""),
        (verdict(-0.01, worse_tasks=["arc_easy"]), Word.UNDECIDED, "worse at arc_easy"),
        (verdict(0.01, worse_tasks=["arc_easy"]), Word.REVERT, ""),
        (verdict(-0.01, cost=Cost(1.4, (1.3, 1.5), 1.0, 0.5, 0.5)), Word.UNDECIDED, "1.20 x the tokens, but 1.40 x"),
        (verdict(-0.01, cost=Cost(1.4, (1.1, 1.7), 1.0, 0.5, 0.5)), Word.KEEP, ""),
        (verdict(-0.01, worth=math.nan), Word.KEEP, ""),
        (verdict(-0.01, worth=math.nan, cost=Cost(5.0, (4.9, 5.1), 1.0, 0.5, 0.5)), Word.UNDECIDED, "is not known"),
        (verdict(-0.01, worth=math.nan, cost=Cost(math.nan, (0.0, math.inf), 1.0, 0.5, 0.5)), Word.KEEP, ""),
        (verdict(-1.0, seeds=2), Word.UNDECIDED, "the first interim analysis is after 3 seeds"),
        (verdict(1.0, seeds=1), Word.UNDECIDED, "the first interim analysis is after 3 seeds"),
    ],
)
def test_the_rule_decides(found, word, reason):
    assert found.word is word and reason in found.reason
    assert word is Word.UNDECIDED or not found.more_seeds
    # Further seeds are advised only where they would help.
    assert not found.more_seeds or found.reason.endswith("]") or "first interim analysis" in found.reason


def test_a_mirrored_difference_is_judged_by_the_mirrored_word():
    words = {Word.KEEP: Word.REVERT, Word.REVERT: Word.KEEP}
    for mean in (-0.02, -0.005, -0.003, -0.001):
        for error in (1e-4, 1e-3, 3e-3, 1e-2):
            ours, theirs = verdict(mean, error).word, verdict(-mean, error).word
            assert theirs is words.get(ours, ours), (mean, error)


def test_what_is_undecided_states_how_many_more_seeds_would_decide_and_their_cost():
    found = verdict(-0.01, 0.003, df=2.0, parent_seeds=5)
    needed = seeds_needed(0.01, 0.003 * math.sqrt(3), alpha=Rule().alpha, wanted_power=0.8)
    assert found.word is Word.UNDECIDED and 5 < needed <= 8 and found.more_seeds == 8 - 3
    assert found.more_hours == pytest.approx(5 * 0.5 + 3 * 0.4), "the parent has five of the eight"
    assert verdict(-0.02, 0.003, df=1.0).more_seeds == 2


def test_effects_that_no_number_of_seeds_would_show_are_said_to_be_so():
    wide = Difference(-0.001, 0.0, math.inf, 0.01**2, 10.0)
    found = decide(Measured(wide, 3, 0.002, SAME, 1.0), Rule())
    assert found.word is Word.UNDECIDED and found.more_seeds is None and "not even 100 seeds" in found.reason


def test_seeds_beyond_the_last_analysis_are_not_advised():
    found = verdict(-0.002, 0.003, df=20.0, margin=0.0001)
    assert found.word is Word.UNDECIDED and found.more_seeds is None and "beyond the last analysis" in found.reason


def test_after_the_last_analysis_the_parent_stays():
    found = verdict(-0.01, 0.006, df=7.0, seeds=8)
    assert found.word is Word.UNDECIDED and found.more_seeds is None and "the parent stays" in found.reason


def test_one_seed_of_which_nothing_is_known_decides_nothing():
    alone = Difference(-1.0, 0.0, math.inf, 1e-6, 20.0, seeds_counted=False)
    found = decide(Measured(alone, 1, 0.01, SAME, 1.0), Rule())
    assert found.word is Word.UNDECIDED and found.more_seeds == 2 and "first interim analysis" in found.reason


def test_the_rule_is_printed_with_its_numbers():
    text = Rule(alpha=0.03, guard_alpha=0.07, q=0.11, cheaper=0.04, power=0.77).describe(0.0123)
    for number in ("97.0%", "0.07", "0.11", "0.0123", "4%", "77%", "3, 5, 8"):
        assert number in text
    assert "nan" not in Rule().describe(math.nan)
    assert "within the noise floor, which one seed does not show and contains 0" in Rule().describe(math.nan)


def printed(rule):
    """Returns the text of one rule, and the word that it begins with."""
    text = " ".join(rule.__doc__.format(rule=Rule(), within="±0.0040").split())
    return text, max((word for word in Word if text.startswith(word.value)), key=lambda word: len(word.value))


def test_what_is_printed_is_every_rule_in_the_order_in_which_they_are_tried():
    functions = inspect.getmembers(rules, inspect.isfunction)
    returning = [f for _, f in functions if f.__annotations__.get("return") in (Verdict, Verdict | None)]
    assert {*returning} == {decide, *RULES, kept_by_chance}, "a function that decides is not among the rules"
    text = Rule().describe(0.004)
    places = [text.index(printed(rule)[0]) for rule in (*RULES, kept_by_chance)]
    assert places == sorted(set(places))


# Of each rule, what it is the first to decide.
SAVING = Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)
DECIDED_BY = {
    "failed": findings(-0.01, seeds=2, failures="seed 0 diverged"),
    "too_few_seeds": findings(-0.01, seeds=2, worse_tasks=("boolq",)),
    "worse_at_a_task": findings(-0.01, worse_tasks=("boolq",), worth=0.5),
    "cheaper": findings(0.0005, 1e-5, cost=SAVING),
    "equivalent": findings(0.0, worse_tasks=("boolq",)),
    "worse": findings(0.0005, 1e-5, worse_tasks=("boolq",)),
    "not_worth_its_time": findings(-0.01, worth=0.5),
    "better": findings(-0.01),
    "after_the_last_analysis": findings(-0.01, 0.01, seeds=8),
    "more_seeds": findings(-0.01, 0.01),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_decides_by_the_word_that_its_text_begins_with(rule):
    found = DECIDED_BY[rule.__name__]
    assert not any(each(found, Rule()) for each in RULES[: RULES.index(rule)])
    assert rule(found, Rule()) == decide(found, Rule()) and decide(found, Rule()).word is printed(rule)[1]


def test_only_a_change_that_is_kept_may_be_kept_by_chance():
    for rule in RULES:
        known = decide(DECIDED_BY[rule.__name__], Rule())
        assert kept_by_chance(known, 0.05, Rule()) is None
        by_chance = kept_by_chance(known, 0.06, Rule())
        assert bool(by_chance) is (known.word is Word.KEEP)
        assert not by_chance or (by_chance.word is printed(kept_by_chance)[1] and "q = 0.06" in by_chance.reason)


@pytest.mark.parametrize("field", ["alpha", "power", "guard_alpha", "cheaper", "q"])
def test_thresholds_lie_between_0_and_1(field):
    for value in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match=field):
            Rule(**{field: value})
    with pytest.raises(UserError, match="margin"):
        Rule(margin=-0.1)
