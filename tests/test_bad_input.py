"""Bad input ends the command with status 2 and one line that says what to put right, and changes nothing on disk."""

import contextlib
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pyarrow
import pyarrow.parquet
import pytest
from copies import Copies
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.experiment.experiment import science
from jaxformer.experiment.resolution import load_experiment
from jaxformer.record import flatten
from jaxformer.run.folder import hold_folder
from jaxformer.train import main, out_of_memory_reported

pytestmark = pytest.mark.device_free

BASELINE = "--experiment=baseline"

# Paths are relative, so that a copy of the folder that they lie in is complete.
TINY = """
from jaxformer.attention.dispatch import AttentionConfig
from jaxformer.checkpoint.train_state import CheckpointConfig
from jaxformer.data.corpus import CorpusConfig
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.experiment.experiment import Experiment
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.data.packing import PackingConfig
from jaxformer.step import TrainingConfig
from jaxformer.data.tokenizer import TokenizerConfig

EXPERIMENT = Experiment(
    model=ModelConfig(vocabulary_size=400, width=16, depth=1, heads=2),
    corpus=CorpusConfig(kind="jsonl", path="texts.jsonl", validation_share=0.1),
    tokenizer=TokenizerConfig(path="small.model", processes=1),
    packing=PackingConfig(row_length=32, minimum_fill=0.5),
    attention=AttentionConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    training=TrainingConfig(steps=4, rows_per_step=4, startup_proof=False),
    checkpoint=CheckpointConfig(every_steps=2, keep=2),
    evaluation=EvaluationConfig(every_steps=4, validation_bytes=200, rows_per_batch=2, sample_tokens=0),
)
"""


# What a case makes or damages in its own folder.


def nothing(folder: Path) -> None:
    pass


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flips a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def shards(folder: Path) -> Path:
    (manifest,) = (folder / "cache" / "shards").glob("*/manifest.json")
    return manifest.parent


def training_shard(folder: Path) -> Path:
    (path,) = shards(folder).rglob("*-train.array_record-*")
    return path


def edit(path: Path, **changes) -> None:
    """Changes members of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: member for name, member in value.items() if member is not None}))


def take_shards_of_another_corpus(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    shutil.copytree(folder / "other_cache", other / "cache")
    shutil.rmtree(path := shards(folder))
    shutil.copytree(shards(other), path)


def change_the_corpus(folder: Path) -> None:
    with (folder / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more document"}\n')


def write_in_run(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "run" / name).write_text(text)


def take_away_from_config(folder: Path) -> None:
    edit(folder / "run" / "config.json", config=None)


def put_a_folder_in_place_of(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return put


def put_a_file_in_place_of_the_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "checkpoints")
    (folder / "run" / "checkpoints").write_text("")


def remove_config(folder: Path) -> None:
    (folder / "run" / "config.json").unlink()


def cut_all_checkpoints(folder: Path) -> None:
    for path in (folder / "run" / "checkpoints").rglob("*"):
        if path.is_file():
            cut(path)


def belong_to_another_configuration(folder: Path) -> None:
    stored = science(load_experiment("baseline", {"model.depth": "7", "packing.method": "concat_and_split"}))
    config = {"identity": stored | {"seed": 0, "training.compute_dtype": "float32"}, "digests": {}}
    (folder / "run" / "config.json").write_text(json.dumps(config))


class Case(NamedTuple):
    """A command, words of the line that it ends with, and what is special."""

    arguments: list[str | bytes]
    words: list[str]
    arrange: Callable[[Path], None] = nothing
    """Makes or damages what the command meets in its folder."""
    environment: dict[str, str] = {}  # noqa: RUF012
    """Variables of the command."""
    cache: str = ""
    """The folder of the command's cache, in place of one beside the run."""
    held: str = ""
    """A run folder that another process runs in."""
    prepares: bool = False
    """The command prepares a corpus before it can be refused: new entries of the cache, and nothing else, stay."""


def baseline(*arguments: str, words: list[str], **special) -> Case:
    return Case([BASELINE, *arguments], words, **special)


def corpus(path: str, *words: str, kind: str = "text") -> Case:
    return Case([BASELINE, f"--corpus.kind={kind}", f"--corpus.path={path}"], list(words))


