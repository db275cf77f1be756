"""Selected documents to the files of a TFDS dataset in ArrayRecord form, written here or over Apache Beam.

The builder is one and the same: each shard is a function that yields its records from the chunks that hold them, and
TFDS calls these functions in turn, or has Beam's workers call them. The files are equal, byte by byte.
"""

import contextlib
import errno
import io
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
from jaxformer.data.chunks import read_chunk
from jaxformer.data.selection import Selected
from jaxformer.data.shards import id_dtype
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import literal_path

# Ids of one shard file, bytes: what a writer holds in memory.
_SHARD_BYTES = 128 << 20


def write_shard_files(
    folder: Path,
    paths: Sequence[Path],
    selected: dict[str, Selected],
    *,
    vocabulary_size: int,
    record_tokens: int,
    beam: Sequence[str] | None = None,
    progress: bool = False,
) -> None:
    """Writes each split's documents in order, in records, as a TFDS dataset in `folder`.

    Args:
        paths: of the chunks that hold them.
        record_tokens: of each record; a document's last one may hold fewer.
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
    shards = {
        # Beam runs what is written first once more with what is written second: the small split comes first.
        split: [partial(_records, paths, shard, record_tokens) for shard in _cut(selected[split], np.dtype(dtype))]
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
                return shards if beam is not None else _counted(shards, bar)

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


def _cut(selected: Selected, dtype: np.dtype) -> list[Selected]:
    """Returns the documents of each shard file: as many as begin within its bytes."""
    sizes = selected.tokens.astype(np.int64) * dtype.itemsize
    numbers = (np.cumsum(sizes) - sizes) // _SHARD_BYTES
    borders = np.flatnonzero(np.diff(numbers)) + 1
    first_and_stop = zip([0, *borders.tolist()], [*borders.tolist(), len(sizes)], strict=True)
    return [Selected(*(each[first:stop] for each in selected)) for first, stop in first_and_stop]


def _records(paths: Sequence[Path], shard: Selected, record_tokens: int) -> Iterator[tuple[int, dict]]:
    """Yields the records of a shard, numbered."""
    number, chunk_of, ids = 0, -1, np.empty(0)
    for chunk, start, tokens in zip(*(each.tolist() for each in shard[:3]), strict=True):
        if chunk != chunk_of:
            chunk_of, ids = chunk, _ids(paths[chunk])
        for first in range(start, start + tokens, record_tokens):
            yield number, {"ids": ids[first : min(first + record_tokens, start + tokens)]}
            number += 1


def _counted(shards: dict[str, list[partial]], bar: tqdm) -> dict[str, list[Callable]]:
    """Returns functions that yield the same records and show their tokens."""

    def count(records: partial) -> Iterator[tuple[int, dict]]:
        for number, example in records():
            bar.update(len(example["ids"]))
            yield number, example

    return {split: [partial(count, records) for records in each] for split, each in shards.items()}


def _ids(path: Path) -> np.ndarray:
    chunk = read_chunk(path, with_ids=True)
    if chunk is None:
        path.unlink(missing_ok=True)
        raise UserError(f"token shards {path}: what was prepared is damaged; run again to make this file anew")
    return chunk.ids
