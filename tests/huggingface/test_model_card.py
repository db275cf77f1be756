"""The card of an exported model."""

import pytest

from jaxformer.huggingface.comparison import NOT_INSTALLED, Comparison
from jaxformer.huggingface.model_card import model_card

pytestmark = pytest.mark.device_free
RECORD = {
    "experiment": "swiglu",
    "seed": 3,
    "question": "Is SwiGLU better\nthan GELU?",
    "config": {"training": {"rows_per_step": 4}, "packing": {"row_length": 32}},
    "identity": {
        "model.width": 16, "model.qk_norm": False, "corpus.path": "", "seed": 3, "tokenizer.path": "",
        "tokenizer.vocabulary_size": 400,
    },
    "corpora": {
        "fineweb": {
            "origin": "hf://datasets/a/b", "commit": "c0ffee", "licence": "ODC-By 1.0", "training_documents": 1234,
            "training_tokens": 56789,
        },
        "a|b": {"training_documents": 1, "training_tokens": 2},
    },
    "versions": {"jax": "0.10.2"},
    "git": {"commit": "abcd", "changes": None},
    "device": "cpu",
}  # fmt: skip
VALIDATION = {
    "validation/bits_per_byte": 1.23456,
    "validation/bits_per_byte_standard_error": 0.0123,
    "corpora": {"x": {"documents": 40}, "y": {"documents": 2}},
}
TASK = {"task": "piqa", "items": 10, "official_items": 1838, "primary": "acc", "acc": 0.5, "acc_standard_error": 0.1}
COMPARISON = Comparison(4, 256, 1.1e-5, 2.45, 1000, 5, 0, 0, {"transformers": "5.24.0", "torch": "2.13.0"})


def card(record=RECORD, **changes):
    options = {
        "step": 100, "tokens": 12_800, "architecture": "LlamaForCausalLM", "parameters": 123456, "dtype": "float32",
        "commands": ["jaxformer train", "jaxformer export"], "notes": [], "validation": VALIDATION, "tasks": [TASK],
        "comparison": COMPARISON, "ambiguity": "",
    }  # fmt: skip
    return model_card(record, **(options | changes))


def test_card_holds_what_the_run_was_and_what_it_reached():
    text = card()
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for part in (
        "# swiglu, seed 3, step 100",
        "Is SwiGLU better than GELU?",
        "123,456 parameters (LlamaForCausalLM, float32), trained on 12,800 tokens",
        "| fineweb | hf://datasets/a/b at commit c0ffee | ODC-By 1.0 | 1,234 | 56,789 |",
        "| a\\|b | not recorded | not recorded | 1 | 2 |",
        "**1.2346 ± 0.0123 bits per byte** over 42 documents",
        "| piqa | 10 of 1,838 | 50.00 ± 10.00 |",
        "| `model.width` | 16 |",
        "```\njaxformer train\njaxformer export\n```",
        "jax 0.10.2, git commit abcd, on cpu",
        "| `tokenizer.vocabulary_size` | 400 |",
        COMPARISON.describe("float32"),
    ):
        assert part in text
    assert "corpus.path" not in text


def test_card_says_that_the_code_was_changed_since_its_commit():
    assert "git commit abcd with uncommitted changes, on cpu" in card(
        RECORD | {"git": RECORD["git"] | {"changes": "d"}}
    )
    assert "jax 0.10.2, on cpu" in card(RECORD | {"git": None})


@pytest.mark.parametrize("given", [{"tokenizer.path": "gpt2"}, {"init_from": "d2d2"}])
def test_options_of_a_tokenizer_that_was_not_trained_are_left_out(given):
    text = card(RECORD | {"identity": RECORD["identity"] | given})
    assert "tokenizer.vocabulary_size" not in text and ('`tokenizer.path` | "gpt2"' in text) == (
        "gpt2" in given.values()
    )


