"""Shows whether features stay the same size, at first and after some steps, whatever the width and the depth.

    python tools/coordinate_check.py [--experiment=baseline] [--widths=64,128,256,512] [--depths=4,8,16,32] [--steps=8]
        [--learning_rate=0.01] [--picture=coordinates.png]

Where initialisation and learning rates suit every size, all curves are flat (Yang et al. 2022, arXiv 2203.03466,
appendix D.1). Each size trains on one batch of random tokens at a constant learning rate: the experiment's, or another.
Widths have the experiment's depth, and depths its width; the width of a head, and the feed-forward's as a multiple of
the width, are the experiment's.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from versions import versions

from jaxformer.config import replace
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.experiment.resolution import load_experiment
from jaxformer.model import Residual, add
from jaxformer.plan.run_time import random_batch
from jaxformer.report.style import drawing, make_figure, save_png
from jaxformer.step import TrainState, train_step

# What a batch has. An update moves features by what the gradients of N random tokens have in common, 1 / sqrt(N) of
# their size, and by noise of 1 / sqrt(width): the power is that of large widths only if tokens are few.
ROWS, ROW_LENGTH, VOCABULARY = 1, 16, 512

# Shares of the depth behind which the stream is looked at, the same at every depth, and the logits.
_PLACES = {"1/4 of the blocks": "#56B4E9", "1/2 of the blocks": "#0072B2", "all blocks": "#1A1A1A", "logits": "#D55E00"}
_SHARES = dict(zip(_PLACES, (1 / 4, 1 / 2, 1), strict=False))


@dataclass(frozen=True)
class Measured(Residual):
    """The model's own residual rule, which reports the mean absolute feature of the stream after it."""

    residual: Residual | None = None

    def make(self, config, *, rngs, index):
        """Returns the module of the rule, in one that measures."""
        return _Measured(self, self.residual.make(config, rngs=rngs, index=index) if self.residual else add)

    def expand(self, x_ND):
        """Returns what the rule does."""
        return (self.residual or Residual()).expand(x_ND)

    def collapse(self, stream):
        """Returns what the rule does."""
        return (self.residual or Residual()).collapse(stream)


class _Measured(nnx.Module):
    def __init__(self, part: Measured, rule):
        self.part, self.rule = part, rule

    def __call__(self, stream, layer):
        stream, sums = self.rule(stream, layer)
        x_ND = jax.lax.stop_gradient(self.part.collapse(stream)).astype(jnp.float32)
        # A sum over tokens, all of which have the weight 1 here.
        return stream, sums.replace(metrics={**sums.metrics, "mean_abs": jnp.sum(jnp.mean(jnp.abs(x_ND), axis=-1))})


def main() -> None:
    """Trains every size, prints the mean absolute features and their growth, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="baseline")
    parser.add_argument("--widths", type=_numbers, default=[64, 128, 256, 512])
    parser.add_argument("--depths", type=_numbers, default=[4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, help="in place of the experiment's")
    parser.add_argument("--picture", type=Path, help="write a PNG to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    experiment = load_experiment(options.experiment)
    if options.learning_rate:
        experiment = replace(experiment, {"optimizer.learning_rate": options.learning_rate})
    model, measured = experiment.model, {}
    for axis, sizes in (("width", options.widths), ("depth", options.depths)):
        print(f"{axis:>6}  {'step':>4}  " + "  ".join(f"{place:>17}" for place in _PLACES))
        measured[axis] = {}
        for size in sizes:
            width, depth = (size, model.depth) if axis == "width" else (model.width, size)
            by_step = measured[axis][size] = features_by_step(sized(experiment, width, depth), options.steps)
            for step in (0, options.steps):
                values = "  ".join(f"{by_step[place][step]:17.4g}" for place in _PLACES)
                print(f"{size:6}  {step:4}  {values}", flush=True)
        powers = "  ".join(f"{power:17.2f}" for power in growth(measured[axis]).values())
        print(f"{'power of the ' + axis:>12}  {powers}", flush=True)
    if options.json:
        record = {"experiment": options.experiment, "versions": versions("jax", "jaxlib"), "mean_abs": measured}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.picture:
        with drawing():
            save_png(draw(measured, options.experiment), options.picture)


def sized(experiment: Experiment, width: int, depth: int) -> Experiment:
    """Returns an experiment at a width, in whole heads of its own width, and a depth, that measures its features."""
    model = experiment.model
    values = {
        "model": dataclasses.replace(
            model,
            width=width,
            depth=depth,
            heads=width // model.K,
            key_value_heads=model.G * (width // model.K) // model.heads,
            head_width=model.K,
            feed_forward_width=model.F * width // model.width,
            vocabulary_size=VOCABULARY,
            residual=Measured(model.residual),
            scan_unroll=1,
        ),
        "tokenizer.vocabulary_size": VOCABULARY,
        "optimizer.warmup_steps": 0,
        "optimizer.schedule": "cosine",
        "optimizer.final_learning_rate_share": 1.0,
    }
    return replace(experiment, values)


def features_by_step(experiment: Experiment, steps: int) -> dict[str, list[float]]:
    """Returns the mean absolute features of each of `_PLACES`, before the first step and after each."""
    state, batch = make_state(experiment, seed=0, token_count=VOCABULARY), random_batch(ROWS, ROW_LENGTH, VOCABULARY)
    step, logits, found = jax.jit(train_step, donate_argnums=0), jax.jit(mean_logit), {place: [] for place in _PLACES}
    for _ in range(steps + 1):
        found["logits"].append(float(logits(state, batch)))
        state, metrics = step(state, batch)
        by_layer = np.asarray(metrics["reported"]["feed_forward/mean_abs"])
        for place, share in _SHARES.items():
            found[place].append(float(by_layer[max(1, round(share * len(by_layer))) - 1]))
    return found


def mean_logit(state: TrainState, batch) -> jax.Array:
    """Returns the mean absolute logit of a batch."""
    model = state.model
    bounds = batch.document_starts_BT, batch.document_ends_BT
    return jnp.mean(jnp.abs(model.logits(model.features(batch.tokens_BT, batch.positions_BT, *bounds))))


def growth(measured: dict[int, dict[str, list[float]]]) -> dict[str, float]:
    """Returns, by place, the power of the size that the features after the last step grow with."""
    sizes = np.log(list(measured))
    return {
        place: float(np.polyfit(sizes, np.log([by_step[place][-1] for by_step in measured.values()]), 1)[0])
        for place in _PLACES
    }


def draw(measured: dict[str, dict[int, dict[str, list[float]]]], name: str):
    """Returns the features against width and depth: dashed at first, and after the last step."""
    figure = make_figure(9.5, 3.8)
    for axes, (axis, by_size) in zip(figure.subplots(1, 2, sharey=True), measured.items(), strict=True):
        powers = growth(by_size)
        for place, colour in _PLACES.items():
            for step, line in ((0, "--"), (-1, "-")):
                values = [by_step[place][step] for by_step in by_size.values()]
                label = f"{place}, {axis}^{powers[place]:.2f}" if step else None
                axes.plot(list(by_size), values, line, marker="o", ms=3, lw=1.3, color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel=axis, title=f"{name} by {axis}")
        axes.set_xticks(list(by_size), map(str, by_size), minor=False)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("mean absolute feature\n(dashed: before the first step)")
    return figure


def _numbers(text: str) -> Sequence[int]:
    return [int(each) for each in text.split(",")]


if __name__ == "__main__":
    main()