def tokenizer(path: str, *words: str) -> Case:
    return Case([BASELINE, "--corpus.kind=text", "--corpus.path=words.txt", f"--tokenizer.path={path}"], [path, *words])


def experiment(path: str, *words: str) -> Case:
    return Case([f"--experiment={path}"], [path.removeprefix("./"), *words])


def tiny(*arguments: str | bytes, words: list[str], **special) -> Case:
    """A run that nothing is wrong with but what the arguments say or what is arranged."""
    return Case(["--experiment=tiny.py", *arguments], words, **special)


def in_run(*words: str, arrange: Callable[[Path], None] = nothing, **special) -> Case:
    """The command that goes on with the run that is in the folder."""
    return tiny("--workdir=run", words=["run", *words], arrange=arrange, **special)


def in_cache(damage: Callable[[Path], None], *words: str) -> Case:
    return tiny(words=["token shards", *words, "delete the folder and run again"], arrange=damage)


NO_GPU = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": ""}
CASES = {
    # The command itself.
    "no_experiment": Case([], ["--experiment", "--help"]),
    "unknown_experiment": Case(["--experiment=basline"], ["'basline'", "did you mean baseline?"]),
    "empty_experiment": Case(["--experiment="], ["unknown experiment ''", "baseline"]),
    "missing_experiment_file": Case(["--experiment=no/such.py"], ["no/such.py", "no such file"]),
    "misspelt_option": baseline("--workdr=x", words=["--workdr=x", "did you mean --workdir?"]),
    "seed_that_is_no_number": baseline("--seed=one", words=["--seed", "'one'"]),
    "argument_that_is_not_utf_8": Case([BASELINE, b"--workdir=caf\xe9"], ["caf\\udce9", "not UTF-8"]),
    # Overrides.
    "misspelt_override": baseline("--model.widht=64", words=["model.widht", "did you mean model.width?"]),
    "text_for_a_number": baseline("--model.width=wide", words=["model.width must be a whole number, not 'wide'"]),
    "negative_learning_rate": baseline(
        "--optimizer.learning_rate=-1", words=["optimizer.learning_rate (-1.0)", "must be above 0"]
    ),
    "warmup_longer_than_the_run": baseline(
        "--optimizer.warmup_steps=50",
        "--training.steps=50",
        words=["warmup_steps (50)", "training.steps (50)"],
    ),
    "control_characters_in_a_path": corpus("\x1b[2Jno\u202e", "corpus.path \\x1b[2Jno\\u202e", "no such file"),
    # Data.
    "missing_corpus": corpus("nowhere", "corpus.path nowhere", "no such file"),
    "empty_path": corpus("", "corpus.kind 'text' needs corpus.path"),
    "path_too_long": corpus("a" * 300, "corpus.path aaa", "name too long"),
    "missing_remote_corpus": corpus("memory://nowhere", "corpus.path memory://nowhere", "FileNotFoundError"),
    "glob_without_a_remote_file": corpus("memory://nowhere/*.txt", "memory://nowhere/*.txt", "no such file"),
    "unknown_protocol": corpus("gopher://a/b.txt", "gopher://a/b.txt", "known are hf://, gs://, s3:// and local paths"),
    "hub_path_without_an_owner": corpus("hf://texts/a.txt", "write hf://datasets/OWNER/NAME@REVISION/FILES"),
    "empty_corpus_folder": corpus("empty", "corpus.path empty", ".txt"),
    "corpus_without_text": corpus("blank.txt", "blank.txt", "no document with text"),
    "empty_file": corpus("empty.txt", "empty.txt", "no document with text"),
    "empty_records": corpus("empty.jsonl", "empty.jsonl", "no document with text", kind="jsonl"),
    "file_without_records": corpus("empty.txt", "empty.txt", "no document with text", kind="jsonl"),
    "corpus_too_small_for_its_tokenizer": corpus("words.txt", "tokenizer", "vocabulary_size"),
    "text_that_is_not_utf_8": corpus("latin.txt", "latin.txt", "not UTF-8 at byte 3 (0xe9)"),
    "record_that_is_not_utf_8": corpus(
        "latin.jsonl", "latin.jsonl, line 2", "not UTF-8 at byte 27 (0xe9)", kind="jsonl"
    ),
    "record_that_is_not_json": corpus("torn.jsonl", "torn.jsonl, line 2", "not JSON", kind="jsonl"),
    "record_without_the_field": corpus("other_field.jsonl", "line 1", "'text'", "content", kind="jsonl"),
    "garbage_for_gzip": corpus("garbage.jsonl.gz", "garbage.jsonl.gz", "damaged", kind="jsonl"),
    "truncated_gzip": corpus("cut.jsonl.gz", "cut.jsonl.gz", "damaged", kind="jsonl"),
    "garbage_for_parquet": corpus("garbage.parquet", "garbage.parquet", "damaged", kind="parquet"),
    "truncated_parquet": corpus("cut.parquet", "cut.parquet", "damaged", kind="parquet"),
    "missing_tokenizer": tokenizer("no.model", "tokenizer.path", "No such file"),
    "text_for_a_tokenizer": tokenizer("words.txt", "not a SentencePiece model"),
    "garbage_for_a_tokenizer": tokenizer("garbage.model", "not a SentencePiece model"),
    "truncated_tokenizer": tokenizer("cut.model", "not a SentencePiece model"),
    "tokenizer_of_a_long_name": tokenizer("a" * 300, "name too long"),
    "folder_without_a_tokenizer": tokenizer("empty", "the folder holds no tokenizer.model or tokenizer.json"),
    "torn_tokenizer_json": tokenizer("torn.jsonl", "not a tokenizer.json of Hugging Face tokenizers (JSONDecodeError"),
    "tokenizer_json_without_marks": tokenizer("marks/tokenizer.json", "it has no BOS and no EOS", "eos_token"),
    "given_tokenizer_larger_than_the_model": tiny(
        "--model.vocabulary_size=384", words=["(400)", "model.vocabulary_size (384); set that to 512 or more"]
    ),
    "too_few_rows": tiny("--training.rows_per_step=100000", words=["texts.jsonl", "training.rows_per_step (100000)"]),
    "too_little_fill": tiny("--packing.minimum_fill=1.0", words=["texts.jsonl", "packing.minimum_fill (100%)"]),
    "no_validation": tiny("--corpus.validation_share=0.9999999", words=["texts.jsonl", "cannot be split"]),
    # Token shards.
    "bit_flipped_in_a_shard": in_cache(lambda folder: flip(training_shard(folder)), "'train'"),
    "truncated_shard": in_cache(lambda folder: cut(training_shard(folder)), "'train'"),
    "deleted_shard": in_cache(lambda folder: training_shard(folder).unlink(), "'train'"),
    "bit_flipped_in_the_index": in_cache(lambda folder: flip(shards(folder) / "index.npz"), "index.npz"),
    "manifest_of_another_tokenizer": in_cache(
        lambda folder: edit(shards(folder) / "manifest.json", tokenizer_digest="0" * 64), "tokenizer (000000000000"
    ),
    "manifest_with_another_mark": in_cache(
        lambda folder: edit(shards(folder) / "manifest.json", bos_id=77), "bos_id (77, not 1)"
    ),
    "manifest_of_another_version": in_cache(
        lambda folder: edit(shards(folder) / "manifest.json", format_version=0), "another version"
    ),
    "truncated_manifest": in_cache(lambda folder: cut(shards(folder) / "manifest.json"), "unreadable"),
    "shards_of_another_corpus": in_cache(take_shards_of_another_corpus, "another corpus"),
    # The run folder.
    "run_folder_that_is_a_file": baseline("--workdir=file", words=["run folder file", "not a folder"]),
    "run_folder_below_a_file": baseline("--workdir=file/run", words=["file/run"]),
    "run_folder_below_a_dangling_link": tiny("--workdir=link/run", words=["run folder link"]),
    "run_folder_of_a_long_name": baseline(f"--workdir={'a' * 300}", words=["run folder aaa", "name too long"]),
    "cache_below_a_dangling_link": tiny(words=["cache", "JAXFORMER_CACHE"], cache="link/cache"),
    "run_of_another_configuration": baseline(
        "--workdir=run",
        "--seed=4",
        "--model.depth=5",
        "--packing.method=best_fit",
        words=["run folder run", "model.depth: 7 -> 5", "packing.method: concat_and_split -> best_fit", "seed: 0 -> 4"],
        arrange=belong_to_another_configuration,
    ),
    "checkpoints_of_another_configuration": tiny(
        "--workdir=run",
        "--model.width=24",
        words=["run/checkpoints", "another configuration (model.width: 16 -> 24)"],
        arrange=remove_config,
    ),
    "run_whose_corpus_changed": in_run(
        "corpus.0: ", "plan.0: ", "another --workdir", arrange=change_the_corpus, prepares=True
    ),
    "run_that_another_process_runs": in_run(f"process {os.getpid()} on ", "wait for it", held="run"),
    "truncated_config": in_run("run/config.json", "unreadable", arrange=write_in_run("config.json", '{"science": ')),
    "config_that_is_a_list": in_run("run/config.json", "unreadable", arrange=write_in_run("config.json", "[]")),
    "config_that_is_empty": in_run("run/config.json", "no identity", arrange=write_in_run("config.json", "{}")),
    "config_without_its_configuration": in_run(
        "run/config.json", "not the record of a run", "'config'", arrange=take_away_from_config
    ),
    "config_that_nests_without_end": in_run(
        "run/config.json", "unreadable", arrange=write_in_run("config.json", "[" * 200_000)
    ),
    "truncated_summary": in_run("run/summary.json", "unreadable", arrange=write_in_run("summary.json", '{"steps": ')),
    "summary_that_is_a_list": in_run("run/summary.json", "unreadable", arrange=write_in_run("summary.json", "[]")),
    "summary_that_is_empty": in_run("run/summary.json", "not the summary", arrange=write_in_run("summary.json", "{}")),
    "metrics_that_are_a_folder": in_run(
        "run/metrics.jsonl", "Is a directory", arrange=put_a_folder_in_place_of("run/metrics.jsonl")
    ),
    "lock_that_is_a_folder": in_run("run folder run", "Is a directory", arrange=put_a_folder_in_place_of("run/.lock")),
    "checkpoints_that_are_a_file": in_run(
        "run/checkpoints: not a folder", arrange=put_a_file_in_place_of_the_checkpoints
    ),
    "checkpoints_that_are_all_damaged": in_run(
        "run/checkpoints: no step can be used", "another --workdir", arrange=cut_all_checkpoints
    ),
    "too_little_disk": tiny(
        "--checkpoint.keep=1000000000",
        "--checkpoint.every_steps=1",
        "--training.steps=1000000000",
        words=["runs/tiny", "GB are free", "checkpoint.keep"],
    ),
    "read_only_run_folder": tiny("--workdir=/proc/self/fdinfo", words=["run folder /proc/self/fdinfo", "--workdir"]),
    # Weights to start from; more of them in `run/test_init_from.py`.
    "missing_weights": tiny("--init_from=nowhere", words=["init_from nowhere: no such folder"]),
    "weights_of_another_model": tiny(
        "--init_from=run", "--model.depth=2", words=["init_from run: another model (model.depth 2 here, 1 there)"]
    ),
    "damaged_weights": tiny(
        "--init_from=run", words=["init_from run: ", "no step can be used (4: "], arrange=cut_all_checkpoints
    ),
    # The device.
    "no_gpu": tiny("--training.device=gpu", words=["training.device = 'gpu'", "cpu"], environment=NO_GPU),
    "no_gpu_for_jax": tiny(words=["JAX_PLATFORMS=cuda", "unset it"], environment={**NO_GPU, "JAX_PLATFORMS": "cuda"}),
    # Experiment files.
    "syntax_error": experiment("./syntax.py", "line 2", "SyntaxError"),
    "unknown_name": experiment("./name.py", "line 3", "NameError", "'missing'"),
    "division_by_zero": experiment("./zero.py", "line 1", "ZeroDivisionError"),
    "file_that_exits": experiment("./exit.py", "line 3", "SystemExit"),
    "file_that_is_not_utf_8": experiment("./latin.py", "SyntaxError"),
    "no_EXPERIMENT": experiment("./nothing.py", "EXPERIMENT"),
    "empty_experiment_file": experiment("./empty.py", "EXPERIMENT"),
    "EXPERIMENT_of_another_kind": experiment("./dictionary.py", "EXPERIMENT"),
    "unknown_field": experiment("./field.py", "line 3", "'dropout'"),
    "error_of_two_lines": experiment("./lines.py", "line 1", "first line"),
    "file_that_patches_the_package": experiment(
        "./patch.py", "it changes jaxformer.model.activate in place", "change fields of the experiment"
    ),
    "name_that_leaves_the_folder": experiment("./...py", "a run folder is named after it"),
    "name_with_a_space": experiment("./a b.py", "a run folder is named after it"),
    "folder_for_an_experiment": experiment("./folder.py", "no such file"),
    "experiment_of_a_long_name": experiment("a" * 300 + ".py", "no such file"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory, make_texts, tokenizer_path, run_copy):
    """A folder with what the commands name: files, a run that lacks its summary, and a cache with two corpora."""
    folder = tmp_path_factory.mktemp("template")
    for name, content in {
        "words.txt": b"some words\n",
        "blank.txt": b" \n\n",
        "empty.txt": b"",
        "empty.jsonl": b'{"text": ""}\n{"text": " "}\n',
        "latin.txt": "caf\u00e9 au lait".encode("latin-1"),
        "latin.jsonl": b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        "torn.jsonl": b'{"text": "a"}\n{"text": "b\n',
        "other_field.jsonl": b'{"content": "a"}\n',
        "garbage.jsonl.gz": b"\x1f\x8b garbage",
        "garbage.parquet": b"PAR1 garbage PAR1",
        "garbage.model": bytes(range(256)) * 4,
        "file": b"not a folder",
        "syntax.py": b"a = 1\nEXPERIMENT = Experiment(model=\n\n",
        "name.py": b"a = 1\n\nb = missing\n",
        "zero.py": b"a = 1 / 0\n",
        "exit.py": b"import sys\n\nsys.exit(0)\n",
        "latin.py": b"a = 'caf\xe9'\n",
        "nothing.py": b"a = 1\n",
        "empty.py": b"",
        "dictionary.py": b"EXPERIMENT = {'model': 1}\n",
        "field.py": b"from jaxformer.model import ModelConfig\n\n"
        b"MODEL = ModelConfig(\n    vocabulary_size=300, width=32, depth=2, heads=2, dropout=0.1\n)\n",
        "lines.py": b"raise ValueError('first line\\nsecond line')\n",
        "patch.py": b"import jaxformer.model\njaxformer.model.activate = None\n" + TINY.encode(),
        "...py": TINY.encode(),
        "a b.py": TINY.encode(),
        "tiny.py": TINY.encode(),
        "small.model": tokenizer_path.read_bytes(),
        "cut.model": tokenizer_path.read_bytes()[:3001],
    }.items():
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    (folder / "marks").mkdir()
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (folder / "marks" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    (folder / "folder.py").mkdir()
    (folder / "link").symlink_to("nowhere")
    texts = make_texts(120)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    (folder / "other.jsonl").write_text(lines.replace("a", "o"))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-100])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "cut.parquet")
    cut(folder / "cut.parquet")
    commands = {
        "cache": ["--workdir=run"],
        # Refused, once the corpus is prepared.
        "other_cache": ["--corpus.path=other.jsonl", "--packing.minimum_fill=1"],
    }

    for cache, arguments in commands.items():
        _, errors = run_copy(["--experiment=tiny.py", *arguments], folder, str(folder / cache))
        assert (folder / cache / "shards").is_dir(), errors
        (folder / cache / "tokenizers").mkdir()
    (folder / "run" / "summary.json").unlink()
    return folder


