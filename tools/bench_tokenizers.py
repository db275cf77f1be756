"""Measures SentencePiece beside Hugging Face `tokenizers`: training, encoding, and bytes per token on held-out text.

    python tools/bench_tokenizers.py --path=FILE.jsonl [--megabytes=20] [--tokenizer=FOLDER ...] [--json=RESULT.json]

Both train byte-complete BPE with each digit apart: SentencePiece as `jaxformer` trains it, `tokenizers` byte-level with
GPT-2's pre-tokenizer. Each training runs in a process of its own that is bound to so many cores, and so does the
encoding of the held-out text, of which the median of several rounds is taken. `--tokenizer` encodes with given ones.
Where others use the machine, seconds of its processors are what to compare; those of several threads add up.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.json_tokenizer import JsonTokenizer
from jaxformer.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxformer.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, sample_texts, train_tokenizer

VOCABULARIES = (4096, 32_768)
CORES = (1, 2)
ROUNDS = 5
HELD_OUT_BYTES = 4_000_000


def main() -> None:
    """Measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="a JSON lines corpus")
    parser.add_argument("--megabytes", type=int, default=20, help="of text to train on")
    parser.add_argument("--tokenizer", action="append", default=[], help="a given one, to encode with")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    trained = [(trainer, size) for size in VOCABULARIES for trainer in ("sentencepiece", "tokenizers")]
    rows = []
    for what in [*trained, *((path, 0) for path in options.tokenizer)]:
        for cores in CORES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(measure, *what, cores, options.path, options.megabytes * 10**6).result())
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        record = {"corpus": Path(options.path).name, "megabytes": options.megabytes, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(trainer: str, vocabulary_size: int, cores: int, path: str, training_bytes: int) -> dict:
    """Returns the figures of one tokenizer on so many cores; to be called in a new process."""
    os.environ |= {"RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "true" if vocabulary_size else "false"}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    documents = load_documents(CorpusConfig(kind="jsonl", path=path, validation_share=0.1))
    texts = sample_texts(documents, training_bytes)
    chosen = set(texts)
    held_out = [document.text for document in documents if document.text not in chosen]
    while sum(map(len, held_out)) > HELD_OUT_BYTES and len(held_out) > 1:
        held_out.pop()
    started, used = time.perf_counter(), time.process_time()
    tokenizer = make_tokenizer(trainer, vocabulary_size, texts, cores)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # As in a run, where the threads are those of JsonTokenizer.
    size, rates, processor_rates = sum(len(text.encode()) for text in held_out), [], []
    encoded = tokenizer.encode_batch(held_out)
    for _ in range(ROUNDS):
        begun, began = time.perf_counter(), time.process_time()
        tokenizer.encode_batch(held_out)
        rates.append(size / 1e6 / (time.perf_counter() - begun))
        processor_rates.append(size / 1e6 / (time.process_time() - began))
    return {
        "tokenizer": trainer,
        "vocabulary_size": tokenizer.vocabulary_size,
        "cores": cores,
        "training_seconds": round(seconds, 1) if vocabulary_size else None,
        "training_processor_seconds": round(used, 1) if vocabulary_size else None,
        "encode_mb_per_second": round(statistics.median(rates), 2),
        "encode_mb_per_processor_second": round(statistics.median(processor_rates), 2),
        "bytes_per_token": round(size / sum(map(len, encoded)), 3),
        "held_out_megabytes": size / 1e6,
    }


def make_tokenizer(trainer: str, vocabulary_size: int, texts: list[str], threads: int) -> Tokenizer:
    """Returns a given tokenizer, or one that is trained on some texts."""
    if not vocabulary_size:
        return load_tokenizer(trainer, threads=threads)
    if trainer == "sentencepiece":
        return SentencePieceTokenizer(train_tokenizer(texts, TokenizerConfig(vocabulary_size=vocabulary_size)), threads)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    bpe = trainers.BpeTrainer(vocab_size=vocabulary_size, show_progress=False, **settings)
    tokenizer.train_from_iterator(texts, bpe)
    return JsonTokenizer(tokenizer.to_str().encode(), {}, threads)


if __name__ == "__main__":
    main()
