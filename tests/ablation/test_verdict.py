"""Verdicts follow the rule that is printed, and name the seeds that would decide."""

import inspect
import math

import pytest

from jaxformer.ablation import verdict as rules
from jaxformer.ablation.cost import Cost
from jaxformer.ablation.verdict import RULES, Measured, Rule, Verdict, Word, decide, depends_on_time, kept_by_chance
from jaxformer.config import UserError
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.prediction import predict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

SAME = Cost(1.0, (0.99, 1.01), 1.0, 0.5, 0.4)
UNTIMED = Cost(math.nan, (0.0, math.inf), 1.0, 0.5, 0.4)
SAVING = Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)


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
        (verdict(-0.0005, 1e-5), Word.EQUIVALENT, "better by too little to matter"),
        (verdict(-0.0030, 0.001), Word.EQUIVALENT, "better by too little to matter"),
        (verdict(-0.0030, 0.001, margin=math.nan), Word.KEEP, "is better"),
        (verdict(0.0005, 1e-5), Word.REVERT, "is worse"),
        (verdict(0.0005, 1e-5, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.CHEAPER, "0.900 x the time"),
        (verdict(-0.0005, 1e-5, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.CHEAPER, "0.900 x the time"),
        (verdict(0.0, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5), worse_tasks=["boolq"]), Word.UNDECIDED, "at boolq"),
        (verdict(0.0, cost=Cost(0.9, (0.88, 0.92), 1.0, 0.5, 0.5)), Word.CHEAPER, "0.900 x the time"),
        (verdict(0.0, cost=Cost(0.9, (0.7, 1.1), 1.0, 0.5, 0.5)), Word.EQUIVALENT, ""),
        (verdict(0.0, cost=Cost(1.0, (0.99, 1.01), 0.8, 0.5, 0.5)), Word.CHEAPER, "0.800 x the parameters"),
        (verdict(0.0, cost=Cost(1.6, (0.98, 2.6), 0.8, 0.5, 0.5)), Word.EQUIVALENT, ""),
        (verdict(0.0, cost=Cost(1.2, (1.1, 1.3), 0.8, 0.5, 0.5)), Word.EQUIVALENT, "not cheaper"),
        # Of a time that was not measured nothing is concluded, neither with fewer parameters.
        (verdict(0.0, cost=UNTIMED), Word.EQUIVALENT, "its time per token was not measured"),
        (verdict(0.0, cost=UNTIMED._replace(parameters=0.5)), Word.EQUIVALENT, "its time per token was not measured"),
        (verdict(-0.01, worth=0.5, cost=UNTIMED), Word.KEEP, "is better"),
        (verdict(-0.01, worse_tasks=["arc_easy"]), Word.UNDECIDED, "worse at arc_easy"),
        (verdict(0.01, worse_tasks=["arc_easy"]), Word.REVERT, ""),
        (
            verdict(-0.01, cost=Cost(1.4, (1.3, 1.5), 1.0, 0.5, 0.5)),
            Word.UNDECIDED,
            "takes 1.40 x the time [1.30, 1.50] and is worth 1.20 x",
        ),
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
    assert not found.more_seeds or any(why in found.reason for why in ("decided by", "first interim", "more seeds"))


def test_a_mirrored_difference_is_judged_by_the_mirrored_word():
    words = {Word.KEEP: Word.REVERT, Word.REVERT: Word.KEEP}
    for mean in (-0.02, -0.005, -0.003, -0.001):
        for error in (1e-4, 1e-3, 3e-3, 1e-2):
            ours, theirs = verdict(mean, error, margin=1e-4).word, verdict(-mean, error, margin=1e-4).word
            assert theirs is words.get(ours, ours), (mean, error)


def test_what_is_undecided_goes_on_to_the_next_analysis_and_states_how_probably_that_decides_and_at_what_cost():
    measured = findings(-0.01, 0.003, df=2.0, parent_seeds=3, seeds=6)
    found, prospects = decide(measured, Rule()), predict(measured.difference, 6, 0.004)
    likely = next(one for one in prospects if one.decided >= 0.8)
    assert found.word is Word.UNDECIDED and found.more_seeds == 2
    assert found.more_hours == pytest.approx(2 * 0.5 + 5 * 0.4), "the parent has three of the eight"
    decided = f"decided by {likely.seeds} seeds with a probability of {likely.decided:.0%}"
    assert found.reason.endswith(f"{decided}, and KEEP by 24 seeds with {prospects[-1].kept:.0%}")


def test_where_hardly_any_number_of_seeds_would_keep_it_the_parent_stays():
    wide = Difference(-0.001, 1e-12, 2.0, 0.01**2, 10.0)
    for difference in (wide, Difference(0.004, 0.003**2, 20.0)):
        found = decide(Measured(difference, 3, 0.002, SAME, 1.0), Rule())
        assert found.word is Word.UNDECIDED and found.more_seeds is None
        assert "even with 24 seeds KEEP has a probability " in found.reason
        assert found.reason.endswith("%: the parent stays")


def test_of_what_saves_time_or_leaves_a_change_out_any_decision_is_worth_the_seeds():
    difference = Difference(0.0005, 0.003**2, 20.0)
    assert decide(Measured(difference, 3, 0.008, SAME, 1.0), Rule()).more_seeds is None
    found = decide(Measured(difference, 3, 0.008, SAVING, 1.0), Rule())
    assert found.more_seeds == 1 and "decided by" in found.reason
    worse = Measured(Difference(0.1, 0.02**2, 2.0), 3, 0.01, SAME, 1.0)
    assert decide(worse, Rule()).more_seeds is None
    assert decide(worse._replace(leaves_out=True), Rule()).more_seeds == 1, "it may show that the change stays"


def test_after_the_last_analysis_the_parent_stays():
    found = verdict(-0.01, 0.006, df=7.0, seeds=24)
    assert found.word is Word.UNDECIDED and found.more_seeds is None and "the parent stays" in found.reason


def test_what_a_task_or_the_clock_blocks_comes_with_what_to_do():
    task = verdict(-0.01, worse_tasks=["arc_easy"])
    assert task.more_seeds == 1 and "read its items, and train more seeds" in task.reason
    last = verdict(-0.01, worse_tasks=["arc_easy"], seeds=24)
    assert last.more_seeds is None and "keep the change by hand if nothing is lost there" in last.reason
    slow = verdict(-0.01, cost=Cost(1.4, (1.3, 1.5), 1.0, 0.5, 0.5))
    assert "1.20 x the tokens: train the parent on 1.40 x its tokens, as long" in slow.reason


@pytest.mark.parametrize(
    ("mean", "error", "options", "depends"),
    [
        (-0.01, 0.001, {}, True),  # KEEP, if it is worth its time.
        (0.0, 0.001, {}, True),  # EQUIVALENT, and perhaps cheaper.
        (0.01, 0.001, {}, False),
        (-0.01, 0.001, {"failures": "seed 0 diverged"}, False),
        (-0.01, 0.001, {"seeds": 2}, False),
        (-0.01, 0.001, {"worse_tasks": ("boolq",)}, False),
        (-0.01, 0.01, {"df": 2.0}, False),  # More seeds, whatever it costs.
    ],
)
def test_time_is_measured_where_the_verdict_depends_on_it(mean, error, options, depends):
    assert depends_on_time(findings(mean, error, cost=UNTIMED, **options), Rule()) is depends


def test_one_seed_of_which_nothing_is_known_decides_nothing():
    alone = Difference(-1.0, 0.0, math.inf, 1e-6, 20.0, seeds_counted=False)
    found = decide(Measured(alone, 1, 0.01, SAME, 1.0), Rule())
    assert found.word is Word.UNDECIDED and found.more_seeds == 2 and "first interim analysis" in found.reason


def test_the_rule_is_printed_with_its_numbers():
    rule = Rule(guard_alpha=0.07, q=0.11, cheaper=0.04, power=0.77, min_power=0.31, equal_tokens=0.03)
    text = " ".join([rule.describe(), *rule.steps()])
    for number in ("0.07", "0.11", "what 3% of the tokens are worth", "4%", "77%", "31%", "3, 4, 5, 6, 8"):
        assert number in text
    by_hand = Rule(margin=0.002).describe()
    assert "of the tokens" not in by_hand and "±0.002" in by_hand


def printed(rule):
    """Returns the text of one rule, and the word that it begins with."""
    text = " ".join(rule.__doc__.format(rule=Rule()).split())
    return text, max((word for word in Word if text.startswith(word.value)), key=lambda word: len(word.value))


def test_what_is_printed_is_every_rule_in_the_order_in_which_they_are_tried():
    functions = inspect.getmembers(rules, inspect.isfunction)
    returning = [f for _, f in functions if f.__annotations__.get("return") in (Verdict, Verdict | None)]
    assert {*returning} == {decide, *RULES, kept_by_chance}, "a function that decides is not among the rules"
    assert Rule().steps() == [printed(rule)[0] for rule in (*RULES, kept_by_chance)]


# Of each rule, what it is the first to decide.
DECIDED_BY = {
    "failed": findings(-0.01, seeds=2, failures="seed 0 diverged"),
    "too_few_seeds": findings(-0.01, seeds=2, worse_tasks=("boolq",)),
    "worse_at_a_task": findings(-0.01, worse_tasks=("boolq",), worth=0.5),
    "cheaper": findings(0.0005, 1e-5, cost=SAVING),
    "equivalent": findings(-0.001, 0.001, worse_tasks=("boolq",)),
    "worse": findings(0.0005, 1e-5, worse_tasks=("boolq",)),
    "not_worth_its_time": findings(-0.01, worth=0.5),
    "better": findings(-0.01),
    "after_the_last_analysis": findings(-0.01, 0.01, seeds=24),
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
        assert kept_by_chance(known, 0.05, Rule(), 2, 0.5) is None
        by_chance = kept_by_chance(known, 0.06, Rule(), 2, 0.5)
        assert bool(by_chance) is (known.word is Word.KEEP)
        assert not by_chance or (by_chance.word is printed(kept_by_chance)[1] and "q = 0.06" in by_chance.reason)


def test_what_may_be_chance_goes_on_to_the_next_analysis_and_after_the_last_says_what_is_left():
    kept = decide(DECIDED_BY["better"], Rule())
    assert kept_by_chance(kept, 0.06, Rule(), 2, 0.5)[2:] == (2, 0.5)
    assert "the last analysis: the parent stays" in kept_by_chance(kept, 0.06, Rule(), None, 0.0).reason


@pytest.mark.parametrize("field", ["equal_tokens", "power", "min_power", "guard_alpha", "cheaper", "q"])
def test_thresholds_lie_between_0_and_1(field):
    for value in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match=field):
            Rule(**{field: value})
    with pytest.raises(UserError, match="margin"):
        Rule(margin=-0.1)
