"""A run as a model of lm-evaluation-harness, so that any of its tasks can be asked:

`python -m jaxformer.harness run --model jaxformer --model_args workdir=RUN,step=N --tasks lambada_openai`

It takes the arguments of `lm-eval`, and needs the extra `lm-eval`. As a library: `lm_eval.simple_evaluate(
model=JaxformerLM("RUN"), tasks=[...])`.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from jaxformer.cloze import Request, score
from jaxformer.config import UserError, require
from jaxformer.generate import generate
from jaxformer.trained import load_trained

try:
    import lm_eval.models  # noqa: F401  The harness finds its own models only if they are registered before another.
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    needed = "jaxformer.harness needs lm-evaluation-harness: pip install 'jaxformer[lm-eval]'"
    if __name__ == "__main__":
        print(needed, file=sys.stderr)
        sys.exit(2)
    raise ImportError(needed) from error

# Prompts are padded to a multiple of this many tokens, so that few shapes are compiled.
_PROMPT_BUCKET = 64


@register_model("jaxformer")
class JaxformerLM(TemplateLM):
    """The model of a run at a step, or at its newest; every text begins with BOS, as in training.

    Args:
        workdir: the run folder.
        step: of the checkpoint.
        batch_size: rows that are computed at once; 'auto' for the run's own choice.
        max_gen_toks: tokens to generate where a task does not say.
        max_batch_size, device: what the harness always gives; without effect, since the device is JAX's.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int | None = None,
        batch_size: int | str | None = None,
        max_gen_toks: int = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        is_automatic = batch_size is None or str(batch_size).startswith("auto")
        self.trained = load_trained(Path(workdir), None if step is None else int(step))
        self.max_length = self.trained.experiment.packing.row_length
        self.max_gen_toks = int(max_gen_toks)
        self._rows = self.trained.experiment.evaluation.rows_per_batch if is_automatic else int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.trained.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """BOS, before a text without a context."""
        return self.trained.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's digest, by which the harness caches requests."""
        return self.trained.tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Returns the ids of a text, behind BOS unless `add_special_tokens` is false."""
        ids = self.trained.tokenizer.encode(string)
        return ids if add_special_tokens is False else [self.prefix_token_id, *ids]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        encoded = []
        for (_, continuation), context_ids, ids in requests:
            require(
                0 < len(ids) <= self.max_length,
                f"a continuation of {len(ids)} tokens cannot be scored in rows of {self.max_length}: "
                f"{continuation!r:.60}",
            )
            tokens = np.array([*context_ids, *ids][-(self.max_length + 1) :], np.int32)
            encoded.append(Request(tokens, len(ids)))
        results = score(
            self.trained.state,
            encoded,
            self.trained.experiment.packing,
            rows_per_batch=self._rows,
            vocabulary_size=self.trained.tokenizer.vocabulary_size,
            label=None if disable_tqdm else "requests",
        )
        return list(zip(results.nats.tolist(), results.is_greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, in windows of a row that share one token."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            pairs = list(
                map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1))
            )
            windows += [((None, text), *pair) for pair in pairs]
            counts.append(len(pairs))
        nats = np.array([value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm)])
        return [float(part.sum()) for part in np.split(nats, np.cumsum(counts)[:-1])]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns the text that follows each context, up to a stop sequence, EOS or the number of tokens.

        Raises:
            UserError: the tokens to generate leave no room for a context in a row.
        """
        wanted = [self._generation(*request.args) for request in requests]
        texts = [""] * len(requests)
        for shape in sorted({each[1:4] for each in wanted}):
            alike = [number for number, each in enumerate(wanted) if each[1:4] == shape]
            for first in range(0, len(alike), self._rows):
                numbers = alike[first : first + self._rows]
                generated = self._generate([wanted[number][0] for number in numbers], *shape)
                for number, text in zip(numbers, generated, strict=True):
                    texts[number] = _until(text, wanted[number][4])
        return texts

    def _generation(self, context: str, options: dict) -> tuple[list[int], int, int, float, list[str]]:
        """Returns (prompt ids, their padded number, tokens to generate, temperature, stop sequences)."""
        length = int(options.get("max_gen_toks", options.get("max_new_tokens", self.max_gen_toks)))
        room = self.max_length - length
        require(
            length > 0 and room > 0,
            f"max_gen_toks ({length}) leaves no room for a context in a row of {self.max_length} tokens; "
            f"give a smaller one: --gen_kwargs max_gen_toks={self.max_length // 4}",
        )
        prompt = self.tok_encode(context)[-room:]
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample", False) else 0.0
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        padded = min(-(-len(prompt) // _PROMPT_BUCKET) * _PROMPT_BUCKET, room)
        return prompt, padded, length, temperature, until

    def _generate(self, prompts: list[list[int]], padded: int, length: int, temperature: float) -> Iterable[str]:
        tokenizer = self.trained.tokenizer
        prompt_BP = np.zeros((self._rows, padded), np.int32)
        lengths_B = np.ones(self._rows, np.int32)
        for row, prompt in enumerate(prompts):
            prompt_BP[row, : len(prompt)], lengths_B[row] = prompt, len(prompt)
        tokens_BS = generate(
            self.trained.state.model,
            prompt_BP,
            length=length,
            key=jax.random.key(0),
            temperature=temperature,
            prompt_lengths_B=lengths_B,
        )
        for row, prompt in zip(np.asarray(tokens_BS), prompts, strict=False):
            ids = row[len(prompt) : len(prompt) + length].tolist()
            ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
            yield tokenizer.decode([i for i in ids if i < tokenizer.vocabulary_size])


def _until(text: str, stops: list[str]) -> str:
    """Returns a text up to the first of some stop sequences."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
