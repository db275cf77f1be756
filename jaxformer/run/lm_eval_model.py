"""A run as a model of lm-evaluation-harness: `lm_eval.simple_evaluate(model=JaxformerLM("RUN"), tasks=[...])`.

On the command line: `jaxformer harness`. It needs the extra `lm-eval`.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.evaluation.decoding import bucket
from jaxformer.evaluation.generate import encode_text, generate_texts
from jaxformer.evaluation.loglikelihood import Request, score
from jaxformer.evaluation.sampling import Sampling
from jaxformer.experiment.files import load_parts
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import expanded
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
        max_gen_toks: tokens to generate where a task gives no number.
        seed: of the random draws.
        code: Python file of your parts that the run was made with, if it is unknown here.
        max_batch_size, device: always passed by the harness; without effect, since the device is JAX's.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int | None = None,
        batch_size: int | str | None = None,
        max_gen_toks: int = 64,
        seed: int = 0,
        code: str | None = None,
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
        if code:
            load_parts(expanded(code))
        self.trained = load_trained(str(workdir), None if step is None else int(step))
        self.max_length = self.trained.experiment.packing.row_length
        self.max_gen_toks, self.seed = int(max_gen_toks), Sampling(seed=int(seed)).seed  # Within its bounds.
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
        """The tokenizer's digest, the harness's key for cached requests."""
        return self.trained.tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Returns the ids of a text, behind BOS unless `add_special_tokens` is false."""
        ids = encode_text(self.trained.tokenizer, string)
        return ids[1:] if add_special_tokens is False else ids

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

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns the text that follows each context, up to a stop sequence, EOS or the number of tokens.

        It is sampled if a task says so, or gives a temperature above 0, else greedy.

        Raises:
            UserError: the tokens to generate leave no room for a context in a row, or an option is unknown or has an
                invalid value.
        """
        wanted = [self._generation(*request.args) for request in requests]
        alike = {}  # Rows of a batch share the options, and the length to which prompts are padded.
        for number, each in enumerate(wanted):
            alike.setdefault((bucket(len(each.prompt)), each.sampling), []).append(number)
        rows, texts = self._rows, [""] * len(requests)
        batches = [numbers[i : i + rows] for numbers in alike.values() for i in range(0, len(numbers), rows)]
        with progress_bar(total=len(requests), desc="generating", disable=disable_tqdm) as bar:
            for numbers in batches:
                prompts = [wanted[number].prompt for number in numbers]
                prompts += [[self.prefix_token_id]] * (rows - len(prompts))  # Fewer rows would change the shape.
                sampling = dataclasses.replace(wanted[numbers[0]].sampling, seed=self.seed).reseeded(numbers[0])
                stops = [wanted[number].stops for number in numbers]
                generated = generate_texts(self.trained.model, self.trained.tokenizer, prompts, sampling, stops=stops)
                for number, text in zip(numbers, generated, strict=True):
                    texts[number] = text
                bar.update(len(numbers))
        return texts

    def _generation(self, context: str, options: dict) -> "_Generation":
        options = {name: value for name, value in options.items() if value is not None}
        stops = options.pop("until", [])
        tokens = int(options.pop("max_gen_toks", options.pop("max_new_tokens", self.max_gen_toks)))
        room = self.max_length - tokens
        require(
            room > 0,
            f"max_gen_toks ({tokens}) leaves no room for a context in a row of {self.max_length} tokens; "
            f"give a smaller one: --gen_kwargs max_gen_toks={self.max_length // 4}",
        )
        return _Generation(
            self.tok_encode(context)[-room:], [stops] if isinstance(stops, str) else stops, _sampling(tokens, options)
        )


class _Generation(NamedTuple):
    """A text to generate."""

    prompt: list[int]
    stops: list[str]
    sampling: Sampling


def _sampling(tokens: int, options: dict) -> Sampling:
    """Returns how tokens are drawn, from a task's options, which are those of transformers' `generate`."""
    is_sampled = options.pop("do_sample", None)
    temperature = float(options.pop("temperature", 1 if is_sampled else 0))
    if is_sampled is False or temperature == 0:
        return Sampling(tokens=tokens, temperature=0)
    top_k, top_p = int(options.pop("top_k", Sampling.top_k)), float(options.pop("top_p", Sampling.top_p))
    require(not options, f"cannot sample with {', '.join(options)}; with temperature, top_k and top_p only")
    return Sampling(tokens, temperature, top_k, top_p)
