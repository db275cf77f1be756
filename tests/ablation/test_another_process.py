"""What is called in a process of its own has what the runs of a queue have."""

import os

import pytest

from jaxformer.ablation.another_process import in_another_process


@pytest.mark.parametrize("set_by_user", [None, "glibc.malloc.perturb=1"])
def test_another_process_has_the_huge_pages_of_jobs_and_this_one_stays_as_it_was(monkeypatch, set_by_user):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if set_by_user:
        monkeypatch.setenv("GLIBC_TUNABLES", set_by_user)
    found = in_another_process("looking", os.getenv, "GLIBC_TUNABLES")
    assert found == (set_by_user or "glibc.malloc.hugetlb=1")
    assert os.environ.get("GLIBC_TUNABLES") == set_by_user
