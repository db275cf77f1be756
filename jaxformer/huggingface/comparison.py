"""An exported folder in transformers, compared with its model: logits and token ids of real text."""

import contextlib
import dataclasses
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxformer.config import UserError, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.huggingface.reading import read_pretrained
from jaxformer.huggingface.tensors import as_state
from jaxformer.huggingface.tokenizer_json import ambiguity
from jaxformer.model import ModelConfig, abstract_model

# Compared rows, and the most tokens of each, enough to see every kind of difference.
ROWS, MOST_TOKENS = 4, 512
# Tolerance of the logits, times their standard deviation if that is above 1. Float32 rounds the logits of a trained
# baseline by 1e-5 (deviation 2.45), and of random models with large weights by up to 5e-5 (2). An epsilon of 1e-5
# instead of 1e-6 changes the baseline's by 0.017, and exact GELU instead of its tanh approximation by 0.013.
LIMIT = 2e-4
# Share of the lines of text that may have other ids if the tokenizer is ambiguous, as any document may; else none.
MAX_LINES = 0.01
# Characters of a document that are encoded as one text, since tokens may reach across the ends of lines.
MAX_CHARACTERS = 20_000
# Real text of every installation, code and prose.
_MODULES = ("difflib", "heapq", "statistics", "textwrap")
# Texts in which tokenizers differ.
_HARD_LINES = (
    "\t\tindented  twice \t ",
    "   runs  of    spaces     ",
    "<s>spelled</s> <unk> <|endoftext|> <0x0A><0xE2>",
    "\u2581 e\u0301 \u00e9 \ufb01 \u00bc \u4e2d\u6587 \u05d0\u05d1 \u00a0",
    "\U0001f9ea\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\r",
    "",
)


class Comparison(NamedTuple):
    """The result of a comparison with transformers."""

    rows: int
    row_tokens: int
    largest_difference: float
    """Of the logits."""
    deviation: float
    """Standard deviation of the logits."""
    lines: int
    documents: int
    """Texts that both tokenizers encoded: lines, and documents of many of them."""
    other_ids: int
    """How many of both have other ids in transformers."""
    other_texts: int
    """How many of those have run's ids that transformers decodes to another text."""
    versions: dict[str, str]

    def describe(self, dtype: str) -> str:
        """Returns the result in words.

        Args:
            dtype: of the folder's tensors.
        """
        with_what = " and ".join(f"{name} {version}" for name, version in self.versions.items())
        texts = f"{self.lines:,} lines and {self.documents:,} documents"
        tokens = (
            f"of {texts} the ids of {self.other_ids:,} differ, and the texts decoded from the run's ids of "
            f"{self.other_texts:,}"
            if self.other_ids or self.other_texts
            else f"the ids of {texts}, and the texts decoded from them, are equal"
        )
        rounding = (
            ""
            if dtype == "float32"
            else f" Both models had the parameters rounded to {dtype}: what that rounding changes is not in the figure."
        )
        return (
            f"With {with_what}, the logits of {self.rows} rows of {self.row_tokens} tokens of real text differ by at "
            f"most {self.largest_difference:.1e} (float32; their standard deviation is {self.deviation:.2f}), and "
            f"{tokens}.{rounding}"
        )


class NotCompared(NamedTuple):
    """Why there was no comparison with transformers."""

    reason: str

    def describe(self, dtype: str) -> str:
        """Returns this as a sentence.

        Args:
            dtype: of the folder's tensors.
        """
        rounded = "" if dtype == "float32" else f", rounded to {dtype}"
        return (
            f"The folder was not compared with the run in transformers, because {self.reason}; its tensors were read "
            f"back and are the run's{rounded}."
        )


NOT_INSTALLED = NotCompared("torch or transformers was not installed where it was written")


