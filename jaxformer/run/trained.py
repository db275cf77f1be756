"""A trained model, from its run folder alone."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.dispatch import AttentionConfig, choose_implementation, implementation_from
from jaxformer.checkpoint.train_state import open_checkpoints, restore_params
from jaxformer.config import UserError, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.device import choose_device
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.generate import (
    Sampling,
    encode_prompt,
    generate,
    next_token_logits,
    require_whole,
    stream_text,
    text_after,
)
from jaxformer.evaluation.loglikelihood import encode, score
from jaxformer.evaluation.result_files import describe_validation
from jaxformer.experiment.experiment import Experiment, attention_shape, make_state
from jaxformer.flops import parameter_count
from jaxformer.host.paths import expanded
from jaxformer.model import Transformer
from jaxformer.run.folder import load_run, run_tokenizer
from jaxformer.run.metrics import read_metrics
from jaxformer.skip_steps import init_guard
from jaxformer.step import TrainState

# Tokens that are written where no number is given.
DEFAULT_TOKENS = 200

# So often a step is looked for anew where the run has saved others while it was read.
_ATTEMPTS = 10


class LogLikelihood(NamedTuple):
    """What a model makes of a continuation."""

    nats: float
    """Sum of the log-probabilities of its tokens."""
    is_greedy: bool
    """Whether each of them is the likeliest after those before it."""


@dataclass(frozen=True, repr=False)
class Trained:
    """A model at a step of its run."""

    workdir: Path
    experiment: Experiment
    record: dict
    """The run's `config.json`."""
    step: int
    state: TrainState
    """State with the parameters of the step, and no optimizer state."""
    tokenizer: Tokenizer

    def __repr__(self) -> str:
        model, tokenizer, steps = self.experiment.model, self.tokenizer, self.experiment.training.steps
        validation = self.validation()
        return "\n".join(
            [
                f"{self.experiment.name}, seed {self.record['seed']}, step {self.step:,} of {steps:,}",
                f"folder      {self.workdir}",
                f"model       {parameter_count(model):,} parameters: {model.depth} blocks, width {model.width}, "
                f"{model.heads} heads",
                f"rows        {self.experiment.packing.row_length:,} tokens",
                f"tokenizer   {tokenizer.vocabulary_size:,} tokens, {tokenizer.digest[:12]}",
                f"validation  {describe_validation(validation) if validation else 'none at this step'}",
            ]
        )

    @functools.cached_property
    def model(self) -> Transformer:
        """The model, its kernels in the compute dtype."""
        return self.state.model

    def validation(self) -> dict[str, float]:
        """Returns what the run measured at this step, such as 'loss' and 'bits_per_byte'; nothing where it did not."""
        lines = [line for line in read_metrics(self.workdir) if line["step"] == self.step and "validation/loss" in line]
        names = {name: name.removeprefix("validation/") for line in lines for name in line}
        return {short: float(lines[-1][name]) for name, short in names.items() if name != short}

    def stream(
        self,
        prompt: str = "",
        *,
        tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yields what the model writes after a prompt while it is written, in whole characters; see `generate`."""
        ids = encode_prompt(self.tokenizer, prompt)
        sampling = Sampling(temperature, top_k, top_p)
        return stream_text(
            self.model, self.tokenizer, ids, tokens=self._length(ids, tokens), key=_key(seed), sampling=sampling
        )

    @overload
    def generate(
        self,
        prompt: str = "",
        *,
        count: None = None,
        tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = 0,
        label: str | None = None,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str = "",
        *,
        count: int,
        tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = 0,
        label: str | None = None,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str = "",
        *,
        count: int | None = None,
        tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = 0,
        label: str | None = None,
    ) -> str | list[str]:
        """Returns what the model writes after a prompt, up to its EOS, without the prompt.

        Args:
            prompt: the beginning of a document; '' for a text of its own.
            count: how many texts to return, as a list; the first is what is returned for None.
            tokens: the most to write; None for 200, or as many as learned positions leave room for.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: draws among the k likeliest tokens; 0 among all.
            top_p: draws among the fewest likeliest tokens whose probabilities sum to p; 1 among all.
            seed: of the random draws; the same seed gives the same text.
            label: of a progress bar; None shows none.

        Raises:
            UserError: an argument has no such value, or the prompt is longer than the positions that were learned, or
                no Unicode text.
        """
        require_whole(count=1 if count is None else count)
        require(count is None or count >= 1, f"count ({count}) must be at least 1")
        ids = encode_prompt(self.tokenizer, prompt)
        written = generate(
            self.model,
            [ids] * (count or 1),
            tokens=self._length(ids, tokens),
            key=_key(seed),
            sampling=Sampling(temperature, top_k, top_p),
            eos_id=self.tokenizer.eos_id,
            label=label,
        )
        texts = [text_after(self.tokenizer, ids, each) for each in written]
        return texts[0] if count is None else texts

    def logits(self, text: str) -> np.ndarray:
        """Returns the logits of the next token after BOS and after each token of a text, float32 (T, V).

        V is the number of the tokenizer's ids.

        Raises:
            UserError: the text is longer than the positions that were learned, or no Unicode text.
        """
        return next_token_logits(self.model, encode_prompt(self.tokenizer, text))

    @fixed_options()
    def log_likelihood(self, context: str, continuation: str) -> LogLikelihood:
        """Returns the log-likelihood of a continuation of a context, which may be '', as tasks are scored.

        White space that ends the context is scored too, for it may be of the continuation's first token.

        Raises:
            UserError: the continuation has no token, or more than a row.
        """
        packing = self.experiment.packing
        scores = score(
            self.state,
            encode([(context, continuation)], self.tokenizer, packing.row_length).requests,
            packing,
            rows_per_batch=1,
        )
        return LogLikelihood(float(scores.nats[0]), bool(scores.is_greedy[0]))

    def _length(self, prompt: list[int], tokens: int | None) -> int:
        """Returns how many tokens to write after a prompt."""
        limit = self.experiment.model.learned_positions
        room = limit - len(prompt) if limit else DEFAULT_TOKENS
        require(room > 0, f"a prompt of {len(prompt)} tokens leaves no room in the {limit} positions that were learned")
        return min(DEFAULT_TOKENS, room) if tokens is None else tokens


@fixed_options()
def _key(seed: int) -> jax.Array:
    require_whole(seed=seed)
    require(0 <= seed < 1 << 32, f"seed ({seed}) must be at least 0 and below 2**32")
    return jax.random.key(seed)


def load_trained(workdir: str | Path, step: int | None = None) -> Trained:
    """Returns the model of a run folder at a step, or at the newest that is saved.

    Memory for the parameters is all that it takes; neither the corpus nor its shards are read.

    Raises:
        UserError: there is no such run or step, or the checkpoint is damaged.
    """
    workdir = expanded(workdir) if isinstance(workdir, str) else workdir
    experiment, record = load_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    device = choose_device("auto")  # It need not be evaluated where it was trained.
    if device.device_kind == record["device"]:
        attention = implementation_from(record["attention"])
    else:
        attention = choose_implementation(AttentionConfig(), attention_shape(experiment)).implementation
    token_count = tokenizer.vocabulary_size
    state = jax.eval_shape(lambda: make_state(experiment, record["seed"], attention, token_count=token_count))
    # Where it lies here: a run on several devices has saved where its parts lay there.
    here = jax.sharding.SingleDeviceSharding(device)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state.params)
    step, params = _restore(workdir / "checkpoints", params, step)
    state = state.replace(step=jnp.asarray(step, jnp.int32), params=params, opt_state=None, guard=init_guard())
    return Trained(workdir, experiment, record, step, state, tokenizer)


def _restore(folder: Path, params: nnx.State, step: int | None) -> tuple[int, nnx.State]:
    """Returns a step, or the newest, and its parameters; a run that goes on may delete what is being read."""
    attempts = 0
    while True:
        attempts += 1
        with open_checkpoints(folder) as checkpoints:
            steps = checkpoints.steps()
            chosen = max(steps, default=None) if step is None else step
            if chosen is None or chosen not in steps:
                wanted = "" if step is None else f" of step {step}"
                raise UserError(f"no checkpoint{wanted} in {folder}; there are {steps or 'none'}")
            try:
                return chosen, restore_params(checkpoints, params, chosen)
            except UserError:
                with open_checkpoints(folder) as now:
                    if now.steps() == steps or attempts == _ATTEMPTS:
                        raise