@contextlib.contextmanager
def copies(compiled_folder: str, environment: Mapping[str, str]):
    """Yields a function from arguments, a folder and a cache to the status of training and what it reports."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled_folder}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment}

    def run(arguments: list[str | bytes], folder: Path, cache: str) -> tuple[int, str]:
        ended = loaded.run(["train", *arguments], folder, {"JAXFORMER_CACHE": cache})
        return ended.status, ended.err

    with Copies(variables) as loaded:
        yield run


@pytest.fixture(scope="module")
def run_copy(compiled_folder):
    """Such a function for commands without variables of their own."""
    with copies(compiled_folder, {}) as run:
        yield run


def snapshot(folder: Path) -> dict[str, object]:
    """Returns what lies at every path of a folder, except in locks and notes of what was verified, which may change."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
        if not path.name.endswith(".lock") and path.name != "verified.json"
    }


def assert_refused(status: int, errors: str, words: list[str]) -> None:
    """One line, without anything that a terminal obeys."""
    assert status == 2, errors
    assert "Traceback" not in errors
    assert errors.count("\n") == 1 and errors.endswith("\n"), errors
    assert errors.startswith("jaxformer: ")
    assert errors[:-1].isprintable(), repr(errors)
    for word in words:
        assert word in errors


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_the_command_with_one_line_and_changes_nothing(
    name, template, tmp_path, run_copy, compiled_folder
):
    if name == "read_only_run_folder" and not Path("/proc/self/fdinfo").is_dir():
        pytest.skip("needs Linux, where /proc holds a folder that nobody can write")
    case, folder = CASES[name], tmp_path / name
    shutil.copytree(template, folder, symlinks=True)
    case.arrange(folder)
    before = snapshot(folder)
    held = hold_folder(folder / case.held) if case.held else contextlib.nullcontext()
    # JAX reads its variables when it is loaded.
    runs = copies(compiled_folder, case.environment) if case.environment else contextlib.nullcontext(run_copy)
    with held, runs as run:
        status, errors = run(case.arguments, folder, case.cache or str(folder / "cache"))
    assert_refused(status, errors, case.words)
    after = snapshot(folder)
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    if case.prepares:
        changed = [path for path in changed if path in before or not path.startswith("cache/")]
    assert changed == []


