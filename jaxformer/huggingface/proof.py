"""The proof that a folder is the model it was made of: both models' logits, and both tokenizers' ids, on real text."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxformer.config import UserError, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.huggingface.reading import read_pretrained
from jaxformer.huggingface.tensors import as_state
from jaxformer.model import ModelConfig, Transformer

# Rows that are compared, and the most tokens of each that it takes to see every kind of difference.
ROWS, MOST_TOKENS = 4, 512
# Of the logits, times their standard deviation where that is above 1. Float32 rounds those of a trained baseline by
# 1e-5 (deviation 2.45), and of random models with large weights by up to 5e-5 (2). An epsilon of 1e-5 for 1e-6 changes
# the baseline's by 0.017, and GELU by the error function for its tanh approximation by 0.013.
LIMIT = 2e-4
# Of lines of text, the share that another tokenizer may read otherwise: where two readings are equally likely.
MOST_LINES = 0.01
# Real text of every installation, code and prose.
_MODULES = ("difflib", "heapq", "statistics", "textwrap")
# What tokenizers differ in.
_HARD_LINES = (
    "\t\tindented  twice \t ",
    "   runs  of    spaces     ",
    "<s>spelled</s> <unk> <|endoftext|> <0x0A><0xE2>",
    "\u2581 e\u0301 \u00e9 \ufb01 \u00bc \u4e2d\u6587 \u05d0\u05d1 \u00a0",
    "\U0001f9ea\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\r",
    "",
)


class Proof(NamedTuple):
    """What a comparison with transformers found."""

    rows: int
    row_tokens: int
    largest_difference: float
    """Of the logits."""
    deviation: float
    """Standard deviation of the logits."""
    lines: int
    """Of text whose ids, and the text of those, were compared."""
    differing_lines: int
    versions: dict[str, str]

    def describe(self) -> str:
        """Returns the result in a sentence."""
        with_what = " and ".join(f"{name} {version}" for name, version in self.versions.items())
        tokens = (
            f"the ids of {self.lines:,} lines of text are equal"
            if not self.differing_lines
            else f"the ids of {self.differing_lines:,} of {self.lines:,} lines of text differ"
        )
        return (
            f"With {with_what}, the logits of {self.rows} rows of {self.row_tokens} tokens of real text differ by at "
            f"most {self.largest_difference:.1e} (float32; their standard deviation is {self.deviation:.2f}), and "
            f"{tokens}."
        )


def prove(folder: Path, model: ModelConfig, tokenizer: Tokenizer, row_length: int) -> Proof | None:
    """Returns how far a folder's model in transformers is from ours; None where that or torch is not installed.

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
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines = _lines()
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    except (ImportError, KeyError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"transformers {transformers.__version__} cannot load it ({reason:.200}); update it") from error
    differing = _differing(lines, tokenizer, theirs)
    require(
        len(differing) <= MOST_LINES * len(lines),
        f"transformers {transformers.__version__} reads {len(differing):,} of {len(lines):,} lines of text as other "
        f"ids than the run's tokenizer, such as {differing[:1]}; try another version",
    )
    row_tokens = min(row_length, max(MOST_TOKENS, 2 * model.sliding_window))
    tokens_BT = _rows(lines, tokenizer, row_tokens)
    with torch.no_grad():
        theirs_BTV = loaded(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
    ours_BTV = logits(model, read_pretrained(folder, model), tokens_BT)[..., : theirs_BTV.shape[-1]]
    difference, deviation = float(np.abs(ours_BTV - theirs_BTV).max()), float(ours_BTV.std())
    require(
        difference <= LIMIT * max(1, deviation),
        f"transformers {transformers.__version__} computes logits that differ by {difference:.1e} from the run's "
        f"(their standard deviation is {deviation:.2f}); try another version",
    )
    return Proof(len(tokens_BT), row_tokens, difference, deviation, len(lines), len(differing), versions)


def _differing(lines: list[str], ours: Tokenizer, theirs) -> list[str]:
    """Returns the lines whose ids, or the text of those, are not the same by both tokenizers."""
    ids_of_lines = [ids.tolist() for ids in ours.encode_batch(lines)]
    pairs = zip(theirs(lines)["input_ids"], theirs.batch_decode(ids_of_lines), ids_of_lines, lines, strict=True)
    return [
        line
        for their_ids, their_text, ids, line in pairs
        if their_ids != [ours.bos_id, *ids] or their_text != ours.decode(ids)
    ]


def _lines() -> list[str]:
    """Returns lines of real text, and of text that is hard to encode; each with the break that ends it."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for name in _MODULES if (path := folder / f"{name}.py").is_file()]
    return [f"{line}\n" for line in [*_HARD_LINES, *"\n".join(texts).split("\n")]]


def _rows(lines: Sequence[str], tokenizer: Tokenizer, row_tokens: int) -> np.ndarray:
    """Returns int32 `tokens_BT` of one text, each row with BOS before its part."""
    ids = np.array(tokenizer.encode("".join(lines[len(_HARD_LINES) :])), np.int32)
    parts_BT = np.resize(ids, (ROWS, row_tokens - 1))  # Rows that are longer than the text begin it anew.
    return np.concatenate([np.full((ROWS, 1), tokenizer.bos_id, np.int32), parts_BT], axis=1)


def logits(model: ModelConfig, params: dict[str, np.ndarray], tokens_BT: np.ndarray) -> np.ndarray:
    """Returns float32 `logits_BTV` of our model on the CPU."""
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(params=0))))
        state = as_state(abstract, params)
        positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)

        @jax.jit
        def forward(state, *inputs):
            return nnx.merge(graphdef, state)(*inputs)

        return np.asarray(forward(state, tokens_BT, np.ones_like(tokens_BT), positions_BT))
