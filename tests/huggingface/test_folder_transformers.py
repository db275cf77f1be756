"""Exported models in Hugging Face transformers: the same logits, the same texts, nothing that it misses."""

import dataclasses
import json
import re

import numpy as np
import pytest
from huggingface_models import MODELS, random_parameters
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import json_tokenizers  # noqa: E402

from jaxformer.commands.export import main  # noqa: E402
from jaxformer.config import UserError  # noqa: E402
from jaxformer.data.json_tokenizer import JsonTokenizer  # noqa: E402
from jaxformer.huggingface import comparison  # noqa: E402
from jaxformer.huggingface.comparison import compare_with_transformers, logits  # noqa: E402
from jaxformer.huggingface.reading import read_pretrained  # noqa: E402
from jaxformer.huggingface.tensors import flat_parameters  # noqa: E402
from jaxformer.huggingface.writing import write_model  # noqa: E402

pytestmark = pytest.mark.device_free
torch.set_num_threads(1)  # Of tiny models; more would wait for each other.
FLOAT32 = 5e-5
PROMPT, NEW = "0 ba du\nka", 200
TEXTS = ("", "\t\ta  b \r\n\n", "<s>baba</s> <unk> <0x41>", "\u2581 \U0001f9ea e\u0301 ﬁ", "def f(x):\n    return x\n")


def model_of(name):
    positions = {"learned_positions": 256} if name.startswith("gpt2") else {}
    return dataclasses.replace(MODELS[name], vocabulary_size=416, **positions)


def write(folder, name, tokenizer, **options):
    model = model_of(name)
    params = flat_parameters(random_parameters(model)[1])
    write_model(folder, model, params, tokenizer, row_length=64, **options)
    return model, params


@pytest.mark.parametrize("name", MODELS)
def test_architecture_gives_the_same_logits_and_the_same_text(name, tokenizer, tmp_path):
    model, params = write(tmp_path, name, tokenizer)
    found = compare_with_transformers(tmp_path, model, tokenizer, 64)
    assert found.largest_difference <= FLOAT32 and found.deviation > 0.5 and found.other_ids == found.other_texts == 0
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(PROMPT, return_tensors="pt")
    written = theirs.generate(**ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[0].tolist()
    prompt = [tokenizer.bos_id, *tokenizer.encode(PROMPT)]
    assert written[: len(prompt)] == prompt and len(written) == len(prompt) + NEW
    ours_TV = logits(model, params, np.array([written], np.int32))[0, len(prompt) - 1 : -1, :400]
    is_end_V = np.arange(400) == tokenizer.eos_id  # `min_new_tokens` leaves it out.
    np.testing.assert_array_equal(np.where(is_end_V, -np.inf, ours_TV).argmax(axis=1), written[len(prompt) :])


def test_folder_that_transformers_saves_is_read(tokenizer, tmp_path):
    """Its own keys, in several files."""
    _, params = write(tmp_path, "qwen3", tokenizer, keep_padding=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    back = read_pretrained(tmp_path / "theirs")
    for path, value in params.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_half_precision_is_compared_by_the_values_that_it_holds(tokenizer, tmp_path):
    model, _ = write(tmp_path, "llama", tokenizer, dtype="bfloat16")
    assert compare_with_transformers(tmp_path, model, tokenizer, 64).largest_difference <= FLOAT32


def test_tokenizer_gives_the_same_ids_and_texts(tokenizer, tmp_path):
    write(tmp_path, "arcee", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == theirs.decode(ids[1:]) == text


def test_comparison_notices_another_epsilon_another_kernel_and_another_tokenizer(tokenizer, tmp_path, monkeypatch):
    model, _ = write(tmp_path, "arcee", tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = config | {"rms_norm_eps": 1e-3}
    monkeypatch.setattr(comparison, "read_pretrained", lambda folder: params)
    params = read_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"computes logits that differ by .* from the run's"):
        compare_with_transformers(tmp_path, model, tokenizer, 64)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.01
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"computes logits that differ by .* from the run's"):
        compare_with_transformers(tmp_path, model, tokenizer, 64)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["model"]["merges"] = definition["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(UserError, match=r"of [0-9,]+ texts as other ids than the run's tokenizer"):
        compare_with_transformers(tmp_path, model, tokenizer, 64)


def test_comparison_notices_tokens_that_reach_across_lines(tmp_path):
    """Such as of a break and the indentation behind it, which no line alone has."""
    ours = JsonTokenizer(json_tokenizers.gpt2(["if a:\n    b\n    c\n        d\n" * 9]).to_str().encode(), {})
    model, _ = write(tmp_path, "arcee", ours)
    compare_with_transformers(tmp_path, model, ours, 64)
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text())
    merges = definition["model"]["merges"]
    kept = [merge for merge in merges if "\u010a" not in "".join(merge)[:-1]]  # A break, and more behind it.
    assert len(kept) < len(merges)
    definition["model"]["merges"] = kept
    path.write_text(json.dumps(definition))
    with pytest.raises(UserError, match=r"reads \d of [0-9,]+ texts as other ids than the run's tokenizer"):
        compare_with_transformers(tmp_path, model, ours, 64)


def test_batch_of_prompts_is_continued_as_each_alone(tokenizer, tmp_path):
    write(tmp_path, "llama", tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = [PROMPT, "ba"]

    def continued(texts):
        ids = theirs(texts, return_tensors="pt", padding=True)
        written = model.generate(**ids, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        return theirs.batch_decode(written, skip_special_tokens=True)

    assert continued(prompts) == [text for prompt in prompts for text in continued([prompt])]


def test_tokenizer_that_does_not_know_most_characters_is_compared(tmp_path):
    """As BERT's; also where its token of them is not called special."""
    file = json.loads(json_tokenizers.bert(["the quick brown fox", "jumps over lazy dogs"]).to_str())
    for is_special in (True, False):
        file["added_tokens"][1]["special"] = is_special
        ours = JsonTokenizer(json.dumps(file).encode(), {})
        (tmp_path / str(is_special)).mkdir()
        model, _ = write(tmp_path / str(is_special), "llama", ours)
        found = compare_with_transformers(tmp_path / str(is_special), model, ours, 64)
        assert (found.other_ids, found.other_texts) == (0, 0)


def test_comparison_leaves_what_transformers_reports_as_it_was(tokenizer, tmp_path):
    model, _ = write(tmp_path, "arcee", tokenizer)
    transformers.logging.set_verbosity_info()
    try:
        compare_with_transformers(tmp_path, model, tokenizer, 64)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity_warning()


def test_transformers_that_does_not_know_the_model_is_one_line(tokenizer, tmp_path):
    model, _ = write(tmp_path, "arcee", tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "newer"}))
    with pytest.raises(UserError, match=r"transformers [\d.]+ cannot load it \(.*newer.*\); update it") as refusal:
        compare_with_transformers(tmp_path, model, tokenizer, 64)
    assert "\n" not in str(refusal.value)


def test_command_compares_what_it_writes_and_the_example_of_the_card_runs(
    uninterrupted, compiled, tmp_path, monkeypatch, capsys
):
    assert main([f"--workdir={uninterrupted('best_fit')}", f"--out={tmp_path / 'out'}"]) == 0
    sentence = capsys.readouterr().out.splitlines()[-1]
    assert (
        f"With transformers {transformers.__version__} and torch {torch.__version__}, the logits of 4 rows" in sentence
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert sentence in card
    (example,) = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("FOLDER", "out"))
    assert capsys.readouterr().out.startswith("The ")
