"""A run as a model of lm-evaluation-harness: `lm_eval.simple_evaluate(model=JaxformerLM("RUN"), tasks=[...])`.

On the command line: `jaxformer harness`. It needs the extra `lm-eval`.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxformer.config import UserError, require
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.generate import Sampling, bucket, generate, text_after
from jaxformer.evaluation.loglikelihood import Request, score
from jaxformer.run.trained import load_trained

try:
    import lm_eval.models  # noqa: F401  The harness finds its own models only if they are registered before another.
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("the harness command needs lm-evaluation-harness: pip install 'jaxformer[lm-eval]'") from error


@register_model("jaxformer")
class JaxformerLM(TemplateLM):
    """The model of a run at a step, or at its newest; every text begins with BOS, as in training.

    Args:
        workdir: the run folder.
        step: of the checkpoint.
        batch_size: rows that are computed at once; 'auto' for the run's own choice.
        max_gen_toks: tokens to generate where a task does not say.
        seed: of what is sampled.
        max_batch_size, device: what the harness always gives; without effect, since the device is JAX's.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int | None = None,
        batch_size: int | str | None = None,
        max_gen_toks: int = 64,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        numbers = {"step": step, "batch_size": batch_size, "max_gen_toks": max_gen_toks, "seed": seed}
        if batch_size is None or str(batch_size).startswith("auto"):
            del numbers["batch_size"]
        for name, value in numbers.items():
            is_number = value is None or str(value).isdecimal()
            require(is_number, f"{name} ({value}) must be a whole number, not negative")
        self.trained = load_trained(str(workdir), None if step is None else int(step))
        self.max_length = self.trained.experiment.packing.row_length
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        self._rows = int(numbers.get("batch_size", self.trained.experiment.evaluation.rows_per_batch))
        require(self._rows >= 1, f"batch_size ({self._rows}) must be at least 1")

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
            if not 0 < len(ids) <= self.max_length:
                raise UserError(
                    f"a continuation of {len(ids)} tokens cannot be scored in rows of {self.max_length}: "
                    f"{continuation[:60]!r}"
                )
            tokens = np.array([*context_ids, *ids][-(self.max_length + 1) :], np.int32)
            encoded.append(Request(tokens, len(ids)))
        results = score(
            self.trained.state,
            encoded,
            self.trained.experiment.packing,
            rows_per_batch=self._rows,
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

    @fixed_options()
    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns the text that follows each context, up to a stop sequence, EOS or the number of tokens.

        It is sampled where a task asks for it, or for a temperature above 0, and the likeliest otherwise.

        Raises:
            UserError: the tokens to generate leave no room for a context in a row, or an option is not known or has no
                such value.
        """
        wanted = [self._generation(*request.args) for request in requests]
        # Rows of a batch share the options, and the length to which prompts are padded.
        groups = [(bucket(len(each.prompt)), each.tokens, dataclasses.astuple(each.sampling)) for each in wanted]
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generating", disable=disable_tqdm or None, leave=False) as bar:
            for group in sorted(set(groups)):
                alike = [number for number, each in enumerate(groups) if each == group]
                for first in range(0, len(alike), self._rows):
                    numbers = alike[first : first + self._rows]
                    key = jax.random.fold_in(jax.random.key(self.seed), numbers[0])
                    generated = self._generate([wanted[number] for number in numbers], key)
                    for number, text in zip(numbers, generated, strict=True):
                        texts[number] = _until(text, wanted[number].until)
                    bar.update(len(numbers))
        return texts

    def _generation(self, context: str, options: dict) -> "_Generation":
        options = dict(options)
        until = options.pop("until", None) or []
        length = int(options.pop("max_gen_toks", options.pop("max_new_tokens", self.max_gen_toks)))
        temperature, top_k = float(options.pop("temperature", None) or 0), int(options.pop("top_k", None) or 0)
        top_p, is_sampled = options.pop("top_p", None), options.pop("do_sample", None)
        temperature = 0.0 if is_sampled is False else temperature or float(is_sampled or 0)
        unknown = [name for name, value in options.items() if value is not None]
        require(
            not unknown or not temperature,
            f"cannot sample with {', '.join(unknown)}; with temperature, top_k and top_p only",
        )
        room = self.max_length - length
        require(
            length > 0 and room > 0,
            f"max_gen_toks ({length}) leaves no room for a context in a row of {self.max_length} tokens; "
            f"give a smaller one: --gen_kwargs max_gen_toks={self.max_length // 4}",
        )
        sampling = Sampling(temperature, top_k, 1.0 if top_p is None else float(top_p)) if temperature else _GREEDY
        return _Generation(
            self.tok_encode(context)[-room:], [until] if isinstance(until, str) else until, length, sampling
        )

    def _generate(self, wanted: "list[_Generation]", key: jax.Array) -> list[str]:
        tokenizer, prompts = self.trained.tokenizer, [each.prompt for each in wanted]
        generated = generate(
            self.trained.model,
            prompts + [[self.prefix_token_id]] * (self._rows - len(prompts)),  # Fewer rows would be another shape.
            tokens=wanted[0].tokens,
            key=key,
            sampling=wanted[0].sampling,
            eos_id=tokenizer.eos_id,
        )
        return [text_after(tokenizer, prompt, ids) for prompt, ids in zip(prompts, generated, strict=False)]


_GREEDY = Sampling(temperature=0)


class _Generation(NamedTuple):
    """What is to be generated."""

    prompt: list[int]
    until: list[str]
    tokens: int
    sampling: Sampling


def _until(text: str, stops: list[str]) -> str:
    """Returns a text up to the first of some stop sequences."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]
