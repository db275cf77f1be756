"""The short form of the campaign of `tools/fault_campaign.py`: kills and flipped bits change nothing."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.device_free]

SPEC = importlib.util.spec_from_file_location(
    "fault_campaign", Path(__file__).parents[2] / "tools" / "fault_campaign.py"
)
fault_campaign = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = fault_campaign
SPEC.loader.exec_module(fault_campaign)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A campaign that is over: its folder, and what it found to differ.

    A run is killed when the second of its checkpoints is begun, so that the first is whole and it is resumed.
    """
    folder = tmp_path_factory.mktemp("campaign")
    names = ["best_fit", "mixture_below_an_odd_name"]
    return folder, fault_campaign.run_campaign(folder, kills=2, flips=0, seed=0, names=names, jobs=2, at_step=20)


def test_runs_that_were_killed_end_as_those_left_alone(campaign):
    folder, problems = campaign
    assert problems == []
    assert len(list(folder.glob("**/killed_*/summary.json"))) >= 2


def test_campaign_sees_what_differs(campaign, tmp_path):
    folder, _ = campaign
    expected = folder / "best_fit" / "left_alone"
    assert fault_campaign.differences(expected, expected) == []
    other = shutil.copytree(expected, tmp_path / "other")
    (other / "sample.txt").write_text("another")
    metrics = other / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:50], *lines[51:]]) + "\n")
    assert fault_campaign.differences(other, expected) == ["metrics.jsonl differs", "sample.txt differs"]


def test_flipped_bits_of_a_checkpoint_are_noticed(campaign, tmp_path):
    folder, _ = campaign
    workdir = shutil.copytree(folder / "best_fit" / "left_alone", tmp_path / "flipped")
    counts, problems = fault_campaign.flip_bits(workdir, 40, seed=1)
    assert problems == [] and counts["unnoticed"] == 0 and counts["noticed"] > 0
