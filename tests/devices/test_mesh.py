"""More than one device: the same run, whatever the devices and the processes; see `on_eight_devices` for the steps."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from copies import Copies, Ended

from jaxformer.checkpoint.train_state import open_checkpoints
from jaxformer.config import UserError
from jaxformer.data.packing import DIGESTS, Batch, batch_digest
from jaxformer.devices.mesh import MeshConfig, check_rows, make_mesh
from jaxformer.evaluation.sampling import Sampling
from jaxformer.run.trained import load_trained
from jaxformer.train import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("default_signals")]

TOLERANCE = 1e-5
TESTS = Path(__file__).parents[1]
# Of the run of two processes. With a small epsilon rounding alone moves its losses by 1e-4 in 12 steps.
OVERRIDES = [
    "--optimizer.epsilon=1e-3",
    "--training.steps=10",
    "--checkpoint.every_steps=8",
    "--evaluation.every_steps=10",
    "--evaluation.sample_tokens=0",
    "--training.startup_proof=false",
]
# A process receives SIGTERM once a step is computed; the others learn of it from the devices.
STOPPING = """
import os, signal
from jaxformer.run.progress import Progress

add = Progress.add

def stopping_add(self, step, metrics):
    add(self, step, metrics)
    if step == int(os.environ["AT"]) and os.environ["JAX_PROCESS_ID"] == os.environ["STOPPED"]:
        os.kill(os.getpid(), signal.SIGTERM)

Progress.add = stopping_add
"""


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    path = os.pathsep.join([str(tiny_run.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path, **more}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What came out on eight devices."""
    done = subprocess.run(
        [sys.executable, "on_eight_devices.py", str(tmp_path_factory.mktemp("eight"))],
        cwd=TESTS,
        env=environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["8x1", "1x8", "2x4"])
