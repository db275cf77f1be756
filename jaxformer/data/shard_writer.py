"""Selected documents to the files of a TFDS dataset in ArrayRecord form, written here or over Apache Beam.

The builder is one and the same: each shard is a function that yields its records from the chunks that hold them, and
TFDS calls these functions in turn, or has Beam's workers call them. The files are equal, byte by byte.
"""

import contextlib
import errno
import io
import itertools
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxformer.config import UserError
from jaxformer.data import shards
from jaxformer.data.chunks import read_chunk
from jaxformer.data.selection import Selected
from jaxformer.data.shards import id_dtype
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import literal_path


def write_shard_files(
    folder: Path,
    paths: Sequence[Path],
    selected: dict[str, Selected],
    *,
    vocabulary_size: int,
    beam: Sequence[str] | None = None,
    progress: bool = False,
) -> None:
    """Writes each split's stream of ids (see `shards`) as a TFDS dataset in `folder`.

    Args:
        paths: of the chunks that hold them.
        beam: options of an Apache Beam pipeline, as on a command line; None to write here.
        progress: whether a line tells the tokens written here.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    bar = progress_bar(
        desc="writing token shards",
        unit=" tokens",
        total=sum(int(each.tokens.sum(dtype=np.int64)) for each in selected.values()),
        disable=not progress or beam is not None,
    )

    dtype = id_dtype(vocabulary_size)
    records = {
        # Beam runs what is written first once more with what is written second: the small split comes first.
        split: [partial(_records, paths, *cut) for cut in _files(selected[split])]
        for split in ("validation", "train")
    }
    with registered.skip_registration():

        class TokenShards(tfds.core.ShardBasedBuilder):
            """Records of token ids, in the order of the index."""

            VERSION = tfds.core.Version("1.0.0")
            name = "token_shards"

            def _info(self):
                ids = tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")
                features = tfds.features.FeaturesDict({"ids": ids})
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _shard_iterators_per_split(self, dl_manager):
                return records if beam is not None else _counted(records, bar)

    shutil.rmtree(folder / "token_shards", ignore_errors=True)  # Of an attempt that was killed.
    config = tfds.download.DownloadConfig(try_download_gcs=False, **_beam_options(beam))
    # TFDS prints about downloads; there are none.
    with bar, literal_path(folder) as place, contextlib.redirect_stdout(io.StringIO()):
        builder = TokenShards(data_dir=str(place), file_format="array_record")
        with _files_without_owners(), _full_disk_reported(folder) if beam is None else in_one_line():
            builder.download_and_prepare(download_config=config)
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    for path in (folder / "token_shards").rglob("*.shard_infos.json"):
        path.unlink()  # With the counts of Beam's workers.


def pipeline_options(beam: Sequence[str]):
    """Returns the options of a Beam pipeline.

    Raises:
        UserError: Beam is not installed, or the options are not Beam's, or it knows no such runner.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError as error:
        raise UserError("preparing over Apache Beam needs it; pip install 'jaxformer[beam]'") from error
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        options = PipelineOptions(list(beam))
        create_runner(options.get_all_options()["runner"] or "DirectRunner")
    except (SystemExit, ValueError, TypeError) as error:
        raise UserError(f"{' '.join(beam)}: these are no options of an Apache Beam pipeline") from error
    return options


@contextlib.contextmanager
def _files_without_owners() -> Iterator[None]:
    """Within the block `etils.epath`, of which TFDS asks the sizes of files, looks up no names of their owners.

    A user of a container has none in its passwd file, and that is an error there.
    """
    from etils.epath import backend, stat_utils

    def stat_without_owner(path) -> stat_utils.StatResult:
        found = os.stat(path)
        return stat_utils.StatResult(
            stat.S_ISDIR(found.st_mode), found.st_size, int(found.st_mtime), mode=found.st_mode
        )

    files = backend.os_backend
    files.stat = stat_without_owner
    try:
        yield
    finally:
        del files.stat


@contextlib.contextmanager
def _full_disk_reported(folder: Path) -> Iterator[None]:
    """Raises `OSError`, as anything else that writes does, in place of what ArrayRecord raises."""
    try:
        yield
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        raise OSError(errno.ENOSPC, full, str(folder)) from error


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Raises the error of a Beam pipeline, which holds its worker's traceback, as a `UserError` of one line."""
    try:
        yield
    except Exception as error:  # Each runner raises kinds of its own.
        text = str(error).partition(" [while running")[0]
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        theirs = [line.partition("UserError: ")[2] for line in lines if "UserError: " in line]
        raise UserError(f"Apache Beam: {(theirs or lines)[-1]}") from error


def _beam_options(beam: Sequence[str] | None) -> dict:
    if beam is None:
        return {}
    options = pipeline_options(beam)
    return {"beam_options": options, "beam_runner": options.get_all_options()["runner"] or "DirectRunner"}


def _files(selected: Selected) -> Iterator[tuple[Selected, int, int]]:
    """Yields for each file of a split the documents that it holds any of, and the range of their ids that it holds."""
    ends = np.cumsum(selected.tokens, dtype=np.int64)
    file_tokens = shards.FILE_RECORDS * shards.RECORD_TOKENS
    for start in range(0, int(ends[-1]), file_tokens):
        stop = min(start + file_tokens, int(ends[-1]))
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        before = int(ends[first] - selected.tokens[first])
        yield Selected(*(each[first : last + 1] for each in selected)), start - before, stop - before


def _records(paths: Sequence[Path], documents: Selected, start: int, stop: int) -> Iterator[tuple[int, dict]]:
    """Yields ids [start, stop) of the stream of some documents in records, numbered."""
    number, waiting, at = 0, np.empty(0, np.int32), 0
    for ids in _stream(paths, documents):
        chosen = ids[max(0, start - at) : max(0, stop - at)]
        at += len(ids)
        waiting = np.concatenate([waiting, chosen]) if len(waiting) else chosen
        whole = len(waiting) if at >= stop else len(waiting) // shards.RECORD_TOKENS * shards.RECORD_TOKENS
        for first in range(0, whole, shards.RECORD_TOKENS):
            yield number, {"ids": waiting[first : min(first + shards.RECORD_TOKENS, whole)]}
            number += 1
        waiting = waiting[whole:]


def _stream(paths: Sequence[Path], documents: Selected) -> Iterator[np.ndarray]:
    """Yields the ids of some documents end to end, those of a chunk at a time."""
    borders = np.flatnonzero(np.diff(documents.chunk_of, prepend=-1, append=-1))
    for first, stop in itertools.pairwise(borders.tolist()):
        lengths = documents.tokens[first:stop].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        ids = _ids(paths[int(documents.chunk_of[first])])
        yield ids[np.repeat(documents.starts[first:stop] - before, lengths) + np.arange(lengths.sum())]


def _counted(files: dict[str, list[partial]], bar: tqdm) -> dict[str, list[Callable]]:
    """Returns functions that yield the same records and show their tokens."""

    def count(records: partial) -> Iterator[tuple[int, dict]]:
        for number, example in records():
            bar.update(len(example["ids"]))
            yield number, example

    return {split: [partial(count, records) for records in each] for split, each in files.items()}


def _ids(path: Path) -> np.ndarray:
    chunk = read_chunk(path, with_ids=True)
    if chunk is None:
        path.unlink(missing_ok=True)
        raise UserError(f"token shards {path}: what was prepared is damaged; run again to make this file anew")
    return chunk.ids
