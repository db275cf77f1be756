"""The card of an exported model."""

import pytest

from jaxformer.huggingface.model_card import model_card
from jaxformer.huggingface.proof import NOT_INSTALLED, Proof

pytestmark = pytest.mark.device_free
RECORD = {
    "experiment": "swiglu",
    "seed": 3,
    "question": "Is SwiGLU better\nthan GELU?",
    "config": {"training": {"rows_per_step": 4}, "packing": {"row_length": 32}},
    "identity": {"model.width": 16, "model.qk_norm": False, "corpus.path": "", "seed": 3},
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
PROOF = Proof(4, 256, 1.1e-5, 2.45, 1000, 0, 0, {"transformers": "5.24.0", "torch": "2.13.0"})


def card(**changes):
    options = {
        "step": 100, "architecture": "LlamaForCausalLM", "parameters": 123456, "dtype": "float32",
        "commands": ["jaxformer train", "jaxformer export"], "validation": VALIDATION, "tasks": [TASK], "proof": PROOF,
        "ambiguity": "",
    }  # fmt: skip
    return model_card(RECORD, **(options | changes))


def test_card_holds_what_the_run_was_and_what_it_reached():
    text = card()
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for part in (
        "# swiglu, seed 3, step 100",
        "Is SwiGLU better than GELU?",
        "123,456 parameters (LlamaForCausalLM, float32), trained from 12,800 tokens",
        "| fineweb | hf://datasets/a/b at commit c0ffee | ODC-By 1.0 | 1,234 | 56,789 |",
        "| a\\|b | not recorded | not recorded | 1 | 2 |",
        "**1.2346 ± 0.0123 bits per byte** over 42 documents",
        "| piqa | 10 of 1,838 | 50.00 ± 10.00 |",
        "| `model.width` | `16` |",
        "```\njaxformer train\njaxformer export\n```",
        "jax 0.10.2, git commit abcd, on cpu",
        PROOF.describe("float32"),
    ):
        assert part in text
    assert "corpus.path" not in text


def test_card_says_what_was_not_done():
    text = card(validation=None, tasks=[], proof=NOT_INSTALLED, ambiguity="Ties.")
    assert "There is no validation of step 100 among the run's evaluations." in text
    assert f"{NOT_INSTALLED.describe('float32')} Ties." in text and "| piqa" not in text
    one_document = VALIDATION | {"validation/bits_per_byte_standard_error": "nan"}
    assert "**1.2346 bits per byte**" in card(validation=one_document)


def test_proof_is_a_sentence():
    assert PROOF.describe("float32") == (
        "With transformers 5.24.0 and torch 2.13.0, the logits of 4 rows of 256 tokens of real text differ by at most "
        "1.1e-05 (float32; their standard deviation is 2.45), and the ids of 1,000 lines of text, and the texts "
        "decoded from them, are equal."
    )
    differing = PROOF._replace(other_ids=3).describe("bfloat16")
    assert "of 1,000 lines of text the ids of 3 differ, and the texts decoded from the run's ids of 0. " in differing
    assert differing.endswith("rounded to bfloat16: what that rounding changes is not in the figure.")
