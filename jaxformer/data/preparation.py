"""Documents to token shards, once: tokenised in chunks, selected, and written as shard files.

A stopped preparation resumes where it stopped, and ends with the same shards: a chunk depends only on its own
documents, and everything that depends on all documents (duplicates, the splits, the budget) is decided over the chunks
in reading order. The worker processes of this machine, and Apache Beam's, make the same chunks and shard files, by the
same code.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.data.beam import tokenise_over_beam
from jaxformer.data.chunks import Stored, open_chunks, tokenise
from jaxformer.data.corpus import Documents, load_documents, part_names
from jaxformer.data.selection import Selected, Selection, check_count, check_split, split_notice
from jaxformer.data.shard_writer import write_shard_files
from jaxformer.data.shards import FORMAT_VERSION, SPLITS, Manifest, id_dtype, shard_digests
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.cache import make_once
from jaxformer.host.console import format_size, print_notice, progress_bar
from jaxformer.host.files import read_json_or_empty, sync_tree, write_whole
from jaxformer.host.lock import is_held
from jaxformer.host.paths import check_literal, is_literal
from jaxformer.host.workers import Workers, usable_memory, usable_processors

# Processes that tokenise as fast as one reads, and the memory of one with a tokenizer of 130,000 pieces, bytes.
_MOST_PROCESSES, _PROCESS_BYTES = 32, 1 << 28

# Advice after a process was killed.
_ADVICE = "the same command resumes where it stopped, and fewer tokenizer.processes take less memory"

# The fewest records from which a share may be judged before all are read.
_ENOUGH_RECORDS = 1000


def prepare(
    documents: Documents,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    processes: int = 1,
    progress: bool = True,
    beam: Sequence[str] | None = None,
) -> Path:
    """Tokenises a corpus into `cache` unless that was done before; returns the folder of its shards.

    If several processes prepare the same corpus, one works and the others wait for it. Its chunks stay on the disk
    until the shards are complete, so the ids take their space twice for a while. Memory does not grow with the text,
    but by 120 bytes for each document.

    Args:
        processes: that tokenise and write; 0 for `default_processes`.
        beam: options of an Apache Beam pipeline, as on a command line, whose workers tokenise and write; they need the
            sources and the cache at the same paths. None uses the processes.

    Raises:
        UserError: the corpus leaves no document in one of the splits, its files changed while they were read, or the
            pipeline failed.
    """
    check_literal(cache)
    require(
        beam is None or is_literal(cache),
        f"cache {cache}: Apache Beam's workers take its path for a pattern or a store; set JAXFORMER_CACHE to another",
    )
    require(
        beam is None or isinstance(documents.config.kind, str),
        f"corpus.kind {documents.config.kind!r}: Apache Beam's workers have no code of an experiment's file; prepare "
        "without --beam",
    )
    identity = [FORMAT_VERSION, documents.digest, documents.config.validation_share, tokenizer.digest]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return make_once(
        cache / "shards" / name,
        lambda folder: _write(documents, tokenizer, folder, processes or default_processes(), progress, beam),
        f"preparing {documents.origin}",
        resume=True,
    )


def default_processes() -> int:
    """Returns one per processor, but at most 32, and no more than the memory holds at 256 MiB each."""
    return max(1, min(usable_processors(), usable_memory() // _PROCESS_BYTES, _MOST_PROCESSES))


def _write(
    documents: Documents,
    tokenizer: Tokenizer,
    folder: Path,
    processes: int,
    progress: bool,
    beam: Sequence[str] | None,
) -> None:
    """Writes shards, index and manifest into a new folder, or into one left by a stopped attempt."""
    chunks = folder / "chunks"
    if not (folder / "manifest.json").exists():
        with contextlib.suppress(OSError):  # Another process may remove one meanwhile.
            _print_leftovers(folder)
        open_chunks(chunks)
        if documents.passed_over:
            print_notice(f"corpus {documents.config.path}: passed over {documents.passed_over}")
        with _refusing(documents, folder), Workers(processes if beam is None else 1, advice=_ADVICE) as workers:
            selection = _select(documents, tokenizer, chunks, workers, progress, beam)
            selected = _split(documents, selection)
            _check_unchanged(documents)
            _check_room(folder, selected, tokenizer)
            write_shard_files(
                folder,
                selection.paths,
                selected,
                workers,
                vocabulary_size=tokenizer.vocabulary_size,
                beam=beam,
                progress=progress,
            )
        _write_index(folder, selected, selection.validation_sources)
        sync_tree(folder / "token_shards")  # Before it counts, and the chunks are deleted.
        _write_manifest(folder, documents, tokenizer, selection, selected)
    shutil.rmtree(chunks, ignore_errors=True)


class _Refused(UserError):
    """No shards can be made of a corpus, and its tokenised chunks are not kept."""


@contextlib.contextmanager
def _refusing(documents: Documents, folder: Path) -> Iterator[None]:
    """Removes a folder if its corpus is refused in the block, or fails there because its files changed."""
    try:
        try:
            yield
        except UserError as error:
            _check_unchanged(documents, f" ({error})")
            raise
    except _Refused:
        shutil.rmtree(folder)
        raise
    except BaseException:
        _remove_unless_begun(folder)
        raise


def _check_unchanged(documents: Documents, sign: str = "") -> None:
    """Raises `_Refused` if the files of a corpus have changed since they were opened; a commit's never do."""
    if not documents.commit and load_documents(documents.config).source_digest != documents.source_digest:
        raise _Refused(f"corpus {documents.origin}: its files changed while they were read{sign}; run again")


