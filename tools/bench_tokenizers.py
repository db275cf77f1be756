"""Measures SentencePiece beside Hugging Face `tokenizers`: training, encoding, and bytes per token on held-out text.

    python tools/bench_tokenizers.py --path=FILE.jsonl [--megabytes=20] [--tokenizer=FOLDER ...] [--json=RESULT.json]

Both train byte-complete BPE with each digit apart: SentencePiece as `jaxformer` trains it, `tokenizers` byte-level with
GPT-2's pre-tokenizer. Each training, and each encoding of the held-out text (the median of several rounds), runs in a
process of its own that is bound to so many cores. `--tokenizer` encodes with given ones.
Where others use the machine, seconds of its processors are what to compare; those of several threads add up.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from jaxformer.data.corpus import CorpusConfig, key_fraction, load_documents
from jaxformer.data.json_tokenizer import JsonTokenizer
from jaxformer.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxformer.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, sample_texts, train_tokenizer

TRAINERS = ("sentencepiece", "tokenizers")
VOCABULARIES = (4096, 32_768)
CORES = (1, 2)
ROUNDS = 5
HELD_OUT_DOCUMENTS = 300


def main() -> None:
    """Measures, prints the figures and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="a JSON lines corpus")
    parser.add_argument("--megabytes", type=int, default=20, help="of text to train on")
    parser.add_argument("--tokenizer", action="append", default=[], help="a given one, to encode with")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for trainer, size, cores in itertools.product(TRAINERS, VOCABULARIES, CORES):
            folder = folders[f"{trainer} {size}"] = Path(scratch) / f"{trainer}_{size}"
            sample = (options.path, options.megabytes * 10**6)
            rows.append(in_new_process("true", train, trainer, size, cores, folder, *sample))
        folders |= {Path(path).name: Path(path) for path in options.tokenizer}
        for (name, folder), cores in itertools.product(folders.items(), CORES):
            rows.append({"tokenizer": name} | in_new_process("false", encode, folder, cores, options.path))
    if options.json:
        record = {"corpus": Path(options.path).name, "megabytes": options.megabytes, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def in_new_process(own_threads: str, function: Callable[..., dict], *arguments) -> dict:
    """Returns, and prints, what a function returns in a new process, with `tokenizers`' own threads or without."""
    os.environ["TOKENIZERS_PARALLELISM"] = own_threads
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        row = process.submit(function, *arguments).result()
    print(json.dumps(row), flush=True)
    return row


def bind(cores: int) -> None:
    """Leaves this process so many cores."""
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def train(trainer: str, vocabulary_size: int, cores: int, folder: Path, path: str, training_bytes: int) -> dict:
    """Writes a tokenizer that is trained on a corpus, and returns what that took."""
    bind(cores)
    texts = sample_texts(load_documents(corpus_config(path)), training_bytes)
    begun, began = time.perf_counter(), time.process_time()
    tokenizer = make_tokenizer(trainer, vocabulary_size, texts)
    seconds, processor_seconds = time.perf_counter() - begun, time.process_time() - began
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return {
        "trainer": trainer,
        "vocabulary_size": vocabulary_size,
        "cores": cores,
        "training_seconds": round(seconds, 1),
        "training_processor_seconds": round(processor_seconds, 1),
    }


def encode(folder: Path, cores: int, path: str) -> dict:
    """Returns how fast a tokenizer encodes the held-out text of a corpus, and in how many tokens."""
    bind(cores)
    tokenizer, config = load_tokenizer(folder), corpus_config(path)
    held_out = (d.text for d in load_documents(config) if key_fraction(d.key) < config.validation_share)
    texts = list(itertools.islice(held_out, HELD_OUT_DOCUMENTS))
    size, rates, processor_rates = sum(len(text.encode()) for text in texts) / 1e6, [], []
    tokens = sum(map(len, tokenizer.encode_batch(texts, threads=cores)))
    for _ in range(ROUNDS):
        begun, began = time.perf_counter(), time.process_time()
        tokenizer.encode_batch(texts, threads=cores)
        rates.append(size / (time.perf_counter() - begun))
        processor_rates.append(size / (time.process_time() - began))
    return {
        "cores": cores,
        "mb_per_second": round(statistics.median(rates), 2),
        "mb_per_processor_second": round(statistics.median(processor_rates), 2),
        "bytes_per_token": round(size * 1e6 / tokens, 3),
        "held_out_megabytes": round(size, 2),
    }


def corpus_config(path: str) -> CorpusConfig:
    """Returns the corpus of a JSON lines file, a tenth of which is held out."""
    return CorpusConfig(kind="jsonl", path=path, validation_share=0.1)


def make_tokenizer(trainer: str, vocabulary_size: int, texts: list[str]) -> Tokenizer:
    """Returns a tokenizer that is trained on some texts."""
    if trainer == "sentencepiece":
        return SentencePieceTokenizer(train_tokenizer(texts, TokenizerConfig(vocabulary_size=vocabulary_size)))
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    bpe = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, bpe)
    return JsonTokenizer(tokenizer.to_str().encode(), {})


if __name__ == "__main__":
    main()
