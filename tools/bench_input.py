"""Measures the input side: preparing token shards against the tokenizer alone, reading and packing them, and waiting.

    python tools/bench_input.py [--path=FILE.jsonl or FOLDER_OF_PARQUET] [--tokenizer=PATH] [--json=RESULT.json]
    python tools/bench_input.py --lengths

Reading runs in one thread on one core. Each figure is the median of several rounds; preparing and the tokenizer alone
take turns, by as many processes as threads. Their ratio is that of seconds, and that of the processors' seconds, which
counts where others use the machine. The memory is the peak of a preparation and its worker processes together (Linux's
proportional set size, sampled); `recombine_texts.py` makes a folder like a part of FineWeb-EDU. Waiting is what a loop
waits for its batches that takes so many tokens a second and otherwise leaves the processor alone, as on a GPU.

With --lengths only reading is measured, of 64 million tokens in random documents of 40, 400 and 4,000 tokens: batches
as a run reads them, rows alone, and rows whose files are not in the system's cache, where the disk counts. What a busy
machine takes away is told by the rate of batches per second of the processor's time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.chunks import Chunk, write_chunk
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.packing import PackingConfig, batch_digest, make_batches, packing_report, plan_rows, read_rows
from jaxformer.data.preparation import default_processes, prepare
from jaxformer.data.selection import Selected
from jaxformer.data.shard_writer import write_shard_files
from jaxformer.data.shards import Manifest, Shards, open_shards, shard_paths
from jaxformer.data.tokenizer import TokenizerConfig, prepare_tokenizer
from jaxformer.host.workers import Workers

ROUNDS = 5
SECONDS = 1.0
# Between samples of memory.
MEMORY_SECONDS = 0.02
SHAPES = ((8, 256), (32, 1024), (32, 2048))
METHODS = ("best_fit", "concat_and_split")
# Tokens per second on four cores, of the smallest model on the fastest device; fewer cores are asked for less.
PACE, CORES = 2e6, 4
WAITING_STEPS = 200
# Tokens of a document, of all documents, and of the vocabulary of random ones.
LENGTHS, LENGTHS_TOKENS, LENGTHS_VOCABULARY = (40, 400, 4000), 64_000_000, 32_768
COLD_BATCHES = 20


def main() -> None:
    """Measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="a JSON lines or Parquet corpus instead of the standard library")
    parser.add_argument("--tokenizer", default="", help="a given one in place of one trained on the corpus")
    parser.add_argument("--vocabulary_size", type=int, default=4096, help="of the one that is trained")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of preparation")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--lengths", action="store_true", help="measure only rows of documents of three lengths")
    options = parser.parse_args()
    if options.lengths:
        measure_lengths(options.json)
        return
    documents = load_documents(corpus_config(options.path))

    with tempfile.TemporaryDirectory() as scratch:
        config = TokenizerConfig(path=options.tokenizer, vocabulary_size=options.vocabulary_size)
        tokenizer = prepare_tokenizer([documents], config, Path(scratch))
        preparation = measure_preparation(documents, tokenizer, Path(scratch), options.rounds)
        preparation["peak_megabytes"] = measure_memory(options.path, tokenizer, Path(scratch))
        print(f"the tokenizer alone        {preparation['tokenizer_mb_per_second']:8.2f} MB/s")
        print(f"preparing token shards     {preparation['prepare_mb_per_second']:8.2f} MB/s")
        print(f"ratio                      {preparation['ratio']:8.2f}")
        print(f"ratio of processor time    {preparation['processor_ratio']:8.2f}")
        print(f"peak memory of preparing   {preparation['peak_megabytes']:8.0f} MB")
        shards = open_shards(prepare(documents, tokenizer, Path(scratch), progress=False), "train")
        pace = PACE * min(1.0, (os.cpu_count() or 1) / CORES)
        waiting = [measure_waiting(shards, 32, 2048, method, pace) for method in METHODS]
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        reading = [measure_reading(shards, *shape, method) for shape in SHAPES for method in METHODS]
    for row in reading:
        print(
            f"{row['method']:16s} {row['rows']:3d} x {row['row_length']:<5d} "
            f"{row['tokens_per_second'] / 1e6:8.2f} million tokens/s   {row['packing']}"
        )
    for row in waiting:
        print(
            f"{row['method']:16s} at {row['tokens_per_second'] / 1e6:.2f} million tokens/s: waiting {row['share']:.3%} "
            f"of the time, at most {1e3 * row['longest_seconds']:.2f} ms of a step's {1e3 * row['step_seconds']:.1f}"
        )
    if options.json:
        result = {
            "cores": os.cpu_count(),
            "corpus": Path(documents.origin).name,
            "vocabulary_size": tokenizer.vocabulary_size,
            "preparation": preparation,
            "reading": reading,
            "waiting": waiting,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def corpus_config(path: str | None) -> CorpusConfig:
    """Returns the corpus at a path, or the standard library."""
    if not path:
        return CorpusConfig(kind="pystdlib")
    if ".jsonl" in path:
        return CorpusConfig(kind="jsonl", path=path)
    return CorpusConfig(kind="parquet", path=path, key_field="id")  # As FineWeb-EDU's.


PREPARE = """
import sys
from pathlib import Path
from bench_input import corpus_config
from jaxformer.data.corpus import load_documents
from jaxformer.data.preparation import default_processes, prepare
from jaxformer.data.tokenizer import load_tokenizer
documents, tokenizer = load_documents(corpus_config(sys.argv[1])), load_tokenizer(sys.argv[2])
prepare(documents, tokenizer, Path(sys.argv[3]), processes=0, progress=False)
"""


def measure_memory(path: str | None, tokenizer, scratch: Path) -> float:
    """Returns the peak memory, MB, of a process that does nothing but prepare, and of its workers."""
    folder = scratch / "tokenizer"
    folder.mkdir()
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", PREPARE, path or "", str(folder), str(scratch / "memory")]
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    peak = 0
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": places}) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(memory_of, [process.pid, *children_of(process.pid)])))
            time.sleep(MEMORY_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak / 1e6


def children_of(process: int) -> list[int]:
    """Returns the processes that the threads of a process have started and that have not ended."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(each) for path in lists for each in text_of(path).split()]


def memory_of(process: int) -> int:
    """Returns the bytes of memory of a process: its own, and its share of what several hold; 0 for one that ended."""
    found = re.search(r"^Pss:\s+(\d+) kB", text_of(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def text_of(path: Path) -> str:
    """Returns what a file of a process says, or nothing where the process has ended."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def measure_preparation(documents, tokenizer, scratch: Path, rounds: int) -> dict:
    """Returns the rates of tokenising alone and of `prepare`, in turn, by as many threads as processes."""
    texts = [document.text for document in documents if document.text.strip()]
    size = sum(len(text.encode()) for text in texts) / 1e6
    processes = default_processes()
    alone, whole = [], []
    for i in range(rounds):
        alone.append(seconds(lambda: tokenizer.encode_batch(texts, threads=processes)))
        place = scratch / str(i)
        whole.append(seconds(lambda place=place: prepare(documents, tokenizer, place, processes=0, progress=False)))
    ratio, processor_ratio = np.median(np.array(alone) / np.array(whole), axis=0).tolist()
    return {
        "megabytes": size,
        "processes": processes,
        "tokenizer_mb_per_second": size / statistics.median(wall for wall, _ in alone),
        "prepare_mb_per_second": size / statistics.median(wall for wall, _ in whole),
        "ratio": ratio,
        "processor_ratio": processor_ratio,
    }


def seconds(function) -> tuple[float, float]:
    """Returns the seconds that a function takes, and those of the processors, of other processes that it ends too."""
    begun, before = time.perf_counter(), os.times()
    function()
    after = os.times()
    return time.perf_counter() - begun, sum(after[:4]) - sum(before[:4])


def measure_reading(shards, rows: int, row_length: int, method: str) -> dict:
    """Returns the text tokens per second of batches from ready shards."""
    config = PackingConfig(row_length=row_length, method=method, reader_threads=0)
    plan = plan_rows(shards.tokens, config, seed=0)
    batches = make_batches([shards], [plan], [1.0], config, rows_per_step=rows, seed=0)
    return {
        "rows": rows,
        "row_length": row_length,
        "method": method,
        "tokens_per_second": tokens_per_second(batches),
        "packing": str(packing_report(plan, shards.tokens)),
    }


def tokens_per_second(batches, clock=time.perf_counter) -> float:
    """Returns the median rate of text tokens of some batches that come without end."""
    next(batches)
    rates = []
    for _ in range(ROUNDS):
        started, tokens = clock(), 0.0
        while clock() - started < SECONDS:
            tokens += float(next(batches).loss_weights_BT.sum())
        rates.append(tokens / (clock() - started))
    return statistics.median(rates)


def measure_lengths(json_path: Path | None) -> None:
    """Measures reading rows of documents of a few lengths on one core, and prints a table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = []
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as scratch:
            shards = write_documents(length, Path(scratch))
            measured += [measure_length(shards, length, method) for method in METHODS]
    for row in measured:
        print(
            f"{row['method']:16s} documents of {row['length']:>5,} tokens: "
            f"{row['batches'] / 1e6:6.2f} million tokens/s ({row['of_processor_time'] / 1e6:.2f} of processor time), "
            f"{row['rows_alone'] / 1e6:6.2f} of rows alone, {row['cold'] / 1e6:6.2f} from the disk"
        )
    if json_path:
        json_path.write_text(json.dumps({"cores": 1, "lengths": measured}, indent=2) + "\n", encoding="utf-8")


def measure_length(shards: Shards, length: int, method: str) -> dict:
    """Returns the text tokens per second of batches of 32 rows of 2,048 tokens, in three ways."""
    rows, config = 32, PackingConfig(row_length=2048, method=method, reader_threads=0)
    plan = plan_rows(shards.tokens, config, seed=0)
    numbers = np.random.default_rng(0).permutation(len(plan))
    alone = (
        read_rows(shards, plan, np.take(numbers, range(i, i + rows), mode="wrap")) for i in itertools.count(0, rows)
    )
    batches = make_batches([shards], [plan], [1.0], config, rows_per_step=rows, seed=0)
    result = {
        "length": length,
        "method": method,
        "batches": tokens_per_second(batches),
        "of_processor_time": tokens_per_second(batches, time.process_time),
        "rows_alone": tokens_per_second(alone),
    }
    for path in shard_paths(shards.folder, shards.split):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    batches = (read_rows(shards, plan, numbers[i * rows : (i + 1) * rows]) for i in range(COLD_BATCHES))
    tokens = sum(float(batch.loss_weights_BT.sum()) for batch in batches)
    return result | {"cold": tokens / (time.perf_counter() - started)}


def write_documents(length: int, folder: Path) -> Shards:
    """Returns shards of random documents of about so many tokens, half to one and a half times as many."""
    random = np.random.default_rng(0)
    tokens = random.integers(length // 2, length * 3 // 2 + 1, LENGTHS_TOKENS // length).astype(np.int32)
    ids = random.integers(3, LENGTHS_VOCABULARY, tokens.sum(), np.uint16)
    none = np.empty(0)
    chunk = Chunk(ids, tokens, 4 * tokens, none, none, read=np.array(len(tokens)), is_last=np.array(True))
    write_chunk(folder / "chunk.npz", chunk)
    whole = Selected(np.zeros(len(tokens), np.int32), np.cumsum(tokens) - tokens, tokens, 4 * tokens)
    selected = {"train": whole, "validation": Selected(*(each[:1] for each in whole))}
    write_shard_files(folder, [folder / "chunk.npz"], selected, Workers(1), vocabulary_size=LENGTHS_VOCABULARY)
    os.sync()
    marks: dict[str, Any] = {field.name: None for field in dataclasses.fields(Manifest)}
    marks |= {"vocabulary_size": LENGTHS_VOCABULARY, "bos_id": 1, "eos_id": 2}
    return Shards(folder, "train", Manifest(**marks), tokens.astype(np.int64), 4 * tokens.astype(np.int64), np.empty(0))


def measure_waiting(shards, rows: int, row_length: int, method: str, pace: float) -> dict:
    """Returns how long a loop that takes so many tokens per second waits for its batches, read as in training."""
    config = PackingConfig(row_length=row_length, method=method)
    plan = plan_rows(shards.tokens, config, seed=0)
    batches = make_batches([shards], [plan], [1.0], config, rows_per_step=rows, seed=0)
    step_seconds, waits = rows * row_length / pace, []
    batch = next(batches)
    due = time.perf_counter()
    for _ in range(WAITING_STEPS):
        batch_digest(batch)  # The loop's own work between two steps.
        asked = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - asked)
        due += step_seconds
        time.sleep(max(0.0, due - time.perf_counter()))
    return {
        "rows": rows,
        "row_length": row_length,
        "method": method,
        "tokens_per_second": pace,
        "step_seconds": step_seconds,
        "share": sum(waits) / (WAITING_STEPS * step_seconds),
        "longest_seconds": max(waits),
    }


if __name__ == "__main__":
    main()