def test_losses_on_eight_devices_are_those_of_one(eight, mesh):
    assert len(eight["losses"][mesh]) == 20
    assert eight["losses"]["1x1"][0] - eight["losses"]["1x1"][-1] > 0.5, "nothing was learned"
    np.testing.assert_allclose(eight["losses"][mesh], eight["losses"]["1x1"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mesh", ["8x1", "1x8", "2x4"])
def test_a_mesh_begins_with_the_bits_of_one_device(eight, mesh):
    assert eight["initial"][mesh] == eight["initial"]["1x1"]


@pytest.mark.parametrize("name", ["1x8 on 1x1", "1x8 on 1x4", "1x1 on 1x8"])
def test_a_checkpoint_goes_on_on_other_devices(eight, name):
    assert eight["restored"][name] == eight["saved"][name.split()[0]], "the bits of what was saved"
    np.testing.assert_allclose(eight["resumed"][name], eight["losses"]["1x1"][-8:], rtol=0, atol=TOLERANCE)


def test_a_mesh_starts_from_the_bits_of_given_parameters_and_new_moments(eight):
    begun, trained = eight["initial"]["1x1"], eight["saved"]["1x1"]
    expected = {name: (trained if name.startswith("[0]") else begun)[name] for name in begun}
    assert eight["started"] == expected != trained


def test_a_device_holds_its_share_of_every_matrix_and_of_its_moments(eight):
    shares = eight["shares"]
    assert {name for name, share in shares.items() if share == 1} == {name for name in shares if "norm" in name}
    assert {share for name, share in shares.items() if "norm" not in name} == {1 / 8}
    assert sum("embedding" in name for name in shares) == 3, "the table and its two moments"


def test_a_layer_is_gathered_in_the_loop_over_layers_and_its_gradient_scattered_there(eight):
    outside = eight["collectives"].pop("outside")
    # Four kernels in each layer, forward and backward; outside of the loops only the table.
    loops = sorted(sorted(loop.items()) for loop in eight["collectives"].values())
    assert loops == [[("all-gather", 4)], [("all-gather", 4), ("reduce-scatter", 4)]]
    assert outside == {"all-gather": 1, "reduce-scatter": 1}


@pytest.mark.parametrize("what", ["validation", "cloze"])
def test_evaluations_on_a_mesh_are_those_of_one_device(eight, what):
    one, mesh = (eight[f"evaluations of {name}"][what] for name in ("1x1", "2x4"))
    np.testing.assert_allclose(mesh, one, rtol=0, atol=2 * TOLERANCE)


def command_of_two(arguments: list[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the command of two processes that train together, and the variables of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = [{"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(number)} for number in range(2)]
    return ["train", *arguments, "--mesh.data=2", "--mesh.processes=2"], variables


def run_two(copies: list[Copies], arguments: list[str], stopped: str = "none", at: int = 0) -> list[Ended]:
    """Returns how two processes ended, each a copy of another, of which one is stopped at a step."""
    command, variables = command_of_two(arguments)

    def run(number: int) -> Ended:
        fields = variables[number] | {"STOPPED": stopped, "AT": str(at)}
        return copies[number].run(command, Path.cwd(), fields, timeout=240, before=STOPPING)

    with ThreadPoolExecutor() as executor:
        return list(executor.map(run, range(2)))


@pytest.fixture
def copies(compiled):
    """Two processes that have loaded the package."""
    with Copies(environment(1, **compiled)) as first, Copies(environment(1, **compiled)) as second:
        yield [first, second]


def test_two_processes_train_stop_and_resume_as_one_that_nothing_stops(experiment_files, copies, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    file = experiment_files["best_fit"]
    assert main([*tiny_run.command(file, one), *OVERRIDES]) == 0

    arguments = [*tiny_run.command(file, two), *OVERRIDES]
    for at, saved, kept in ((4, 6, [6]), (10, 10, [8, 10])):  # The second time it is the last step.
        stopped = run_two(copies, arguments, stopped="1", at=at)
        for number, (status, _, error) in enumerate(stopped):
            assert status == 128 + 15, f"process {number}: {error}"
            assert f"step {saved} is saved" in error, f"process {number}: {error}"
        assert "2 processes" in stopped[0][1] and "2 processes" not in stopped[1][1], "the first speaks"
        with open_checkpoints(two / "checkpoints") as checkpoints:
            assert checkpoints.steps() == kept

    resumed = run_two(copies, arguments)
    for number, (status, _, error) in enumerate(resumed):
        assert status == 0, f"process {number}: {error}"
    ours, theirs = tiny_run.read_metrics(two), tiny_run.read_metrics(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line.get("train/batch") == expected.get("train/batch"), "the same rows at the same step"
        for name in {"train/loss", "validation/loss"} & expected.keys():
            assert line[name] == pytest.approx(expected[name], abs=TOLERANCE), (line["step"], name)
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (two, one))
    assert summary["validation/bits_per_byte"] == pytest.approx(expected["validation/bits_per_byte"], abs=TOLERANCE)
    assert summary["device_hours"] == pytest.approx(2 * summary["seconds"] / 3600)


def test_process_with_other_settings_is_refused_and_not_waited_for(experiment_files, compiled, tmp_path):
    arguments = [*tiny_run.command(experiment_files["best_fit"], tmp_path / "run"), *OVERRIDES]
    command, variables = command_of_two(arguments)
    first, second = (
        subprocess.Popen(
            [sys.executable, "-m", "jaxformer", *command, *changed],
            env=environment(1, **compiled, **fields),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for changed, fields in zip(([], ["--checkpoint.every_steps=3"]), variables, strict=True)
    )
    try:
        assert second.wait(timeout=120) == 2
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_run_on_a_mesh_with_all_that_a_run_does_is_that_of_one_device(experiment_files, compiled, tmp_path):
    options = ["--training.rows_per_step=8", "--optimizer.epsilon=1e-3", "--optimizer.name=muon"]
    options += ["--model.activation=swiglu", "--model.tied_embeddings=false", "--training.steps=6"]
    with Copies(environment(8, **compiled)) as of_eight:
        for name, mesh in (("one", []), ("eight", ["--mesh.data=2", "--mesh.fsdp=4"])):
            arguments = [*tiny_run.command(experiment_files["best_fit"], tmp_path / name), *options, *mesh]
            status, printed, errors = of_eight.run(["train", *arguments], tmp_path, {}, timeout=240)
            assert status == 0, errors
            assert "proof       no gradient flows" in printed and "a sample (" in printed
    for line, expected in zip(*map(tiny_run.read_metrics, (tmp_path / "eight", tmp_path / "one")), strict=True):
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, abs=1e-4 if "norm" in key or "score" in key else TOLERANCE), key
    # Its folder is all that its model needs, here on one device.
    sample = (tmp_path / "eight" / "sample.txt").read_text(encoding="utf-8")
    assert load_trained(tmp_path / "eight").generate("", Sampling(tokens=5, seed=3)) == sample


@dataclass(frozen=True)
class Device:
    process_index: int
    id: int


def devices(*processes: int) -> list[Device]:
    return [Device(process, number) for number, process in enumerate(processes)]


def test_rows_of_one_process_stand_together():
    mesh = make_mesh(MeshConfig(data=2, fsdp=0, processes=2), list(reversed(devices(0, 1, 0, 1))))
    assert [device.process_index for device in mesh.devices.ravel()] == [0, 0, 1, 1]
    assert mesh.shape == {"data": 2, "fsdp": 2}


@pytest.mark.parametrize(
    ("config", "processes", "message"),
    [
        ({"data": 4, "fsdp": 2}, [0] * 6, r"mesh.data x mesh.fsdp \(4 x 2\) must be at most the 6 devices"),
        ({"data": 0, "fsdp": 4}, [0] * 6, r"mesh.fsdp \(4\) must divide the 6 devices"),
        ({"data": 1}, [0], None),
        ({"data": 1, "processes": 2}, [0, 1], r"\(1 x 1\) must be the 2 devices"),
        ({"data": 2, "processes": 2}, [0, 0], r"mesh.processes \(2\) is not the 1 that JAX sees"),
        ({"data": 0, "fsdp": 0}, [0], "must not both be 0"),
    ],
)
def test_devices_that_do_not_fit_are_refused_in_one_line(config, processes, message):
    if message is None:
        assert make_mesh(MeshConfig(**config), devices(*processes)).size == 1
        return
    with pytest.raises(UserError, match=message) as refused:
        make_mesh(MeshConfig(**config), devices(*processes))
    assert "\n" not in str(refused.value)


def test_rows_that_the_devices_do_not_divide_are_refused():
    check_rows(3, 2, 24, 2)
    with pytest.raises(UserError, match=r"rows_per_step \(18\) must be a multiple .* \(2 x 3 x 2 = 12\)"):
        check_rows(3, 2, 18, 2)


def test_digests_of_the_rows_of_each_process_add_up_to_the_digest_of_the_batch():
    rng = np.random.default_rng(0)
    batch = Batch(*(rng.integers(0, 9, (7, 5), dtype=np.int32) for _ in Batch._fields))
    whole = batch_digest(batch)
    parts = [batch_digest(Batch(*(x[rows] for x in batch)), rows.start) for rows in (slice(0, 3), slice(3, 7))]
    assert sum(parts) % DIGESTS == whole
    assert batch_digest(Batch(*(x[::-1] for x in batch))) != whole, "the order of the rows counts"
