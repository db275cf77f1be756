"""Questions in cloze form: from the official rows of each task to pairs of context and continuation.

The pairs equal those of lm-evaluation-harness (Gao et al. 2024, doi 10.5281/zenodo.12608602) without examples in the
context, character by character, so that scores compare with published ones. Each function takes the fields of a row, in
the official or TFDS's format, and raises `UserError` if they are not its task's.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxformer.config import UserError, require


class Option(NamedTuple):
    """A continuation to be scored after its context; it begins with the space that joins the two."""

    context: str
    continuation: str

    @property
    def text(self) -> str:
        """The continuation without the space before it; lengths are of this text."""
        return self.continuation[1:]


class Item(NamedTuple):
    """A question. One of its options is right; a single option is right if the model would write it itself."""

    options: tuple[Option, ...]
    gold: int
    """Index of the right option."""
    group: str = ""
    """Items of the same group are not independent, as they share their source; '' for none."""

    @property
    def has_equal_options(self) -> bool:
        """Whether two of its options are the same text, so that no model can distinguish them."""
        return len(set(self.options)) < len(self.options)


def checked(item: Item) -> Item:
    """Returns the item; raises `UserError` unless it is valid and can be scored."""
    require(isinstance(item, Item), f"to_item must return an Item, not {item!r:.60}")
    has_options = isinstance(item.options, tuple) and all(isinstance(option, Option) for option in item.options)
    require(has_options, f"its options must be a tuple of Option(context, continuation), not {item.options!r:.60}")
    others = (*(text for option in item.options for text in option), item.group)
    require(all(isinstance(text, str) for text in others), f"what it holds must be texts, not {others!r:.60}")
    require(isinstance(item.gold, int), f"its answer ({item.gold!r:.20}) must be the number of an option, from 0")
    require(bool(item.options), "it has no options")
    require(
        0 <= item.gold < len(item.options),
        f"its answer ({item.gold!s:.20}) is not one of {len(item.options)} options from 0",
    )
    for number, option in enumerate(item.options):
        is_apart = option.continuation[:1] in ("", " ")
        require(is_apart, f"option {number} must begin with the space after its context")
        require(bool(option.text.strip()), f"option {number} is {'blank' if option.text else 'empty'}")
        for text in option:
            require(not re.search("[\ud800-\udfff]", text), f"option {number} holds a lone surrogate: no Unicode text")
    return item


def hellaswag(row: Mapping[str, Any]) -> Item:
    """HellaSwag (Zellers et al. 2019, arXiv 1905.07830): how does a described scene go on?"""
    source = _text(row, "source_id") if "source_id" in row else ""
    if "context" in row:
        first, second = _split_context(_text(row, "context"), source)
    else:
        first, second = _text(row, "ctx_a"), _text(row, "ctx_b")
    context = _without_artefacts(f"{_text(row, 'activity_label')}: {first} {second.capitalize()}")
    endings = tuple(_without_artefacts(ending) for ending in _texts(row, "endings"))
    return Item(_joined(context, endings), _number(row, "label"), source)


def _split_context(context: str, source: str) -> tuple[str, str]:
    """Returns the two parts of a context that TFDS has joined; ActivityNet's second is the unfinished sentence."""
    ends = [match.end() for match in re.finditer(r"""[.!?]["')]*\s+""", context)]
    if source.startswith("wikihow") or not ends:
        return context, ""
    return context[: ends[-1]].rstrip(), context[ends[-1] :]


