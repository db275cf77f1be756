"""The items of each task against texts worked by hand from lm-evaluation-harness's definitions."""

import json
from pathlib import Path

import pytest

from jaxformer.config import UserError
from jaxformer.evaluation import items
from jaxformer.evaluation.items import Item, Option, checked

pytestmark = pytest.mark.device_free

HELLASWAG_ROWS = Path(__file__).parents[3] / "shared" / "data" / "evals" / "hellaswag_val_raw1000.jsonl"

HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "split": "val",
    "split_type": "indomain",
    "label": 3,
    "endings": ["is using wrap.", "is ripping level tiles off.", "is holding a cube.", "starts pulling up roofing."],
    "source_id": "activitynet~v_-JhWjGDPHMY",
}
ARC = {
    "id": "Mercury_1",
    "question": "Which is a gas?",
    "choices": {"text": ["ice", "steam", "sand"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
OPENBOOKQA = {
    "id": "7-980",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies learning", "plants sprouting"], "label": ["A", "B"]},
    "answerKey": "B",
}
WINOGRANDE = {
    "qID": "3QHI",
    "sentence": "Sarah was a better surgeon than Maria so _ always got the easier cases.",
    "option1": "Sarah",
    "option2": "Maria",
    "answer": "2",
}
PIQA = {"goal": "Open a jar.", "sol1": "Twist the lid.", "sol2": "Sing to the lid.", "label": 0}
BOOLQ = {"question": "is ice cold", "passage": "Ice is frozen water.", "answer": True}
LAMBADA = {"text": "He lit the candle and then blew out the candle"}


LABELLED_TWICE = {"text": ["ice", "steam", "sand"], "label": ["A", "A", "B"]}


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key != name}


def nested(row: dict) -> dict:
    """Returns a row of ARC or OpenBookQA in the form of their first publication."""
    choices = [
        {"text": text, "label": label}
        for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
    ]
    return {
        "id": row["id"],
        "question": {"stem": row.get("question") or row["question_stem"], "choices": choices},
        "answerKey": row["answerKey"],
    }


def pairs(item: Item) -> list[tuple[str, str]]:
    return [tuple(option) for option in item.options]


# HellaSwag.


def test_hellaswag_joins_label_context_and_capitalised_beginning_to_each_ending():
    context = "Roof shingle removal: A man is sitting on a roof. He"
    assert items.hellaswag(HELLASWAG) == Item(
        (
            Option(context, " is using wrap."),
            Option(context, " is ripping level tiles off."),
            Option(context, " is holding a cube."),
            Option(context, " starts pulling up roofing."),
        ),
        gold=3,
        group="activitynet~v_-JhWjGDPHMY",
    )


@pytest.mark.parametrize(
    ("ctx_a", "ctx_b", "context"),
    [
        ("He meets Bob.", "bob and Ann", "Label: He meets Bob. Bob and ann"),  # The rest of ctx_b becomes lower case.
        ("He sits.", "", "Label: He sits."),
        ("[header] How to bowl [title] Hold it. [step] Throw.", "", "Label: How to bowl. Hold it. Throw."),
        ("[header] Why? [title] So.", "", "Label: Why?. So."),
        ("One. [substeps] Two.", "", "Label: One. Two."),
        ("Three   spaces.", "", "Label: Three  spaces."),
        ("Four    spaces.", "", "Label: Four  spaces."),
        ("A ] b [ c [d] e.", "", "Label: A ] b e."),  # From the first bracket to the nearest that closes.
        ("A [d\ne] f.", "", "Label: A [d\ne] f."),  # A mark does not go over a line's end.
        ("Tab.\t", "\u0142\u00f3d\u017a", "Label: Tab.\t \u0141\u00f3d\u017a"),
    ],
)
def test_hellaswag_context_is_cleaned_character_by_character(ctx_a, ctx_b, context):
    row = HELLASWAG | {"activity_label": "Label", "ctx_a": ctx_a, "ctx_b": ctx_b}
    assert {option.context for option in items.hellaswag(row).options} == {context}


@pytest.mark.parametrize(
    ("ending", "continuation", "text"),
    [
        (" goes on. ", " goes on.", "goes on."),
        ("[step] Go on.", "  Go on.", " Go on."),  # The space behind a mark stays, and counts as a character.
        ("[title] Go on.", "  Go on.", " Go on."),
        ("Rest. [title] Go on. [step] Sleep.", " Rest.. Go on. Sleep.", "Rest.. Go on. Sleep."),
        ("Rest [substeps] now", " Rest now", "Rest now"),
        (", the man", " , the man", ", the man"),
        ("a   b", " a  b", "a  b"),
        ("goes [step]", " goes ", "goes "),  # Nothing is stripped after the marks are gone.
    ],
)
def test_hellaswag_ending_is_cleaned_and_joined_by_one_space(ending, continuation, text):
    item = items.hellaswag(HELLASWAG | {"endings": ["no", ending], "label": 1})
    assert item.options[1].continuation == continuation
    assert item.options[1].text == text


@pytest.mark.parametrize("label", [2, "2"])
def test_hellaswag_label_may_be_a_number_or_its_text(label):
    assert items.hellaswag(HELLASWAG | {"label": label}).gold == 2


@pytest.mark.parametrize(
    ("fused", "ctx_a", "ctx_b"),
    [
        ("A man sits. he", "A man sits.", "he"),
        ("One. Two! the Dog", "One. Two!", "the Dog"),
        ('He says "no." then', 'He says "no."', "then"),
        ("Is it (so?)  she", "Is it (so?)", "she"),
        ("no Sentence ends", "no Sentence ends", ""),
    ],
)
def test_the_fused_context_of_tfds_is_that_of_the_two_parts_in_activitynet(fused, ctx_a, ctx_b):
    row = without(without(without(HELLASWAG, "ctx"), "ctx_a"), "ctx_b")
    official = items.hellaswag(row | {"ctx_a": ctx_a, "ctx_b": ctx_b})
    assert items.hellaswag(row | {"context": fused}) == official


def test_the_fused_context_of_tfds_is_unchanged_in_wikihow():
    row = {"activity_label": "Home", "endings": ["x", "y"], "label": 0, "source_id": "wikihow~7"}
    item = items.hellaswag(row | {"context": "[header] How to Bake [title] Buy Flour. Then Bake IT"})
    assert item.options[0].context == "Home: How to Bake. Buy Flour. Then Bake IT"
    assert item.group == "wikihow~7"


@pytest.mark.skipif(not HELLASWAG_ROWS.is_file(), reason="needs hellaswag_val_raw1000.jsonl beside the repository")
def test_the_fused_context_of_tfds_gives_the_items_of_all_official_rows():
    rows = [json.loads(line) for line in HELLASWAG_ROWS.read_text().splitlines()]
    assert len(rows) == 1000
    differing = []
    for row in rows:
        fused = {name: row[name] for name in ("activity_label", "endings", "label", "source_id")}
        if items.hellaswag(fused | {"context": row["ctx"]}) != checked(items.hellaswag(row)):
            differing.append(row["ind"])
    assert not differing
    assert sum(bool(row["ctx_b"]) for row in rows) > 100, "rows in which there is a boundary to find"


# ARC and OpenBookQA.


def test_arc_asks_and_offers_each_choice_as_the_answer():
    context = "Question: Which is a gas?\nAnswer:"
    options = (Option(context, " ice"), Option(context, " steam"), Option(context, " sand"))
    assert items.question_and_answer(ARC) == Item(options, gold=1)


@pytest.mark.parametrize(
    ("labels", "answer", "gold"),
    [
        (["1", "2", "3", "4"], "1", 0),
        (["1", "2", "3", "4"], "4", 3),
        (["A", "B", "C", "D", "E"], "E", 4),
        (["A", "B", "C"], "C", 2),
        (["A", "B", "C", "D"], " D ", 3),
        ([0, 1, 2, 3, 4], 4, 4),  # Class labels, of TFDS.
        ([2, 0, 1], 0, 1),
    ],
)
def test_the_answer_is_the_place_of_its_label_whatever_the_labels(labels, answer, gold):
    choices = {"text": [f"choice {label}" for label in labels], "label": labels}
    for row in (ARC, OPENBOOKQA):
        task = items.question_and_answer if row is ARC else items.openbookqa
        for form in (lambda row: row, nested):
            item = task(form(row | {"choices": choices, "answerKey": answer}))
            assert item.gold == gold
            assert len(item.options) == len(labels)
            assert item.options[gold].continuation == f" choice {labels[gold]}"


def test_arc_and_openbookqa_may_be_in_the_form_of_their_first_publication():
    assert items.question_and_answer(nested(ARC)) == items.question_and_answer(ARC)
    assert items.openbookqa(nested(OPENBOOKQA)) == items.openbookqa(OPENBOOKQA)


def test_openbookqa_continues_its_bare_stem():
    assert items.openbookqa(OPENBOOKQA | {"answerKey": "A "}) == Item(
        (
            Option("The sun is responsible for", " puppies learning"),
            Option("The sun is responsible for", " plants sprouting"),
        ),
        gold=0,
    )


def test_openbookqa_of_tfds_has_its_choices_by_letter():
    question = {"stem": "Ice is", "choice_D": "wet", "choice_A": "hot", "choice_B": "cold", "choice_C": "dry"}
    item = items.openbookqa({"question": question, "answerKey": 1})
    assert pairs(item) == [("Ice is", " hot"), ("Ice is", " cold"), ("Ice is", " dry"), ("Ice is", " wet")]
    assert item.gold == 1


# WinoGrande.


def test_winogrande_scores_what_follows_the_blank_behind_each_filled_blank():
    item = items.winogrande(WINOGRANDE)
    assert pairs(item) == [
        ("Sarah was a better surgeon than Maria so Sarah", " always got the easier cases."),
        ("Sarah was a better surgeon than Maria so Maria", " always got the easier cases."),
    ]
    assert item.gold == 1


@pytest.mark.parametrize(
    ("sentence", "pair"),
    [
        ("_ ran.", ("X", " ran.")),
        ("The _'s dog ran. ", ("The X", " 's dog ran.")),  # A space is put before the rest even here.
        ("So _  ran off.", ("So X", " ran off.")),
        ("A _ saw a _ .", ("A X", " saw a _ .")),  # The first blank is the one.
    ],
)
def test_winogrande_blank_may_stand_anywhere(sentence, pair):
    assert pairs(items.winogrande(WINOGRANDE | {"sentence": sentence, "option1": "X"}))[0] == pair


@pytest.mark.parametrize(
    ("field", "gold"),
    [({"answer": "1"}, 0), ({"answer": "2"}, 1), ({"answer": 2}, 1), ({"label": 0}, 0), ({"label": 1}, 1)],
)
def test_winogrande_answer_counts_from_1_and_the_label_of_tfds_from_0(field, gold):
    assert items.winogrande(without(WINOGRANDE, "answer") | field).gold == gold


def test_winogrande_twins_are_one_group_and_other_questions_are_not():
    twin = WINOGRANDE | {"sentence": WINOGRANDE["sentence"].replace("easier", "harder"), "answer": "1"}
    swapped = twin | {"option1": "Maria", "option2": "Sarah", "answer": "2"}
    other = WINOGRANDE | {"option1": "Ann"}
    group = items.winogrande(WINOGRANDE).group
    assert group
    assert items.winogrande(twin).group == items.winogrande(swapped).group == group
    assert items.winogrande(other).group != group


# PIQA, BoolQ, LAMBADA.


@pytest.mark.parametrize(("label", "gold"), [(0, 0), (1, 1), ("1", 1)])
def test_piqa_asks_for_the_solution(label, gold):
    context = "Question: Open a jar.\nAnswer:"
    options = (Option(context, " Twist the lid."), Option(context, " Sing to the lid."))
    assert items.piqa(PIQA | {"label": label}) == Item(options, gold)


@pytest.mark.parametrize(
    ("field", "gold"), [({"answer": True}, 1), ({"answer": False}, 0), ({"label": 1}, 1), ({"label": 0}, 0)]
)
def test_boolq_asks_for_no_or_yes_behind_the_passage(field, gold):
    item = items.boolq(without(BOOLQ, "answer") | field)
    context = "Ice is frozen water.\nQuestion: is ice cold?\nAnswer:"
    assert pairs(item) == [(context, " no"), (context, " yes")]
    assert item.gold == gold


def test_boolq_questions_on_one_passage_are_one_group():
    first, same, other = (
        items.boolq(BOOLQ | change).group for change in ({}, {"question": "is it hot"}, {"passage": "Fire."})
    )
    assert first and first == same != other


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("He blew out the candle", ("He blew out the", " candle")),
        ("\u201cWell,\u201d said\n\n\u201cno  caf\u00e9", ("\u201cWell,\u201d said\n\n\u201cno ", " caf\u00e9")),
        ("word", ("", " word")),
    ],
)
def test_lambada_asks_for_the_last_word(text, pair):
    assert items.lambada({"text": text}) == Item((Option(*pair),), 0)