# Arguments that are refused before anything is read, each with words of the line: no process of its own.
ARGUMENTS = {
    "--print": "unknown argument '--print'",
    "model.width=64": "unknown argument 'model.width=64'",
    "--seed=-1": "--seed (-1)",
    "--seed=1048576": "--seed (1048576)",
    "--seed=": "--seed: invalid int value: ''",
    "--seed=1.5": "--seed: invalid int value: '1.5'",
    "--modell.width=64": "unknown key modell.width; did you mean model.width?",
    "--model=64": "--model",
    "--corpus.parts.0.weight=2": "corpus.parts.0",
    "--model.width": "--model.width needs a value",
    "--model.activation=\x1b[2Jgelu\x07\u202e": "'\\x1b[2Jgelu\\x07\\u202e' is unknown",
    "--\x1b.width=1": "unknown key \\x1b.width; did you mean model.width?",
    "--workdir=caf\udce9": "argument '--workdir=caf\\udce9' is not UTF-8",
    f"--training.steps={2**40}": f"training.steps ({2**40}) must be at least 1 and below 2**31",
    "--model.width=": "model.width must be a whole number, not ''",
    "--model.width=1e400": "model.width must be a whole number, not '1e400'",
    "--model.width=0": "model.width (0)",
    f"--model.width={2**40}": f"model.width ({2**40})",
    f"--model.vocabulary_size={2**40}": f"model.vocabulary_size ({2**40})",
    f"--model.depth={2**40}": f"model.depth ({2**40})",
    "--model.depth=2.5": "model.depth must be a whole number",
    "--model.depth=-1": "model.depth (-1)",
    "--model.heads=0": "model.heads (0)",
    "--model.heads=6": "model.heads (6) must divide model.width (128)",
    "--model.key_value_heads=3": "model.key_value_heads (3) must divide model.heads (4)",
    "--model.head_width=7": "the head width (7) must be even",
    "--model.qk_norm=1": "model.qk_norm must be true or false, not '1'",
    "--model.width.x=64": "model.width.x",
    "--model.activation=swigloo": "'swigloo' is unknown; did you mean swiglu?",
    "--model.activation=swigl\u00fc": "did you mean swiglu?",
    "--model.norm=layer_norm": "model.norm = 'layer_norm' is unknown; did you mean layernorm?",
    "--model.rope_base=nan": "model.rope_base (nan)",
    "--model.logit_soft_cap=inf": "model.logit_soft_cap",
    "--model.z_loss=-1": "model.z_loss",
    "--model.learned_positions=8": "model.learned_positions (8) must be at least packing.row_length (256)",
    f"--model.loss_chunk_tokens={10**30}": f"loss_chunk_tokens ({10**30})",
    "--corpus.kind=mixture": "two parts or more",
    "--corpus.kind=jason": "did you mean",
    "--corpus.kind=jsonl": "corpus.kind 'jsonl' needs corpus.path",
    "--corpus.path=x": "corpus.path x: no such file or folder",
    "--corpus.parts=x": "corpus.parts is a section",
    "--corpus.validation_share=0": "corpus.validation_share (0.0)",
    "--corpus.validation_share=1": "corpus.validation_share (1.0)",
    "--corpus.validation_share=nan": "corpus.validation_share (nan)",
    "--corpus.tokens=-1": "corpus.tokens (-1) must be at least 0",
    "--corpus.tokens=2.5e9x": "corpus.tokens must be a whole number",
    "--corpus.weight=inf": "corpus.weight (inf)",
    "--tokenizer.vocabulary_size=5000": "tokenizer.vocabulary_size (5000) must not exceed model.vocabulary_size (4096)",
    "--tokenizer.vocabulary_size=299": "tokenizer.vocabulary_size (299) must be at least 300",
    "--tokenizer.training_bytes=0": "tokenizer.training_bytes (0)",
    "--tokenizer.processes=-1": "tokenizer.processes (-1)",
    f"--tokenizer.processes={2**40}": f"tokenizer.processes ({2**40})",
    "--tokenizer.model_type=bep": "did you mean bpe?",
    "--packing.row_length=1": "packing.row_length (1)",
    f"--packing.row_length={2**40}": f"packing.row_length ({2**40})",
    "--packing.documents_per_row=-1": "packing.documents_per_row (-1)",
    f"--packing.documents_per_row={10**30}": f"documents_per_row ({10**30}) must fit in 64 bits",
    "--packing.document_mask=no": "packing.document_mask must be true or false, not 'no'",
    "--packing.method=best-fit": "did you mean best_fit?",
    "--packing.minimum_fill=nan": "packing.minimum_fill (nan)",
    "--packing.reader_threads=-1": "packing.reader_threads (-1)",
    f"--packing.reader_threads={2**40}": f"packing.reader_threads ({2**40})",
    "--packing.reader_buffer=0": "packing.reader_buffer (0)",
    f"--packing.reader_buffer={2**40}": f"packing.reader_buffer ({2**40})",
    "--attention.implementation=flash": "attention.implementation = 'flash' is unknown; choose from",
    "--optimizer.name=muom": "optimizer.name = 'muom' is unknown; did you mean muon?",
    "--optimizer.muon_momentum=1": "optimizer.muon_momentum (1.0)",
    "--optimizer.schedule=wsb": "optimizer.schedule = 'wsb' is unknown; did you mean wsd?",
    "--optimizer.decay_share=0": "optimizer.decay_share (0.0)",
    "--optimizer.learning_rate=0": "optimizer.learning_rate (0.0)",
    "--optimizer.learning_rate=nan": "optimizer.learning_rate (nan)",
    "--optimizer.learning_rate=inf": "optimizer.learning_rate (inf)",
    "--optimizer.learning_rate=1e400": "optimizer.learning_rate (inf)",
    "--optimizer.learning_rate=": "optimizer.learning_rate must be a number, not ''",
    "--optimizer.learning_rate=3,5": "optimizer.learning_rate must be a number, not '3,5'",
    "--optimizer.warmup_steps=-1": "optimizer.warmup_steps (-1)",
    "--optimizer.warmup_steps=1600": "optimizer.warmup_steps (1600) must be less than training.steps (1600)",
    "--optimizer.b1=1": "optimizer.b1 (1.0)",
    "--optimizer.b1=-0.1": "optimizer.b1 (-0.1)",
    "--optimizer.b2=nan": "optimizer.b2 (nan)",
    "--optimizer.epsilon=0": "optimizer.epsilon (0.0)",
    "--optimizer.weight_decay=-1": "optimizer.weight_decay (-1.0)",
    "--optimizer.clip_norm=0": "optimizer.clip_norm (0.0)",
    "--optimizer.final_learning_rate_share=1.5": "optimizer.final_learning_rate_share (1.5)",
    "--training.steps=0": "training.steps (0)",
    "--training.steps=-1": "training.steps (-1)",
    "--training.steps=nan": "training.steps must be a whole number, not 'nan'",
    "--training.rows_per_step=0": "training.rows_per_step (0)",
    f"--training.rows_per_step={2**40}": f"training.rows_per_step ({2**40})",
    "--training.micro_batches=-1": "training.micro_batches (-1)",
    "--model.remat=blocks": "model.remat = 'blocks' is unknown; did you mean block?",
    "--training.micro_batches=3": "training.micro_batches (3) must divide training.rows_per_step (4)",
    "--training.compute_dtype=float64": "training.compute_dtype = 'float64' is unknown; did you mean",
    "--training.skip_spikes_above=-1": "training.skip_spikes_above (-1.0)",
    "--training.skip_spikes_above=nan": "training.skip_spikes_above (nan)",
    "--training.device=tpu": "training.device = 'tpu' is unknown; did you mean",
    "--training.log_every_steps=0": "training.log_every_steps (0)",
    "--training.peak_tflops=nan": "training.peak_tflops (nan)",
    "--training.profile=5": "training.profile ('5') must be FIRST:LAST, at most 100 of the steps 1 to 1600",
    "--profile=9:3": "training.profile ('9:3')",
    "--training.profile=0:3": "training.profile ('0:3')",
    "--training.profile=1599:1601": "training.profile ('1599:1601')",
    "--training.profile=1:101": "training.profile ('1:101') must be FIRST:LAST, at most 100",
    "--training.profile=400:402": "no validation or save between its steps, but there is one after step 400",
    "--training.startup_proof=": "training.startup_proof must be true or false, not ''",
    "--checkpoint.keep=0": "checkpoint.keep (0)",
    "--checkpoint.every_steps=0": "checkpoint.every_steps (0)",
    "--checkpoint.keep_every_steps=-1": "checkpoint.keep_every_steps (-1)",
    "--evaluation.every_steps=0": "evaluation.every_steps (0)",
    "--evaluation.rows_per_batch=0": "evaluation.rows_per_batch (0)",
    f"--evaluation.rows_per_batch={2**40}": f"evaluation.rows_per_batch ({2**40})",
    "--evaluation.validation_bytes=-1": "evaluation.validation_bytes (-1)",
    f"--evaluation.validation_bytes={10**30}": f"validation_bytes ({10**30}) must fit",
    "--evaluation.sample_tokens=-1": "evaluation.sample_tokens (-1)",
    f"--evaluation.sample_tokens={2**40}": f"evaluation.sample_tokens ({2**40})",
    "--name=a/b": "name 'a/b': a run folder is named after it",
    "--name=swiglu": "name 'swiglu' belongs to another experiment",
    "--question": "question",
}


