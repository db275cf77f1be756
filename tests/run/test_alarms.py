"""Warnings about a run: rules by example, and what they must not warn of."""

import random

import numpy as np
import pytest

from jaxformer.run.alarms import find_alarms, find_training_rise, find_validation_rise, is_repetitive
from jaxformer.run.metrics import Series

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

CODE = (
    "class Reader:\n    def __init__(self, path, mode='r'):\n        self.path = path\n        self.mode = mode\n\n"
    "    def read(self, size=-1):\n        with open(self.path, self.mode) as file:\n"
    "            return file.read(size)\n"
)


def series(values, every=1):
    return Series(np.arange(1, len(values) + 1) * every, np.asarray(values, float))


def falling(steps, seed=0):
    """Losses as of a run that goes well."""
    return 2 + 6 / np.arange(1, steps + 1) ** 0.4 + 0.15 * np.random.default_rng(seed).standard_normal(steps)


@pytest.mark.parametrize(
    "text",
    [
        "the " * 200,
        "\n" * 300,
        " \n" * 300,
        "return self.value\n\n" * 20,
        "8" * 250,
        CODE + "a, b, " * 200,
        "同じ" * 100,
    ],
)
def test_text_that_repeats_a_short_piece_is_repetitive(text):
    assert is_repetitive(text)


def test_code_random_text_and_a_short_text_are_not():
    rng = random.Random(0)
    untrained = "".join(rng.choices(["ing", "\n", "self", " (", "0x", "é", "def ", "\ufffd", "qu", "==", "  "], k=200))
    indented = (60 * " ").join(CODE.split())
    for text in (CODE, indented, CODE + "x = 1\n" * 8, untrained, "", "a" * 100, "the of to and in a is " * 9 + CODE):
        assert not is_repetitive(text)


@pytest.mark.parametrize(
    ("losses", "risen"),
    [
        ([4.0, 3.0, 2.5], None),
        ([4.0, 2.5, 2.549], None),
        ([4.0, 2.5, 3.0, 2.6], (2.6, 2.5, 20)),
        ([4.0, 2.5, np.nan], (np.nan, 2.5, 20)),
        ([np.nan, np.inf, 2.5], None),
        ([4.0, np.nan, 4.2], (4.2, 4.0, 10)),
        ([9.0], None),
        ([], None),
    ],
)
def test_validation_loss_that_lies_two_percent_above_its_lowest_has_risen(losses, risen):
    found = find_validation_rise(series(losses, every=10))
    assert found is risen is None or tuple(found) == pytest.approx(risen, nan_ok=True)


@pytest.mark.parametrize("steps", [60, 99, 100, 400, 5000])
def test_losses_of_a_run_that_goes_well_have_not_risen(steps):
    for seed in range(20):
        assert find_training_rise(series(falling(steps, seed))) is None


def test_training_losses_that_rise_for_a_window_have_risen_and_a_spike_has_not():
    losses = falling(1000)
    spike = losses.copy()
    spike[980:985] += 2
    assert find_training_rise(series(spike)) is None
    drift = losses.copy()
    drift[900:] += 0.2
    found = find_training_rise(series(drift))
    assert found.step == 900 and 0.03 < found.latest / found.lowest - 1 < 0.1
    noise = 3 + 1.5 * np.random.default_rng(3).standard_normal(1000)
    means = noise.reshape(-1, 100).mean(axis=1)
    assert means[-1] > 1.03 * means[:-1].min()
    assert find_training_rise(series(noise)) is None, "windows scatter as much"
    gaps = drift.copy()
    gaps[::7] = np.nan
    assert find_training_rise(series(gaps)) is not None


def test_each_alarm_is_a_line_that_names_the_way_back_and_a_phase_begins_anew():
    losses = np.concatenate([falling(500), falling(500) + 1])
    found = {"train/loss": series(losses), "validation/loss": series([3.0, 2.0, 4.0], every=300)}
    training, validation = find_training_rise(found["train/loss"]), find_validation_rise(found["validation/loss"])
    alarms = find_alarms(found, "la " * 100, 0)
    assert [alarm.split(",")[0] for alarm in alarms[:2]] == ["the validation loss", "the training loss"]
    assert str(validation) in alarms[0] and "above its lowest, 2 at step 600" in alarms[0]
    assert f"{training}: go back to a checkpoint from before" in alarms[1]
    assert "repeats itself" in alarms[2] and not any("\n" in alarm for alarm in alarms)
    assert find_alarms(found, CODE, 700) == [] and find_alarms({}, "", 0) == []