# Rows as other programs write them.


@pytest.mark.parametrize(
    ("task", "row", "answer", "gold"),
    [
        ("question_and_answer", ARC | {"choices": {"text": ["a", "b"], "label": ["1", "2"]}}, {"answerKey": 2}, 1),
        ("question_and_answer", ARC | {"choices": {"text": ["a", "b"], "label": [1, 2]}}, {"answerKey": "2"}, 1),
        ("winogrande", WINOGRANDE, {"answer": 2}, 1),
    ],
)
def test_a_number_and_a_text_that_reads_as_it_are_the_same_label(task, row, answer, gold):
    assert getattr(items, task)(row | answer).gold == gold


def test_an_item_knows_that_it_has_an_option_twice():
    twice, once = (items.piqa(PIQA | {"sol2": text}) for text in (PIQA["sol1"], "Sing."))
    assert checked(twice).has_equal_options and not checked(once).has_equal_options
    same_text_behind_other_contexts = items.winogrande(WINOGRANDE)
    assert not same_text_behind_other_contexts.has_equal_options


# Rows that are not the task's.


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("hellaswag", without(HELLASWAG, "endings"), r"no field 'endings'; it has ind, activity_label, ctx_a"),
        ("hellaswag", without(HELLASWAG, "ctx_b"), r"no field 'ctx_b'"),
        ("hellaswag", without(HELLASWAG, "ctx_a"), r"no field 'ctx_a'"),
        ("hellaswag", without(HELLASWAG, "label"), r"no field 'label'"),
        ("hellaswag", HELLASWAG | {"ctx_b": None}, r"field 'ctx_b' must be text, not None"),
        ("hellaswag", HELLASWAG | {"source_id": 3}, r"field 'source_id' must be text, not 3"),
        ("hellaswag", HELLASWAG | {"endings": "abcd"}, r"field 'endings' must be a list of texts, not 'abcd'"),
        ("hellaswag", HELLASWAG | {"endings": ["a", 2]}, r"field 'endings' must be a list of texts"),
        ("hellaswag", HELLASWAG | {"endings": []}, r"it has no options"),
        ("hellaswag", HELLASWAG | {"endings": ["a", "[step]"], "label": 0}, r"option 1 is empty"),
        ("hellaswag", HELLASWAG | {"label": 4}, r"its answer \(4\) is not one of 4 options from 0"),
        ("hellaswag", HELLASWAG | {"label": -1}, r"its answer \(-1\) is not one of 4 options from 0"),
        ("hellaswag", HELLASWAG | {"label": ""}, r"field 'label' must be a whole number, not ''"),
        ("hellaswag", HELLASWAG | {"label": 1.5}, r"field 'label' must be a whole number, not 1.5"),
        ("hellaswag", HELLASWAG | {"label": float("nan")}, r"field 'label' must be a whole number, not nan"),
        ("hellaswag", HELLASWAG | {"label": None}, r"field 'label' must be a whole number, not None"),
        ("hellaswag", HELLASWAG | {"ctx_a": "a \ud800"}, r"option 0 holds a lone surrogate"),
        ("hellaswag", HELLASWAG | {"endings": ["a", "\udfff"], "label": 0}, r"option 1 holds a lone surrogate"),
        ("question_and_answer", HELLASWAG, r"no field 'answerKey'"),
        ("question_and_answer", without(ARC, "choices"), r"no field 'choices'"),
        ("question_and_answer", without(ARC, "question"), r"no field 'question'"),
        ("question_and_answer", ARC | {"question": 3}, r"field 'question' must be text, not 3"),
        ("question_and_answer", ARC | {"question": {}}, r"no field 'stem'"),
        ("question_and_answer", ARC | {"question": {"stem": "?"}}, r"no field 'choices'; it has stem"),
        ("question_and_answer", ARC | {"answerKey": "D"}, r"its answer \('D'\) is not one of A, B, C"),
        ("question_and_answer", ARC | {"answerKey": 1}, r"its answer \(1\) is not one of A, B, C"),
        ("question_and_answer", ARC | {"answerKey": 1.0}, r"its answer \(1.0\) is not one of A, B, C"),
        ("question_and_answer", ARC | {"choices": LABELLED_TWICE}, r"the label A stands for 2 options"),
        ("question_and_answer", ARC | {"choices": {"text": ["a", " "], "label": ["A", "B"]}}, r"option 1 is blank"),
        ("question_and_answer", ARC | {"answerKey": ""}, r"its answer \(''\) is not one of A, B, C"),
        ("question_and_answer", ARC | {"choices": "ABC"}, r"field 'choices' must be an object, not 'ABC'"),
        ("question_and_answer", ARC | {"choices": ["ice"]}, r"field 'choices' must hold objects, not \['ice'\]"),
        ("question_and_answer", ARC | {"choices": [{"text": "ice"}]}, r"no field 'label'; it has text"),
        ("question_and_answer", ARC | {"choices": {"text": ["a"]}}, r"no field 'label'; it has text"),
        ("question_and_answer", ARC | {"choices": {"text": ["a"], "label": ["A", "B"]}}, r"has 1 texts and the labels"),
        ("question_and_answer", ARC | {"choices": {"text": ["a"], "label": "B"}}, r"has 1 texts and the labels 'B'"),
        ("question_and_answer", ARC | {"choices": {"text": [None], "label": ["B"]}}, r"'text' must be a list of texts"),
        ("question_and_answer", ARC | {"choices": []}, r"is not one of"),
        ("openbookqa", without(OPENBOOKQA, "question_stem"), r"no field 'question_stem'"),
        ("openbookqa", OPENBOOKQA | {"answerKey": "C"}, r"its answer \('C'\) is not one of A, B"),
        ("openbookqa", {"question": {"stem": "", "choice_A": ""}, "answerKey": 0}, r"no field 'choice_B'"),
        ("winogrande", without(WINOGRANDE, "answer"), r"no field 'label'"),
        ("winogrande", without(WINOGRANDE, "option2"), r"no field 'option2'"),
        ("winogrande", WINOGRANDE | {"answer": ""}, r"its answer \(''\) is not one of 1, 2"),
        ("winogrande", WINOGRANDE | {"answer": "0"}, r"its answer \('0'\) is not one of 1, 2"),
        ("winogrande", WINOGRANDE | {"option1": 5}, r"field 'option1' must be text, not 5"),
        ("winogrande", WINOGRANDE | {"sentence": "No gap."}, r"field 'sentence' has no blank '_': 'No gap.'"),
        ("winogrande", WINOGRANDE | {"sentence": "It was _ "}, r"option 0 is empty"),
        ("winogrande", without(WINOGRANDE, "answer") | {"label": -1}, r"its answer \(-1\) is not one of 2 options"),
        ("winogrande", without(WINOGRANDE, "answer") | {"label": 2}, r"its answer \(2\) is not one of 2 options"),
        ("piqa", BOOLQ, r"no field 'goal'; it has question, passage, answer"),
        ("piqa", PIQA | {"label": -1}, r"its answer \(-1\) is not one of 2 options"),
        ("piqa", PIQA | {"sol2": ""}, r"option 1 is empty"),
        ("boolq", without(BOOLQ, "answer"), r"no field 'answer'"),
        ("boolq", without(BOOLQ, "passage"), r"no field 'passage'"),
        ("boolq", BOOLQ | {"answer": "yes"}, r"its answer must be true or false, not 'yes'"),
        ("boolq", BOOLQ | {"label": -1}, r"its answer must be true or false, not -1"),
        ("boolq", BOOLQ | {"question": "\udc80"}, r"option 0 holds a lone surrogate"),
        ("boolq", BOOLQ | {"passage": "\udc80"}, r"lone surrogate"),
        ("lambada", {"text": 1}, r"field 'text' must be text, not 1"),
        ("lambada", {"sentence": "a b"}, r"no field 'text'; it has sentence"),
        ("lambada", {"text": ""}, r"option 0 is empty"),
        ("lambada", {"text": "ends with a space "}, r"option 0 is empty"),
    ],
)
def test_a_row_that_is_not_the_tasks_is_refused_with_what_is_wrong(task, row, message):
    with pytest.raises(UserError, match=message):
        checked(getattr(items, task)(row))


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (items.hellaswag, HELLASWAG),
        (items.question_and_answer, ARC),
        (items.openbookqa, OPENBOOKQA),
        (items.winogrande, WINOGRANDE),
        (items.piqa, PIQA),
        (items.boolq, BOOLQ),
        (items.lambada, LAMBADA),
    ],
)
def test_a_value_of_a_foreign_type_is_a_user_error_unless_the_field_is_not_read(task, row):
    official = task(row)
    for name in row:
        for value in (None, 7.5, [], {}, [[]], {"text": None}, b"bytes"):
            try:
                item = checked(task(row | {name: value}))
            except UserError as error:
                assert str(error)
            else:
                assert item == official, (name, value)


@pytest.mark.parametrize("text", ["a", " ", "\U0001f9ea \u00e9\n", "\ud7ff\ue000"])
def test_any_unicode_text_can_be_scored(text):
    item = Item((Option("", " a"), Option(text, " x" + text)), 1)
    assert checked(item) is item