@pytest.mark.parametrize(("argument", "words"), ARGUMENTS.items(), ids=map(ascii, ARGUMENTS))
def test_bad_argument_is_refused_with_its_name_and_the_rule(argument, words, capfd):
    status = main([BASELINE, "--print_config", argument])
    assert_refused(status, capfd.readouterr().err, [words])


def test_step_too_large_for_the_device_is_refused_with_what_to_lower():
    # 1 PiB: more than any machine's addresses.
    with (
        pytest.raises(UserError, match=r"too little memory .*; raise training\.micro_batches"),
        out_of_memory_reported(),
    ):
        jnp.zeros((1 << 24, 1 << 24)).block_until_ready()


PATHS = sorted(flatten(load_experiment("baseline")))
NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(str), st.from_regex(r"[-+]?[0-9_]*\.?[0-9]*e?[-+]?[0-9]{0,4}")
)
WORDS = st.sampled_from(["true", "False", "nan", "-inf", "1e400", "none", "0x10", "auto", "9" * 5000, "", " "])
MISSPELT = st.builds(
    lambda path, i, mark: path[:i] + mark + path[i + 1 :],
    st.sampled_from(PATHS),
    st.integers(0, 30),
    st.text(max_size=2),
)


@settings(max_examples=100)
@given(st.dictionaries(st.one_of(st.sampled_from(PATHS), MISSPELT), st.one_of(NUMBERS, WORDS, st.text()), max_size=4))
def test_made_up_overrides_are_taken_or_refused_with_one_line(overrides):
    errors, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
        status = main([BASELINE, "--print_config", *(f"--{path}={text}" for path, text in overrides.items())])
    if status == 0:
        assert errors.getvalue() == "" and json.loads(printed.getvalue())["model"]
    else:
        assert_refused(status, errors.getvalue(), [])
