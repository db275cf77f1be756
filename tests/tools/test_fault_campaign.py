"""The short form of the campaign of `tools/fault_campaign.py`: a kill changes nothing."""

import importlib.util
import os
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

# Loaded by Python at its start: the run that is to be killed waits for that once step 25 is written and 16 is saved.
WAITING = """
import sys, time
from pathlib import Path

workdir = Path(sys.orig_argv[-1].removeprefix("--workdir="))
waited = workdir.with_suffix(".waited")
if workdir.name == "killed_1" and not waited.exists():
    from jaxformer.run.progress import Progress

    waited.touch()
    add = Progress.add

    def waiting_add(self, step, metrics):
        while step == 26 and not (workdir / "checkpoints" / "16").exists():
            time.sleep(0.05)
        add(self, step, metrics)
        if step == 26:  # Which wrote those before it.
            time.sleep(600)

    Progress.add = waiting_add
"""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A campaign that is over: the folder of the run that was left alone, and what was found to differ.

    A run is killed when its third checkpoint is begun, so that the second is whole and it is resumed. It reads a
    mixture with three threads, below a folder of an odd name.
    """
    folder, name = tmp_path_factory.mktemp("campaign"), "mixture_below_an_odd_name"
    patched = tmp_path_factory.mktemp("patched")
    (patched / "sitecustomize.py").write_text(WAITING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_campaign, "STEPS", 32)
        patch.setenv("PYTHONPATH", str(patched), prepend=os.pathsep)
        problems = fault_campaign.run_campaign(folder, kills=1, flips=0, seed=0, names=[name], jobs=1, at_step=25)
    return fault_campaign.place_of(folder, name) / "left_alone", problems


def test_runs_that_were_killed_end_as_those_left_alone(campaign):
    expected, problems = campaign
    assert problems == []
    assert list(expected.parent.glob("killed_*/summary.json"))
    assert fault_campaign.times_resumed(expected.parent) == 1


def test_campaign_sees_what_differs(campaign, tmp_path):
    expected, _ = campaign
    assert fault_campaign.differences(expected, expected) == []
    other = shutil.copytree(expected, tmp_path / "other")
    (other / "sample.txt").write_text("another")
    metrics = other / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:5], *lines[6:]]) + "\n")
    assert fault_campaign.differences(other, expected) == ["metrics.jsonl differs", "sample.txt differs"]