def _remove_unless_begun(folder: Path) -> None:
    """Removes a folder without anything to resume."""
    if not any((folder / "chunks").glob("*.npz")):
        shutil.rmtree(folder, ignore_errors=True)


def _split(documents: Documents, selection: Selection) -> dict[str, Selected]:
    """Returns the documents of each split, and prints what a user may not expect about them."""
    config, origin = documents.config, documents.origin
    _check_bad_records(documents, selection)
    try:
        check_count(config, origin, selection)
        selected = selection.finish()
        check_split(config, origin, selection.keys, selected)
    except UserError as error:
        raise _Refused(str(error)) from error
    if selection.bad:
        print_notice(f"corpus {origin}: left out {_bad_records(selection)}")
    documents_by_split = {split: len(selected[split].tokens) for split in SPLITS}
    tokens_by_split = {split: int(selected[split].tokens.sum()) for split in SPLITS}
    print_notice(split_notice(config, origin, selection.keys, documents_by_split, tokens_by_split))
    return selected


def _check_bad_records(documents: Documents, selection: Selection) -> None:
    share = documents.config.skip_bad_records
    if selection.bad > share * selection.read:
        raise _Refused(
            f"corpus {documents.origin}: {_bad_records(selection)}; more than corpus.skip_bad_records ({share}) allows"
        )


def _bad_records(selection: Selection) -> str:
    more = "; ..." if selection.bad > len(selection.first_bad) else ""
    return f"{selection.bad:,} of {selection.read:,} records, as they are bad: {'; '.join(selection.first_bad)}{more}"


def _print_leftovers(folder: Path) -> None:
    """Prints which other folders of shards are unused, and the space that they take."""
    others = [each for each in folder.parent.iterdir() if each.is_dir() and each != folder]
    unfinished = [each for each in others if each.suffix == ".unfinished"]
    finished = [(each, read_json_or_empty(each / "manifest.json")) for each in others if each not in unfinished]
    stopped = [each for each in unfinished if not is_held(each.with_suffix(".lock"))]
    outdated = [each for each, manifest in finished if manifest.get("format_version") != FORMAT_VERSION]
    for found, what, unused in (
        (stopped, "other unfinished preparations", "nobody will resume"),
        (outdated, "token shards in a format that this version does not read", "no other version needs"),
    ):
        if found:
            size = sum(path.stat().st_size for each in found for path in each.rglob("*") if path.is_file())
            names = ", ".join(sorted(each.name for each in found))
            print_notice(f"{what} take {format_size(size)} in {folder.parent}: {names}; delete those that {unused}")


def _select(
    documents: Documents,
    tokenizer: Tokenizer,
    chunks: Path,
    workers: Workers,
    progress: bool,
    beam: Sequence[str] | None,
) -> Selection:
    """Returns the selection over the chunks of a corpus, once all of them up to the budget are stored."""
    config = documents.config
    selection = Selection(config.validation_share, config.tokens)
    if beam is None:
        stored = tokenise(documents, enumerate(documents.parts()), tokenizer, chunks, workers)
    else:
        stored = tokenise_over_beam(documents, tokenizer, chunks, selection, beam)
    processes = f" by {workers.count} processes" if workers.count > 1 else ""
    with _Progress(documents, processes, shown=progress) as bar, contextlib.closing(stored):
        for each in stored:
            selection.add(each)
            bar.update(each, selection)
            if selection.read >= _ENOUGH_RECORDS:
                _check_bad_records(documents, selection)
            if selection.is_full:
                break
    return selection