def _without_artefacts(text: str) -> str:
    """Returns a text of HellaSwag without the marks of WikiHow, as lm-evaluation-harness cleans it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")  # Once: three spaces leave two.


def question_and_answer(row: Mapping[str, Any]) -> Item:
    """ARC (Clark et al. 2018, arXiv 1803.05457): questions of science for schools."""
    question, labels, texts, answer = _choices(row, "question")
    return Item(_joined(f"Question: {question}\nAnswer:", texts), _position(labels, answer))


def openbookqa(row: Mapping[str, Any]) -> Item:
    """OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789): elementary science, applied."""
    question, labels, texts, answer = _choices(row, "question_stem")
    return Item(_joined(question, texts), _position(labels, answer))


def _choices(row: Mapping[str, Any], question_field: str) -> tuple[str, list, tuple[str, ...], Any]:
    """Returns (question, labels, texts, answer) of ARC's and OpenBookQA's rows: as first published, and as since."""
    answer = _field(row, "answerKey")
    answer = answer.strip() if isinstance(answer, str) else answer
    if isinstance(row.get("question"), Mapping):
        inner = row["question"]
        question = _text(inner, "stem")
        if "choice_A" in inner:  # TFDS's OpenBookQA.
            return question, list(range(4)), tuple(_text(inner, f"choice_{letter}") for letter in "ABCD"), answer
        choices = _field(inner, "choices")
    else:
        question, choices = _text(row, question_field), _field(row, "choices")
    if isinstance(choices, list):
        require(
            all(isinstance(each, Mapping) for each in choices),
            f"field 'choices' must hold objects, not {choices!r:.40}",
        )
        choices = {name: [_field(each, name) for each in choices] for name in ("label", "text")}
    require(isinstance(choices, Mapping), f"field 'choices' must be an object, not {choices!r:.40}")
    labels, texts = _field(choices, "label"), _texts(choices, "text")
    is_matching = isinstance(labels, list) and len(labels) == len(texts)
    require(is_matching, f"field 'choices' has {len(texts)} texts and the labels {labels!r:.40}")
    return question, labels, texts, answer


def winogrande(row: Mapping[str, Any]) -> Item:
    """WinoGrande (Sakaguchi et al. 2019, arXiv 1907.10641): whom does a pronoun mean?

    By partial scoring (Trinh & Le 2018, arXiv 1806.02847): the same text is scored after each filled blank.
    """
    sentence, options = _text(row, "sentence"), (_text(row, "option1"), _text(row, "option2"))
    before, blank, after = sentence.partition("_")
    require(bool(blank), f"field 'sentence' has no blank '_': {sentence!r:.60}")
    gold = _position(["1", "2"], row["answer"]) if "answer" in row else _number(row, "label")
    # Twins differ in a word that reverses the answer.
    twins = "|".join([*sorted(option.lower() for option in options), *sentence.lower().split()[:3]])
    return Item(tuple(Option(before + option, " " + after.strip()) for option in options), gold, _short_digest(twins))


def piqa(row: Mapping[str, Any]) -> Item:
    """PIQA (Bisk et al. 2019, arXiv 1911.11641): how is a practical goal reached?"""
    context = f"Question: {_text(row, 'goal')}\nAnswer:"
    return Item(_joined(context, (_text(row, "sol1"), _text(row, "sol2"))), _number(row, "label"))


def boolq(row: Mapping[str, Any]) -> Item:
    """BoolQ (Clark et al. 2019, arXiv 1905.10044): yes or no, from a passage."""
    passage = _text(row, "passage")
    context = f"{passage}\nQuestion: {_text(row, 'question')}?\nAnswer:"
    answer = _field(row, "label" if "label" in row else "answer")
    require(answer in (0, 1), f"its answer must be true or false, not {answer!r:.40}")
    return Item(_joined(context, ("no", "yes")), int(answer), _short_digest(passage))


def lambada(row: Mapping[str, Any]) -> Item:
    """LAMBADA (Paperno et al. 2016, arXiv 1606.06031): the last word of a passage, in OpenAI's raw text."""
    context, _, word = _text(row, "text").rpartition(" ")
    return Item((Option(context, " " + word),), 0)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _joined(context: str, texts: tuple[str, ...]) -> tuple[Option, ...]:
    return tuple(Option(context, " " + text) for text in texts)


def _position(labels: list, answer: Any) -> int:
    """Returns the index of an answer's label. Both are compared as text: pandas may turn '1' into 1."""
    names = [str(label) for label in labels]
    repeated = [name for name in names if names.count(name) > 1]
    require(not repeated, f"the label {repeated[0] if repeated else ''} stands for {len(repeated)} options")
    require(str(answer) in names, f"its answer ({answer!r:.40}) is not one of {', '.join(names)}")
    return names.index(str(answer))


def _field(row: Mapping[str, Any], name: str) -> Any:
    require(name in row, f"no field {name!r}; it has {', '.join(map(str, row))}")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name)
    require(isinstance(value, str), f"field {name!r} must be text, not {value!r:.40}")
    return value


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = _field(row, name)
    is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
    require(is_list, f"field {name!r} must be a list of texts, not {values!r:.40}")
    return tuple(values)


def _number(row: Mapping[str, Any], name: str) -> int:
    value = _field(row, name)
    try:
        return int(value if isinstance(value, int) else str(value))
    except ValueError as error:
        raise UserError(f"field {name!r} must be a whole number, not {value!r:.40}") from error
