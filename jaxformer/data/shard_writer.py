"""Selected documents to the files of a TFDS dataset in ArrayRecord form, several at a time.

A file depends only on its documents and their chunks, so any process can write it at any time: a worker here, or one of
Apache Beam's.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.config import UserError
from jaxformer.data import shards
from jaxformer.data.beam import run_pipeline
from jaxformer.data.chunks import read_chunk
from jaxformer.data.selection import Selected
from jaxformer.data.shards import id_dtype, record_head
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import literal_path
from jaxformer.host.workers import Workers

_NAME, _VERSION = "token_shards", "1.0.0"
# Every record by itself. Zstandard, ArrayRecord's default, makes ids of 16 bits a seventh smaller than Snappy does
# (1.76 bytes against 2.03), and takes four times as long to write and twice as long to read.
_OPTIONS = "group_size:1,snappy"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class ShardFile(NamedTuple):
    """A file of a split to write: some ids of its documents, which form one stream."""

    path: Path
    chunks: list[Path]
    """Chunks with the documents, in order."""
    chunk_of: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    """`chunk_of`, `starts` and `tokens`: as of `Selected`, of the documents; chunks are numbered as they are here."""
    skip: int
    """Ids of the first document that lie in the file before."""
    count: int
    """Ids of the file."""
    record_tokens: int
    """Ids of each record; the last one of a split may hold fewer."""


def write_shard_files(
    folder: Path,
    paths: Sequence[Path],
    selected: dict[str, Selected],
    workers: Workers,
    *,
    vocabulary_size: int,
    beam: Sequence[str] | None = None,
    progress: bool = False,
) -> None:
    """Writes each split's documents in order as a TFDS dataset in `folder`: their ids as one stream, cut into records.

    Args:
        paths: of the chunks that hold them.
        workers: that write here.
        beam: options of an Apache Beam pipeline, as on a command line; None to write here.
        progress: whether to show the tokens written here.
    """
    place = folder / _NAME / _VERSION
    shutil.rmtree(place.parent, ignore_errors=True)  # From a killed attempt.
    place.mkdir(parents=True)
    files = {split: _files(place, split, paths, selected[split]) for split in selected}
    in_all = list(itertools.chain.from_iterable(files.values()))
    if beam is None:
        tokens = sum(file.count for file in in_all)
        with progress_bar(desc="writing token shards", unit=" tokens", total=tokens, disable=not progress) as bar:
            for written in workers.map(write_file, in_all):
                bar.update(written)
    else:
        run_pipeline(write_file, in_all, beam)
    _write_metadata(place, files, vocabulary_size)


def _files(place: Path, split: str, paths: Sequence[Path], selected: Selected) -> list[ShardFile]:
    """Returns the files of a split; they hold views of the selection."""
    file_tokens = shards.RECORD_TOKENS * shards.FILE_RECORDS
    stops = np.cumsum(selected.tokens, dtype=np.int64)
    begins = range(0, int(stops[-1]), file_tokens)
    files = []
    for number, begin in enumerate(begins):
        end = min(begin + file_tokens, int(stops[-1]))
        first, last = np.searchsorted(stops, begin, "right"), np.searchsorted(stops, end, "left")
        chunk_of, starts, tokens = (each[first : last + 1] for each in selected[:3])
        files.append(
            ShardFile(
                path=place / f"{_NAME}-{split}.array_record-{number:05d}-of-{len(begins):05d}",
                chunks=list(paths[chunk_of[0] : chunk_of[-1] + 1]),
                chunk_of=chunk_of,
                starts=starts,
                tokens=tokens,
                skip=begin - int(stops[first] - tokens[0]),
                count=end - begin,
                record_tokens=shards.RECORD_TOKENS,
            )
        )
    return files


def write_file(file: ShardFile) -> int:
    """Writes a file; returns the number of its ids."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with literal_path(file.path.parent) as place, _full_disk_reported(file.path):
        writer = ArrayRecordWriter(str(place / file.path.name), _OPTIONS)
        rest = np.empty(0, np.uint16)
        for ids in _stream(file):
            rest = np.concatenate([rest, ids]) if len(rest) else ids
            whole = len(rest) // file.record_tokens * file.record_tokens
            for first in range(0, whole, file.record_tokens):
                writer.write(_record(rest[first : first + file.record_tokens]))
            rest = rest[whole:]
        if len(rest):
            writer.write(_record(rest))
        writer.close()
    return file.count


def _stream(file: ShardFile) -> Iterator[np.ndarray]:
    """Yields the ids of a file, of one chunk at a time."""
    skip, left = file.skip, file.count
    borders = np.flatnonzero(np.diff(file.chunk_of)) + 1
    for first, stop in zip([0, *borders.tolist()], [*borders.tolist(), len(file.chunk_of)], strict=True):
        ids = _ids(file.chunks[file.chunk_of[first] - file.chunk_of[0]])
        starts = file.starts[first:stop]
        edges = np.zeros(len(ids) + 1, np.int8)  # Documents lie in a chunk in order; some between them are left out.
        edges[starts] += 1
        edges[starts + file.tokens[first:stop]] -= 1
        found = ids[np.cumsum(edges[:-1], dtype=np.int8).view(bool)][skip:][:left]
        yield found
        skip, left = 0, left - len(found)


def _record(ids: np.ndarray) -> bytes:
    data = ids.tobytes()
    return record_head(len(data)) + data


def _write_metadata(place: Path, files: dict[str, list[ShardFile]], vocabulary_size: int) -> None:
    """Writes TFDS's metadata for the files at a place, as `tfds.folder_dataset.write_metadata` does."""
    splits = [
        {
            "filepathTemplate": _TEMPLATE,
            "name": split,
            "numBytes": str(sum(file.path.stat().st_size for file in of_split)),
            "shardLengths": [str(-(-file.count // file.record_tokens)) for file in of_split],
        }
        for split, of_split in files.items()
    ]
    info = {"fileFormat": "array_record", "name": _NAME, "splits": splits, "version": _VERSION}
    dtype = np.dtype(id_dtype(vocabulary_size)).name
    tensor = {"dtype": dtype, "encoding": "bytes", "shape": {"dimensions": ["-1"]}}
    ids = {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor", "tensor": tensor}
    features = {
        "featuresDict": {"features": {"ids": ids}},
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    }
    (place / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    (place / "features.json").write_text(json.dumps(features, indent=4), encoding="utf-8")


@contextlib.contextmanager
def _full_disk_reported(folder: Path) -> Iterator[None]:
    """Raises `OSError`, as other writers do, in place of ArrayRecord's error."""
    try:
        yield
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        raise OSError(errno.ENOSPC, full, str(folder)) from error


def _ids(path: Path) -> np.ndarray:
    chunk = read_chunk(path, with_ids=True)
    if chunk is None:
        path.unlink(missing_ok=True)
        raise UserError(f"token shards {path}: what was prepared is damaged; run again to make this file again")
    return chunk.ids