def test_folders_of_a_machine_are_left_out():
    identity = {"corpus.path": "/home/me/secret/notes.txt", "tokenizer.path": "~/secret/t.json", "seed": 3}
    corpora = {"notes": RECORD["corpora"]["a|b"] | {"origin": "/home/me/secret/notes.txt"}}
    start = {"path": "/home/me/secret/base", "model_type": "llama"}
    text = card(RECORD | {"identity": identity, "corpora": corpora, "lineage": {"init_from": start}})
    assert "/home" not in text and "secret" not in text
    for part in (
        "| notes | notes.txt | ",
        '| `corpus.path` | "notes.txt" |',
        '"t.json"',
        "the weights of base (llama)",
    ):
        assert part in text


def test_what_markdown_would_read_is_shown_as_it_is():
    question = "Is *this* _it_, [a](b) `c` <d> \\ e|f of snake_case?"
    assert "Is \\*this\\* \\_it\\_, \\[a](b) \\`c\\` &lt;d> \\\\ e\\|f of snake_case?\n" in card(
        RECORD | {"question": question}
    )


def test_notes_stand_below_the_commands():
    assert "jaxformer export\n```\n\nOne. Two.\n\nTrained with" in card(notes=["One.", "Two."])


def test_card_says_what_was_not_done():
    text = card(validation=None, tasks=[], comparison=NOT_INSTALLED, ambiguity="Ties.")
    assert "There is no validation of step 100." in text
    assert f"{NOT_INSTALLED.describe('float32')} Ties." in text and "| piqa" not in text


@pytest.mark.parametrize("error", ["nan", float("nan")])
def test_one_document_has_no_standard_error(error):
    one = VALIDATION | {"validation/bits_per_byte_standard_error": error, "corpora": {"x": {"documents": 1}}}
    assert "**1.2346 bits per byte** over 1 document.\n" in card(validation=one)


def test_validation_of_the_metrics_has_no_count_of_documents():
    text = card(validation={name: value for name, value in VALIDATION.items() if name != "corpora"})
    assert "**1.2346 ± 0.0123 bits per byte** (± one standard error).\n" in text


def test_card_names_the_weights_that_a_run_began_from_and_what_those_began_from():
    base = {"path": "models/base", "model_type": "llama", "params": "d1d1"}
    first = {
        "path": "runs/a|b", "model_type": "jaxformer", "experiment": "base", "seed": 0, "step": 7, "tokens": 5000,
        "params": "d2d2", "init_from": base,
    }  # fmt: skip
    text = card(RECORD | {"lineage": {"init_from": first}, "identity": {"init_from": "d2d2", "seed": 3}})
    assert (
        "trained on 12,800 tokens with jaxformer. It began from the weights of runs/a\\|b (jaxformer, experiment "
        "base, seed 0, step 7), which was trained on 5,000 tokens; this run adds 12,800. That one began from the "
        "weights of models/base (llama), which was trained on a number of tokens that is not recorded; it added "
        "5,000. No licence"
    ) in text
    assert "d2d2" not in text and "began from" not in card()


def test_card_says_what_the_tokenizer_loses():
    trip = {"documents": 300, "changed_documents": 12, "bytes": 1000, "changed_bytes": 32, "before": "", "after": ""}
    corpora = {name: {**corpus, "round_trip": None} for name, corpus in RECORD["corpora"].items()}
    assert "loses text" not in card(RECORD | {"corpora": corpora})
    corpora["fineweb"]["round_trip"] = trip
    assert (
        "The tokenizer loses text: of fineweb, 12 of 300 sampled documents come back changed, and 3.20% of the bytes "
        "of their words. The bits per byte below are of what it kept."
    ) in card(RECORD | {"corpora": corpora})


def test_comparison_is_a_sentence():
    assert COMPARISON.describe("float32") == (
        "With transformers 5.24.0 and torch 2.13.0, the logits of 4 rows of 256 tokens of real text differ by at most "
        "1.1e-05 (float32; their standard deviation is 2.45), and the ids of 1,000 lines and 5 documents, "
        "and the texts decoded from them, are equal."
    )
    differing = COMPARISON._replace(other_ids=3).describe("bfloat16")
    assert (
        "of 1,000 lines and 5 documents the ids of 3 differ, and the texts decoded from the run's ids of 0. "
        in differing
    )
    assert differing.endswith("rounded to bfloat16: what that rounding changes is not in the figure.")
