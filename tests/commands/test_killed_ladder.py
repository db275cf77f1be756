"""A ladder whose processes are killed goes on where it was, and a forecast that stood before a run stands after it."""

import functools
import json
import signal
import subprocess

import pytest
from page_reader import installed
from user import User, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.device_free]

COMMAND = ("ladder", "--experiment=base", "--sizes=1,2,3,4", "--seeds=1")
STEPS = """
from jaxformer.experiment import load_experiment, replace
EXPERIMENT = replace(load_experiment("tiny.py"), {
    "training.steps": 20,
    "evaluation.every_steps": 10,
    "evaluation.validation_bytes": 2000,
    "checkpoint.every_steps": 4,
})
"""


@pytest.fixture
def folder(tmp_path, make_texts):
    user = User(tmp_path / "user", make_texts(120), {})
    user.write("experiments/base.py", STEPS)
    return user.folder


@pytest.fixture
def start(folder, tmp_path):
    """A function that starts the ladder; one process that has loaded the package trains its runs."""
    (tmp_path / "installed").mkdir()
    with installed(tmp_path / "installed") as variables:
        command = ["jaxformer", *COMMAND]
        yield functools.partial(subprocess.Popen, command, cwd=folder, env=variables, stderr=subprocess.PIPE)


def trained_steps(run):
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text().rpartition("\n")[0] if metrics.exists() else ""
    return [record["step"] for line in whole.splitlines() if "train/loss" in (record := json.loads(line))]


def test_a_killed_ladder_trains_each_step_once_and_keeps_its_forecast(folder, start):
    last = folder / "runs/base_d4/seed_0"
    with start() as process:
        wait_until(lambda: len(trained_steps(last)) > 30, process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (last / "summary.json").exists()
    written = (last / "forecast.json").read_bytes()
    with start() as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    for depth in (1, 2, 3, 4):
        run = folder / f"runs/base_d{depth}/seed_0"
        steps = json.loads((run / "summary.json").read_bytes())["steps"]
        assert trained_steps(run) == list(range(1, steps + 1))
    assert (last / "forecast.json").read_bytes() == written
    lines = [json.loads(line) for line in (folder / "runs/forecasts.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["forecast", "outcome"] and not lines[1]["objection"]
    record = json.loads((last / "config.json").read_bytes())
    assert record["forecast"] == lines[0]["digest"] == lines[1]["digest"]