def compare_with_transformers(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, row_length: int
) -> Comparison | NotCompared:
    """Returns how far a folder's model in transformers is from ours, or why transformers or torch cannot be used.

    Both compute in float32, on the CPU, with the parameters of the folder, whatever their dtype.

    Args:
        folder: as of `writing.write_model`.
        model: the configuration.
        tokenizer: ours.
        row_length: tokens of a row in training.

    Raises:
        UserError: they differ.
    """
    try:
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except Exception as error:  # Of any type, also if they load a missing library.
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in ("torch", "transformers")
        return NOT_INSTALLED if is_missing else NotCompared(f"torch or transformers fails to import ({_reason(error)})")
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines, documents = _texts()
    row_tokens = min(row_length, max(MOST_TOKENS, 2 * model.sliding_window))
    tokens_BT = _rows(documents, tokenizer, row_tokens)
    with _quiet(transformers.logging), torch.no_grad():
        try:
            theirs = AutoTokenizer.from_pretrained(folder)
            loaded = AutoModelForCausalLM.from_pretrained(folder).float().eval()
        except ImportError as error:  # This version of transformers does not support this version of torch.
            return NotCompared(f"transformers {transformers.__version__} could not be used ({_reason(error)})")
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"transformers {transformers.__version__} cannot load it ({_reason(error)}); update it"
            ) from error
        other_ids, other_texts = _differing([*lines, *(text[:MAX_CHARACTERS] for text in documents)], tokenizer, theirs)
        theirs_BTV = loaded(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
    allowed = MAX_LINES * len(lines) + len(documents) if ambiguity(tokenizer) else 0
    require(
        len(other_ids) <= allowed,
        f"transformers {transformers.__version__} reads {len(other_ids):,} of {len(lines) + len(documents):,} texts as "
        f"other ids than the run's tokenizer, such as {other_ids[:1]!r:.200}; try another version",
    )
    ours_BTV = logits(model, read_pretrained(folder), tokens_BT)
    difference, deviation = float(np.abs(ours_BTV - theirs_BTV).max()), float(ours_BTV.std())
    require(
        difference <= LIMIT * max(1, deviation),
        f"transformers {transformers.__version__} computes logits that differ by {difference:.1e} from the run's "
        f"(their standard deviation is {deviation:.2f}); try another version",
    )
    texts = (len(lines), len(documents), len(other_ids), len(other_texts))
    return Comparison(len(tokens_BT), row_tokens, difference, deviation, *texts, versions)


def _reason(error: Exception) -> str:
    """Returns an error's message as one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


@contextlib.contextmanager
def _quiet(logging) -> Iterator[None]:
    """Hides transformers' messages below errors, and its progress bars."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _differing(texts: list[str], ours: Tokenizer, theirs) -> tuple[list[str], list[str]]:
    """Returns the texts that have other ids in their tokenizer, and those whose ids it decodes to another text."""
    ids_of_texts = [ids.tolist() for ids in ours.encode_batch(texts)]
    their_ids = theirs(texts)["input_ids"]
    # As ours decodes: without special tokens, such as the one for unknown characters.
    their_texts = theirs.batch_decode(ids_of_texts, skip_special_tokens=True)
    other_ids = [
        text for text, ids, found in zip(texts, ids_of_texts, their_ids, strict=True) if found != [ours.bos_id, *ids]
    ]
    other_texts = [
        text for text, ids, found in zip(texts, ids_of_texts, their_texts, strict=True) if found != ours.decode(ids)
    ]
    return other_ids, other_texts


def _texts() -> tuple[list[str], list[str]]:
    """Returns lines, each with its line break, and documents: of real text, and of text that is hard to encode.

    The hard text comes first in both.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents = ["\n".join(_HARD_LINES)]
    documents += [path.read_text(encoding="utf-8") for name in _MODULES if (path := folder / f"{name}.py").is_file()]
    return [f"{line}\n" for line in "\n".join(documents).split("\n")], documents


def _rows(documents: Sequence[str], tokenizer: Tokenizer, row_tokens: int) -> np.ndarray:
    """Returns int32 `tokens_BT` of all documents except the first as one text, each row with BOS before its part."""
    ids = np.array(tokenizer.encode("".join(f"{text}\n" for text in documents[1:])), np.int32)
    parts_BT = np.resize(ids, (ROWS, row_tokens - 1))  # Rows longer than the text repeat it.
    return np.concatenate([np.full((ROWS, 1), tokenizer.bos_id, np.int32), parts_BT], axis=1)


def logits(model: ModelConfig, params: dict[str, np.ndarray], tokens_BT: np.ndarray) -> np.ndarray:
    """Returns float32 `logits_BTV` of our model on the CPU, for as many ids as its tables have rows."""
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        model = dataclasses.replace(model, vocabulary_size=len(params["embedding"]))
        graphdef, abstract = nnx.split(abstract_model(model))
        state = as_state(params, abstract)
        positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)

        @jax.jit
        def forward(state, *inputs):
            return nnx.merge(graphdef, state)(*inputs)

        return np.asarray(forward(state, tokens_BT, np.ones_like(tokens_BT), positions_BT))
