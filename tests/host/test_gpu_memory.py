"""The GPUs of a process, and the share of their memory that JAX may take."""

import subprocess
import sys

import pytest

from jaxformer.host import gpu_memory
from jaxformer.host.gpu_memory import memory_fraction, share_of_gpus, share_of_memory, visible_gpus

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_it_is_nearly_all_of_it_or_what_the_user_says(monkeypatch):
    assert memory_fraction() == 0.9
    for name, value in (("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5"), ("XLA_CLIENT_MEM_FRACTION", "0.4")):
        monkeypatch.setenv(name, value)
        assert memory_fraction() == float(value)


def test_processes_on_one_gpu_share_it(monkeypatch):
    assert share_of_memory(3)["XLA_CLIENT_MEM_FRACTION"] == "0.300"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    shared = share_of_memory(2)
    assert shared == {"XLA_CLIENT_MEM_FRACTION": "0.250", "XLA_PYTHON_CLIENT_MEM_FRACTION": ""}, "JAX refuses both"


def test_gpus_are_those_that_are_named_or_else_all_of_the_machine(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpu_memory, "_DEVICES", tmp_path)
    assert visible_gpus() == ["0", "1"]  # CUDA numbers those that a container sees.
    for named, expected in (("2,GPU-8932f937", ["2", "GPU-8932f937"]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("gpus", "slots", "devices", "expected"),
    [
        ("4", 2, 1, [(None, "0.450")] * 2),
        ("4,5,6,7", 4, 1, [("4", "0.900"), ("5", "0.900"), ("6", "0.900"), ("7", "0.900")]),
        ("4,5", 4, 1, [("4", "0.450"), ("5", "0.450")] * 2),
        ("4,5", 3, 1, [("4", "0.450"), ("5", "0.450"), ("4", "0.450")]),
        ("0,1,2,3", 2, 1, [("0,1", "0.900"), ("2,3", "0.900")]),
        ("0,1,2,3", 3, 2, [("0,1", "0.450"), ("2,3", "0.450"), ("0,1", "0.450")]),
        ("0,1,2", 2, 2, [(None, "0.450")] * 2),
        ("", 2, 1, [(None, "0.450")] * 2),
    ],
)
def test_slots_have_gpus_of_their_own_or_share_the_memory_of_one(monkeypatch, gpus, slots, devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    shares = [share_of_gpus(slot, slots, devices) for slot in range(slots)]
    assert [(share.get("CUDA_VISIBLE_DEVICES"), share["XLA_CLIENT_MEM_FRACTION"]) for share in shares] == expected


def test_a_queue_that_starts_processes_loads_no_jax_itself():
    code = "import sys, jaxformer.jobs.queue; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
