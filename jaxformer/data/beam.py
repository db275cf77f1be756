"""Preparation by the workers of an Apache Beam pipeline, which may be on many machines."""

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxformer.config import UserError
from jaxformer.data.chunks import Stored, stored_chunks, tokenise
from jaxformer.data.corpus import Documents
from jaxformer.data.kinds import CorpusPart
from jaxformer.data.selection import Selection
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.workers import Workers

# The most tokens per byte of text, before anything is tokenised.
_TOKENS_PER_BYTE = 0.25

T = TypeVar("T")


def tokenise_over_beam(
    documents: Documents, tokenizer: Tokenizer, chunks: Path, selection: Selection, options: Sequence[str]
) -> Generator[Stored, None, None]:
    """Yields the chunks of a corpus in reading order, made by the workers of a Beam pipeline.

    With a budget, pipelines run one after another, each for as many parts as the rest of the budget probably needs.
    """
    left = enumerate(documents.parts())
    text_bytes = tokens = 0
    while True:
        wave, expected = [], 0.0
        rate = tokens / text_bytes if text_bytes else _TOKENS_PER_BYTE
        wanted = documents.config.tokens - selection.training_tokens if documents.config.tokens else np.inf
        while expected < wanted and (numbered_part := next(left, None)):
            wave.append(numbered_part)
            expected += numbered_part[1].size * rate
        if not wave:
            return
        run_pipeline(partial(_tokenise_part, documents, tokenizer, chunks), wave, options)
        for number, part in wave:
            stored = stored_chunks(part, number, chunks)
            if not (stored and stored[-1].chunk.is_last):
                raise UserError(
                    f"token shards {chunks}: Beam's workers left no chunks there; they need the same folder"
                )
            text_bytes += part.size
            tokens += sum(int(each.chunk.tokens.sum()) for each in stored)
            yield from stored


def _tokenise_part(
    documents: Documents, tokenizer: Tokenizer, chunks: Path, numbered_part: tuple[int, CorpusPart]
) -> None:
    """Stores the chunks of a part; run by a worker of a pipeline, one of many on its machine."""
    for _ in tokenise(documents, [numbered_part], tokenizer, chunks, Workers(1)):
        pass


def run_pipeline(function: Callable[[T], object], arguments: Sequence[T], options: Sequence[str]) -> None:
    """Calls a function with each argument in the workers of a pipeline; its results are dropped.

    Args:
        options: of the pipeline, as on a command line.

    Raises:
        UserError: as of `pipeline_options`; or the function raised an error, or the pipeline failed.
    """
    parsed = pipeline_options(options)
    import apache_beam as beam

    with _in_one_line(), beam.Pipeline(options=parsed) as pipeline:
        # In tuples: Beam turns a named tuple into a table row.
        numbered = pipeline | beam.Create(list(enumerate(arguments))) | beam.Reshuffle()
        _ = numbered | beam.MapTuple(lambda _, argument: function(argument))


def pipeline_options(beam: Sequence[str]):
    """Returns the options of a Beam pipeline.

    Raises:
        UserError: Beam is not installed, or does not know the options or the runner.
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
def _in_one_line() -> Iterator[None]:
    """Raises the error of a Beam pipeline, which holds its worker's traceback, as a `UserError` of one line."""
    try:
        yield
    except Exception as error:  # Each runner raises kinds of its own.
        text = str(error).partition(" [while running")[0]
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        theirs = [line.partition("UserError: ")[2] for line in lines if "UserError: " in line]
        raise UserError(f"Apache Beam: {(theirs or lines)[-1]}") from error
