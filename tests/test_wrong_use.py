"""Wrong use ends with status 2 and one line that says what to put right, and leaves nothing behind."""

import json
import subprocess
import sys

import pytest

from jaxformer.experiment import load_experiment, science
from jaxformer.train import main

BASELINE = "--experiment=baseline"


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer_path):
    """A working directory with the files that the commands below name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("some words\n")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    (tmp_path / "torn.jsonl").write_text('{"text": "a"}\n{"text": "b\n')
    (tmp_path / "other_field.jsonl").write_text('{"content": "a"}\n')
    (tmp_path / "small.model").write_bytes(tokenizer_path.read_bytes())
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "syntax.py").write_text("a = 1\nEXPERIMENT = Experiment(model=\n\n")
    (tmp_path / "name.py").write_text("a = 1\n\nb = missing\n")
    (tmp_path / "nothing.py").write_text("a = 1\n")
    (tmp_path / "dictionary.py").write_text("EXPERIMENT = {'model': 1}\n")
    (tmp_path / "field.py").write_text(
        "from jaxformer.model import ModelConfig\n\n"
        "MODEL = ModelConfig(\n    vocabulary_size=300, width=32, depth=2, heads=2, dropout=0.1\n)\n"
    )
    (tmp_path / "lines.py").write_text("raise ValueError('first line\\nsecond line')\n")
    return tmp_path


def corpus(path, kind="text"):
    return [BASELINE, f"--corpus.kind={kind}", f"--corpus.path={path}"]


CASES = {
    # The command itself.
    "no_experiment": ([], ["--experiment", "--help"]),
    "unknown_experiment": (["--experiment=basline"], ["'basline'", "did you mean baseline?"]),
    "missing_experiment_file": (["--experiment=no/such.py"], ["no/such.py", "no such file"]),
    "misspelt_option": ([BASELINE, "--workdr=x"], ["--workdr=x", "did you mean workdir?"]),
    "abbreviated_option": ([BASELINE, "--print"], ["--print", "--help"]),
    "stray_word": ([BASELINE, "model.width=64"], ["model.width=64", "--help"]),
    "seed_that_is_no_number": ([BASELINE, "--seed=one"], ["--seed", "'one'"]),
    "negative_seed": ([BASELINE, "--seed=-1"], ["--seed (-1)"]),
    # Overrides.
    "misspelt_override": ([BASELINE, "--model.widht=64"], ["model.widht", "did you mean model.width?"]),
    "misspelt_section": ([BASELINE, "--modell.width=64"], ["modell", "did you mean model?"]),
    "override_of_a_section": ([BASELINE, "--model=64"], ["--model"]),
    "override_of_a_part_that_is_not_there": ([BASELINE, "--corpus.parts.0.weight=2"], ["corpus.parts.0"]),
    "override_below_a_field": ([BASELINE, "--model.width.x=64"], ["model.width.x"]),
    "override_without_a_value": ([BASELINE, "--model.width"], ["--model.width needs a value"]),
    "text_for_a_number": ([BASELINE, "--model.width=wide"], ["model.width must be a whole number, not 'wide'"]),
    "fraction_for_a_whole_number": ([BASELINE, "--model.depth=2.5"], ["model.depth must be a whole number"]),
    "number_for_a_truth": ([BASELINE, "--model.qk_norm=1"], ["model.qk_norm must be true or false, not '1'"]),
    # Values that do not fit together.
    "heads_that_do_not_divide": ([BASELINE, "--model.heads=6", "--model.width=128"], ["heads (6)", "width (128)"]),
    "unknown_activation": ([BASELINE, "--model.activation=swigloo"], ["'swigloo'", "did you mean swiglu?"]),
    "negative_learning_rate": ([BASELINE, "--optimizer.learning_rate=-1"], ["learning_rate (-1.0)", "positive"]),
    "warmup_longer_than_the_run": (
        [BASELINE, "--optimizer.warmup_steps=50", "--training.steps=50"],
        ["warmup_steps (50)", "training.steps (50)"],
    ),
    "micro_batches_that_do_not_divide": (
        [BASELINE, "--training.micro_batches=3", "--training.rows_per_step=8"],
        ["(3)", "rows_per_step (8)"],
    ),
    "too_few_learned_positions": (
        [BASELINE, "--model.learned_positions=8", "--packing.row_length=9"],
        ["learned_positions (8)", "row_length (9)"],
    ),
    "tokenizer_larger_than_the_model": (
        [BASELINE, "--tokenizer.vocabulary_size=5000", "--model.vocabulary_size=4999"],
        ["tokenizer.vocabulary_size (5000)", "model.vocabulary_size (4999)"],
    ),
    "given_tokenizer_larger_than_the_model": (
        [*corpus("words.txt"), "--tokenizer.path=small.model", "--model.vocabulary_size=384"],
        ["(400)", "model.vocabulary_size (384)"],
    ),
    "mixture_without_parts": ([BASELINE, "--corpus.kind=mixture"], ["'mixture'", "two parts or more"]),
    # Data.
    "missing_corpus": (corpus("nowhere"), ["corpus.path nowhere", "no such file"]),
    "empty_corpus_folder": (corpus("empty"), ["corpus.path empty", ".txt"]),
    "corpus_without_text": (corpus("blank.txt"), ["blank.txt"]),
    "corpus_too_small_for_its_tokenizer": (corpus("words.txt"), ["tokenizer", "vocabulary_size"]),
    "text_that_is_not_utf_8": (corpus("latin.txt"), ["latin.txt", "not UTF-8 at byte 3 (0xe9)"]),
    "record_that_is_not_utf_8": (
        corpus("latin.jsonl", "jsonl"),
        ["latin.jsonl, line 2", "not UTF-8 at byte 27 (0xe9)"],
    ),
    "record_that_is_not_json": (corpus("torn.jsonl", "jsonl"), ["torn.jsonl, line 2", "not JSON"]),
    "record_without_the_field": (corpus("other_field.jsonl", "jsonl"), ["line 1", "'text'", "content"]),
    "missing_tokenizer": ([*corpus("words.txt"), "--tokenizer.path=no.model"], ["tokenizer.path no.model"]),
    "tokenizer_that_is_none": ([*corpus("words.txt"), "--tokenizer.path=words.txt"], ["not a SentencePiece model"]),
    # The run folder.
    "run_folder_that_is_a_file": ([BASELINE, "--workdir=file"], ["run folder file", "not a folder"]),
    "run_folder_below_a_file": ([BASELINE, "--workdir=file/run"], ["file/run"]),
    # Experiment files.
    "syntax_error": (["--experiment=./syntax.py"], ["syntax.py, line 2", "SyntaxError"]),
    "unknown_name": (["--experiment=./name.py"], ["name.py, line 3", "NameError", "'missing'"]),
    "no_EXPERIMENT": (["--experiment=./nothing.py"], ["nothing.py", "EXPERIMENT"]),
    "EXPERIMENT_of_another_kind": (["--experiment=./dictionary.py"], ["dictionary.py", "EXPERIMENT"]),
    "unknown_field": (["--experiment=./field.py"], ["field.py, line 3", "'dropout'"]),
    "error_of_two_lines": (["--experiment=./lines.py"], ["lines.py, line 1", "first line"]),
}


def assert_one_line(status, errors, words):
    assert status == 2
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1 and errors.endswith("\n"), errors
    assert errors.startswith("jaxformer: ")
    for word in words:
        assert word in errors


@pytest.mark.parametrize(("arguments", "words"), CASES.values(), ids=CASES)
def test_wrong_use_ends_with_one_line_and_no_run_folder(arguments, words, here, capfd):
    before = sorted(here.rglob("*"))
    status = main(arguments)
    assert_one_line(status, capfd.readouterr().err, words)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("case", ["unknown_experiment", "missing_corpus"])
def test_command_ends_as_the_function_does(case, here):
    arguments, words = CASES[case]
    done = subprocess.run([sys.executable, "-m", "jaxformer.train", *arguments], capture_output=True, text=True)
    assert_one_line(done.returncode, done.stderr, words)
    assert not (here / "runs").exists()


def test_run_folder_of_another_configuration_is_refused_with_the_differing_keys(here, capfd):
    stored = science(load_experiment("baseline", {"model.depth": "7", "packing.method": "concat_and_split"}))
    (here / "run").mkdir()
    config = json.dumps({"identity": stored | {"seed": 0, "training.compute_dtype": "float32"}, "digests": {}})
    (here / "run" / "config.json").write_text(config)
    status = main([BASELINE, "--workdir=run", "--seed=4", "--model.depth=5", "--packing.method=best_fit"])
    words = ["run folder run", "model.depth: 7 -> 5", "packing.method: concat_and_split -> best_fit", "seed: 0 -> 4"]
    assert_one_line(status, capfd.readouterr().err, words)
    assert [path.name for path in (here / "run").iterdir()] == ["config.json"]
    assert (here / "run" / "config.json").read_text() == config


def test_run_folder_with_a_damaged_configuration_is_refused(here, capfd):
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text('{"science": ')
    assert_one_line(main([BASELINE, "--workdir=run"]), capfd.readouterr().err, ["run/config.json", "unreadable"])


@pytest.fixture
def on_words(here, make_texts):
    """Arguments to train on a small corpus that fits, with a tokenizer that is there."""
    (here / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(60)))
    return [
        *corpus("words.jsonl", "jsonl"),
        "--corpus.validation_share=0.1",
        "--tokenizer.path=small.model",
        "--packing.minimum_fill=0.0",
        "--model.width=16",
        "--model.depth=1",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--training.rows_per_step=1000"], ["words.jsonl", "rows_per_step (1000)", "training.rows_per_step (1000)"]),
        (["--packing.minimum_fill=1.0"], ["words.jsonl", "packing.minimum_fill (100%)"]),
        (["--corpus.validation_share=0.9999999"], ["words.jsonl", "cannot be split"]),
    ],
    ids=["too_few_rows", "too_little_fill", "no_validation"],
)
def test_corpus_that_does_not_fit_the_run_is_refused(overrides, words, here, on_words, capfd):
    assert_one_line(main([*on_words, *overrides]), capfd.readouterr().err, words)
    assert not (here / "runs").exists()


def test_run_folder_of_another_corpus_is_refused(here, on_words, capfd):
    overrides = dict(argument.removeprefix("--").split("=") for argument in on_words[1:])
    stored = science(load_experiment("baseline", overrides)) | {"seed": 0, "training.compute_dtype": "float32"}
    config = json.dumps({"identity": stored, "digests": {"tokenizer": "0" * 64, "corpus.0": "1" * 64}})
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(config)
    status = main([*on_words, "--workdir=run"])
    assert_one_line(status, capfd.readouterr().err, ["run folder run", "tokenizer: 0000", "corpus.0: 1111"])
    assert (here / "run" / "config.json").read_text() == config


def test_run_folder_that_cannot_be_made_is_refused(here, on_words, capfd):
    # A link to nothing: unlike a folder without permission, it stops the superuser too.
    (here / "link").symlink_to("nowhere")
    assert_one_line(main([*on_words, "--workdir=link/run"]), capfd.readouterr().err, ["run folder link"])


def test_cache_that_cannot_be_made_is_refused(here, on_words, monkeypatch, capfd):
    (here / "link").symlink_to("nowhere")
    monkeypatch.setenv("JAXFORMER_CACHE", str(here / "link" / "cache"))
    assert_one_line(main(on_words), capfd.readouterr().err, ["cache", "JAXFORMER_CACHE"])
    assert not (here / "runs").exists()
