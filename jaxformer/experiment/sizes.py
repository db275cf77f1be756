"""An experiment at other sizes: width in proportion to depth, and tokens in proportion to parameters.

Only the depth is chosen, as in nanochat (Karpathy 2025); all else follows from the scaled experiment. The size of its
own depth equals it but for the learning rate.
"""

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxformer.config import replace, require
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.change import differences, is_within
from jaxformer.experiment.experiment import Experiment, trained_tokens, training_flops
from jaxformer.flops import parameter_count

# The fields of an experiment that a size may change.
SIZE_FIELDS = (
    "model.width",
    "model.depth",
    "model.heads",
    "model.key_value_heads",
    "model.feed_forward_width",
    "training.steps",
    "training.rows_per_step",
    "training.phases",
    RATE,
    "optimizer.warmup_steps",
)

# Rows of a step grow with the tokens of the run to this power, as does the batch size beyond which more rows gain
# nothing (Bergsma et al. 2025, arXiv 2505.13738, measured 0.383).
_ROWS_BY_TOKENS = 0.383

# The best rate falls with the compute of the run to this power (DeepSeek-AI 2024, arXiv 2401.02954, equation 1).
_RATE_BY_COMPUTE = -0.125


class Rate(NamedTuple):
    """Learning rates as a power law of compute."""

    at_one: float
    """At the compute of the scaled experiment."""
    power: float

    def at(self, compute: float) -> float:
        """Returns the rate at a multiple of that compute, to two digits."""
        return float(f"{self.at_one * compute**self.power:.1e}")


def published_rate(base: Experiment) -> Rate:
    """Returns the rates at other sizes if nothing was tuned there, from the experiment's own.

    With a part as `model.scaling`, which scales what the rate multiplies, all sizes have its own rate.
    """
    return Rate(base.optimizer.learning_rate, _RATE_BY_COMPUTE if base.model.scaling is None else 0.0)


def fit_rate(base: Experiment, tuned: Mapping[int, float], *, tokens_per_parameter: float = 0.0) -> Rate:
    """Returns the power law of compute nearest to tuned rates, by least squares of their logarithms.

    Args:
        tuned: learning rate of each depth.
        tokens_per_parameter: as of `at_size`, at which they were tuned.

    Raises:
        UserError: there are fewer than two depths.
    """
    require(len(tuned) > 1, "rates of one size show no trend: give those of two or more")
    sizes = [at_size(base, depth, tokens_per_parameter=tokens_per_parameter) for depth in tuned]
    compute = np.log([compute_of(base, size) for size in sizes])
    power, at_one = np.polyfit(compute, np.log([*tuned.values()]), 1)
    return Rate(float(np.exp(at_one)), float(power))


def at_size(base: Experiment, depth: int, *, tokens_per_parameter: float = 0.0) -> dict[str, Any]:
    """Returns the values of an experiment, by dotted path, that change at another depth and its own learning rate.

    Args:
        tokens_per_parameter: of the training; 0 for as many as the experiment has.

    Raises:
        UserError: the model cannot be scaled to that depth.
    """
    model, training = base.model, base.training
    ratio = depth / model.depth
    step = model.heads // model.G if model.key_value_heads else 1
    heads = max(1, round(model.heads * ratio / step)) * step
    values: dict[str, Any] = {
        "model.depth": depth,
        "model.heads": heads,
        "model.width": heads * (model.width // model.heads),
    }
    if model.key_value_heads:
        values["model.key_value_heads"] = heads // step
    if model.feed_forward_width:
        values["model.feed_forward_width"] = max(8, 8 * round(model.feed_forward_width * heads / model.heads / 8))
    before, own = parameter_count(model), trained_tokens(base)
    tokens = (tokens_per_parameter or own / before) * parameter_count(replace(base, values).model)
    more = (tokens / own) ** _ROWS_BY_TOKENS
    values["training.rows_per_step"] = rows = max(1, round(training.rows_per_step * more))
    phases = [dataclasses.replace(one, rows_per_step=round(one.rows_per_step * more)) for one in training.phases]
    if phases:
        values["training.phases"] = tuple(phases)
    longer = tokens / own * training.rows_per_step / rows
    values["training.steps"] = max(1, round(training.steps * longer))
    values["optimizer.warmup_steps"] = round(base.optimizer.warmup_steps * longer)
    # Upwards, so that there are no more of them than the experiment has.
    values["evaluation.every_steps"] = math.ceil(base.evaluation.every_steps * longer)
    values["checkpoint.every_steps"] = math.ceil(base.checkpoint.every_steps * longer)
    return values


def compute_of(base: Experiment, values: Mapping[str, Any]) -> float:
    """Returns the training compute of a size as a multiple of the scaled experiment's."""
    return training_flops(replace(base, values)) / training_flops(base)


def is_another_size(one: Experiment, other: Experiment) -> bool:
    """Returns whether two experiments differ in their size, and in nothing else that decides what they learn.

    A different learning rate alone is no different size.
    """
    paths = differences(one, other)
    is_size = any(path not in (RATE, "optimizer.warmup_steps") for path in paths)
    return is_size and all(any(is_within(path, field) for field in SIZE_FIELDS) for path in paths)


# Place of the values in the text of a file.
_LINES = "<values>"


def size_file(base: str, values: Mapping[str, Any], command: str) -> str:
    """Returns the file of an experiment at another size.

    Args:
        base: the name of the scaled experiment.
        values: by dotted path, as of `at_size`, and its learning rate.
        command: that wrote it.
    """
    lines = "\n".join(f"            {path!r}: {value!r}," for path, value in values.items()).replace("'", '"')
    imports = "\nfrom jaxformer.data.phases import Phase" if "training.phases" in values else ""
    text = f'''
"""{base} at depth {values["model.depth"]}.

`{command}` made it.
"""

import dataclasses
{imports}
from jaxformer.experiment import load_experiment, replace

EXPERIMENT = dataclasses.replace(
    replace(
        load_experiment("{base}"),
        {{
{_LINES}
        }},
    ),
    question="What does {base} learn at depth {values["model.depth"]}?",
)
'''
    return textwrap.dedent(text).lstrip().replace(_LINES, lines)