def _check_room(folder: Path, selected: dict[str, Selected], tokenizer: Tokenizer) -> None:
    needed = sum(int(each.tokens.sum(dtype=np.int64)) for each in selected.values())
    needed *= np.dtype(id_dtype(tokenizer.vocabulary_size)).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"token shards {folder}: they take up to {format_size(needed)}, but {format_size(free)} are free; free "
            "space there, and the same command resumes after the tokenising"
        )


def _write_index(folder: Path, selected: dict[str, Selected], validation_sources: np.ndarray) -> None:
    index = {}
    index["validation_sources"] = validation_sources
    for split in SPLITS:
        index[f"{split}_tokens"] = selected[split].tokens.astype(np.int64)
        index[f"{split}_text_bytes"] = selected[split].text_bytes.astype(np.int64)
    file = io.BytesIO()
    np.savez(file, **index)
    write_whole(folder / "index.npz", file.getvalue())


def _write_manifest(
    folder: Path,
    documents: Documents,
    tokenizer: Tokenizer,
    selection: Selection,
    selected: dict[str, Selected],
) -> None:
    manifest = Manifest(
        documents={split: len(selected[split].tokens) for split in SPLITS},
        tokens={split: int(selected[split].tokens.sum(dtype=np.int64)) for split in SPLITS},
        text_bytes={split: int(selected[split].text_bytes.sum(dtype=np.int64)) for split in SPLITS},
        duplicates=selection.duplicates,
        empty=selection.empty,
        vocabulary_size=tokenizer.vocabulary_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        origin=documents.origin,
        licence=documents.licence,
        commit=documents.commit,
        budget=documents.config.tokens,
        corpus_digest=documents.digest,
        source_digest=documents.source_digest,
        tokenizer_digest=tokenizer.digest,
        index_digest=hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest(),
        shard_digests={split: shard_digests(folder, split) for split in SPLITS},
        format_version=FORMAT_VERSION,
        keys=selection.keys,
        bad=selection.bad,
        first_bad=selection.first_bad,
    )
    write_whole(folder / "manifest.json", json.dumps(dataclasses.asdict(manifest), indent=2).encode())


def unfilled_budget(manifest: Manifest) -> str:
    """Returns a line on a corpus that holds fewer training tokens than its budget; '' for any other."""
    tokens = manifest.tokens["train"]
    # Validation may have taken a document that had filled the budget (`Selection.finish`).
    if tokens + manifest.tokens["validation"] >= manifest.budget:
        return ""
    return (
        f"corpus {manifest.origin} holds {tokens:,} tokens to train on, {tokens / manifest.budget:.1%} of the "
        f"{manifest.budget:,} of corpus.tokens: longer training repeats its documents"
    )


class _Progress:
    """A line with the tokens so far, their rate, share and remaining time, by the budget or by the source's bytes."""

    def __init__(self, documents: Documents, processes: str, *, shown: bool):
        self._documents = documents
        self._part = None
        self._finished_bytes = self._finished_text = self._text = self._tokens = 0
        self._bar = progress_bar(
            desc=f"tokenising {part_names(documents.config)[0]}{processes}",
            unit=" tokens",
            disable=not shown,
            total=documents.config.tokens or None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def update(self, stored: Stored, selection: Selection) -> None:
        """Shows what one more chunk adds."""
        self._text += int(stored.chunk.text_bytes.sum())
        self._tokens += int(stored.chunk.tokens.sum())
        # For a part in progress, in proportion to its text.
        ratio = self._finished_bytes / self._finished_text if self._finished_text else 1.0
        done = self._finished_bytes + min(stored.part.size, self._text * ratio)
        if stored.chunk.is_last:
            self._finished_bytes += stored.part.size
            self._finished_text += self._text
            self._text, done = 0, self._finished_bytes
        budget = self._documents.config.tokens
        tokens = selection.training_tokens if budget else self._tokens
        expected = round(tokens * max(1.0, self._documents.source_bytes / max(1, done)))
        if not budget:
            self._bar.total = expected
        elif self._finished_text:  # Else the text per byte is not known yet.
            self._bar.total = min(budget, expected)
        if stored.is_new:
            self._bar.update(tokens - self._bar.n)
        else:  # The rate is of the present work.
            self._bar.initial = self._bar.n = self._bar.last_print_n = tokens
