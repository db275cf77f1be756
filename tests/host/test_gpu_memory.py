"""The share of a GPU's memory that JAX may take."""

import subprocess
import sys

import pytest

from jaxformer.host.gpu_memory import memory_fraction, share_of_memory

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
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


def test_a_queue_that_starts_processes_loads_no_jax_itself():
    code = "import sys, jaxformer.jobs.queue; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
