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
    """A campaign that is over: the folder of the run that was left alone, and what was found to differ.

    A run is killed when the second of its checkpoints is begun, so that the first is whole and it is resumed. It reads
    a mixture with three threads, below a folder of an odd name.
    """
    folder, name = tmp_path_factory.mktemp("campaign"), "mixture_below_an_odd_name"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_campaign, "STEPS", 32)
        problems = fault_campaign.run_campaign(folder, kills=1, flips=0, seed=0, names=[name], jobs=1, at_step=20)
    return fault_campaign.place_of(folder, name) / "left_alone", problems


def test_runs_that_were_killed_end_as_those_left_alone(campaign):
    expected, problems = campaign
    assert problems == []
    assert list(expected.parent.glob("killed_*/summary.json"))


def test_campaign_sees_what_differs(campaign, tmp_path):
    expected, _ = campaign
    assert fault_campaign.differences(expected, expected) == []
    other = shutil.copytree(expected, tmp_path / "other")
    (other / "sample.txt").write_text("another")
    metrics = other / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:5], *lines[6:]]) + "\n")
    assert fault_campaign.differences(other, expected) == ["metrics.jsonl differs", "sample.txt differs"]


def test_flipped_bits_of_a_checkpoint_are_noticed(campaign, tmp_path):
    workdir = shutil.copytree(campaign[0], tmp_path / "flipped")
    counts, problems = fault_campaign.flip_bits(workdir, 8, seed=1)
    assert problems == [] and counts["unnoticed"] == 0 and counts["noticed"] > 0
