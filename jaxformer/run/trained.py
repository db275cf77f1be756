"""A trained model, from its run folder alone."""

import functools
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.dispatch import AttentionConfig, choose_implementation, implementation_from
from jaxformer.checkpoint.train_state import open_checkpoints, restore_params
from jaxformer.config import UserError, replace, require, require_unicode
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.device import choose_device
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.decoding import next_token_logits
from jaxformer.evaluation.generate import encode_text, stream_text
from jaxformer.evaluation.loglikelihood import encode, score
from jaxformer.evaluation.result_files import describe_validation
from jaxformer.evaluation.sampling import Sampling
from jaxformer.experiment.experiment import Experiment, attention_shape, make_state
from jaxformer.flops import parameter_count
from jaxformer.host.paths import on_this_machine
from jaxformer.model import Transformer
from jaxformer.run.folder import load_run, run_tokenizer
from jaxformer.run.metrics import read_metrics
from jaxformer.skip_steps import init_guard
from jaxformer.step import TrainState

# How often the newest step is looked up again if a running training deletes it while it is read.
_ATTEMPTS = 10


class LogLikelihood(NamedTuple):
    """Log-likelihood of a continuation under the model."""

    nats: float
    """Sum of the log-probabilities of its tokens."""
    is_greedy: bool
    """Whether each of them is the likeliest next token."""


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
        """Returns the run's validation at this step, such as 'loss' and 'bits_per_byte'; empty without one."""
        lines = [line for line in read_metrics(self.workdir) if line["step"] == self.step and "validation/loss" in line]
        names = {name: name.removeprefix("validation/") for line in lines for name in line}
        return {short: float(lines[-1][name]) for name, short in names.items() if name != short}

    def stream(self, prompt: str = "", sampling: Sampling = Sampling()) -> Iterator[str]:
        """Yields the text of `generate` as it is generated, in whole characters."""
        return stream_text(self.model, self.tokenizer, encode_text(self.tokenizer, prompt), sampling)

    def generate(self, prompt: str = "", sampling: Sampling = Sampling()) -> str:
        """Returns the text that follows a prompt, up to EOS, without the prompt.

        Args:
            prompt: the beginning of a document; '' for a new text.
            sampling: how tokens are drawn, and how many.

        Raises:
            UserError: the prompt is not Unicode or leaves no room for a token, or top_k exceeds the vocabulary.
        """
        return "".join(self.stream(prompt, sampling))

    def logits(self, text: str) -> np.ndarray:
        """Returns the logits of the next token after BOS and after each token of a text, float32 (T, V).

        V is the number of the tokenizer's ids.

        Raises:
            UserError: the text is not Unicode, or has more tokens than the model takes.
        """
        return next_token_logits(self.model, encode_text(self.tokenizer, text))

    @fixed_options()
    def log_likelihood(self, context: str, continuation: str) -> LogLikelihood:
        """Returns the log-likelihood of a continuation of a context, which may be '', as in tasks.

        White space at the end of the context is scored too, since it may belong to the continuation's first token.

        Raises:
            UserError: a text is not Unicode, the continuation has no token, or the two do not fit in a row.
        """
        require_unicode(context + continuation)
        packing = self.experiment.packing
        encoded = encode([(context, continuation)], self.tokenizer, packing.row_length)
        require(
            not encoded.is_truncated[0],
            f"context and continuation have more than {packing.row_length} tokens, the length of the rows that are "
            "scored; shorten the context",
        )
        scores = score(self.state, encoded.requests, packing, rows_per_batch=1)
        return LogLikelihood(float(scores.nats[0]), bool(scores.is_greedy[0]))


def load_trained(workdir: str | Path, step: int | None = None) -> Trained:
    """Returns the model of a run folder at a step, or at the newest saved one.

    It only needs memory for the parameters; neither the corpus nor its shards are read.

    Raises:
        UserError: there is no such run or step, or the checkpoint is damaged.
    """
    is_step = step is None or (isinstance(step, numbers.Integral) and not isinstance(step, bool))
    require(is_step, f"step ({step!r}) must be a whole number, as in load_trained(run, step=10)")
    workdir = on_this_machine(workdir)
    experiment, record = load_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    device = choose_device("auto")  # It may be evaluated on another device than trained.
    if device.device_kind == record["device"]:
        attention = implementation_from(record["attention"])
    else:
        attention = choose_implementation(AttentionConfig(), attention_shape(experiment)).implementation
        experiment = replace(experiment, {"model.loss": "auto", "model.scan_unroll": 0})
    token_count = tokenizer.vocabulary_size
    state = jax.eval_shape(lambda: make_state(experiment, record["seed"], attention, token_count=token_count))
    # Placed here: a run on several devices has saved their placement there.
    here = jax.sharding.SingleDeviceSharding(device)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state.params)
    step, params = _restore(workdir / "checkpoints", params, None if step is None else int(step))
    state = state.replace(step=jnp.asarray(step, jnp.int32), params=params, opt_state=None, guard=init_guard())
    return Trained(workdir, experiment, record, step, state, tokenizer)


def _restore(folder: Path, params: nnx.State, step: int | None) -> tuple[int, nnx.State]:
    """Returns a step, or the newest, and its parameters; a running training may delete what is being read."""
    attempts = 0
    while True:
        attempts += 1
        try:
            opened = open_checkpoints(folder)
        except UserError as error:  # Listed, but deleted before it was read.
            if isinstance(error.__cause__, FileNotFoundError) and folder.is_dir() and attempts < _ATTEMPTS:
                continue
            raise
        with opened as checkpoints:
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
