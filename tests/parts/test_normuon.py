"""NorMuon against its algorithm in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.layers import Kernel, Scale, Table
from jaxformer.model import ModelConfig
from jaxformer.optimizer import OptimizerConfig, transform_of
from jaxformer.parts.normuon import NorMuon

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=0, muon_momentum=0.9)
MODEL = ModelConfig(vocabulary_size=9, width=8, depth=3, heads=2)
KINDS = {"kernel": (Kernel, (3, 8, 5)), "table": (Table, (7, 8)), "scale": (Scale, (3, 8))}


def gradient(step):
    rng = np.random.default_rng(step)
    return nnx.State({name: kind(jnp.float32(rng.standard_normal(shape))) for name, (kind, shape) in KINDS.items()})


def run(optimizer, steps):
    transformation = transform_of(optimizer, CONFIG, MODEL)
    state, update, directions = transformation.init(gradient(0)), jax.jit(transformation.update), []
    for step in range(steps):
        direction, state = update(gradient(step), state, gradient(0))
        directions.append(direction)
    return directions


def test_each_neuron_is_normalised_by_its_second_moment_and_the_whole_scaled_to_muons_size():
    ours, of_muon = run(NorMuon(b2=0.7), steps=3), run("muon", steps=3)
    second = np.zeros((3, 5))
    for direction, muon in zip(ours, of_muon, strict=True):
        # Of Muon's scale, which differs by a factor from the orthogonal matrix itself.
        orthogonal = np.float64(muon["kernel"][...]) / (0.2 * 8**0.5)
        for layer in range(3):
            second[layer] = 0.7 * second[layer] + 0.3 * np.mean(orthogonal[layer] ** 2, axis=0)
            normalised = orthogonal[layer] / (np.sqrt(second[layer]) + 1e-10)
            expected = 0.2 * np.sqrt(8 * 5) / np.linalg.norm(normalised) * normalised
            np.testing.assert_allclose(direction["kernel"][layer], expected, rtol=0, atol=1e-5)
        for name in ("table", "scale"):
            np.testing.assert_allclose(direction[name][...], muon[name][...], rtol=1e-6)
    sizes = [np.sqrt(np.mean(np.square(x["kernel"][...]), axis=1)) for x in (ours[0], of_muon[0])]
    # At first the moment is the update's own: every neuron moves by 0.2.
    np.testing.assert_allclose(sizes[0], 0.2, rtol=1e-5)
    assert np.max(sizes[1]) / np.min(sizes[1]) > 1.1
