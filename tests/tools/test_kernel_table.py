"""The table of what our kernels take of a GPU: what is read from PTX and from `ptxas`, on a sample written by hand."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"

OUTPUT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
ptxas info    : Function properties for loop_fusion
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
ptxas info    : Compile time = 1.535 ms
ptxas info    : Compiling entry function 'cross_entropy_gradient' for 'sm_90a'
ptxas info    : Function properties for cross_entropy_gradient
    32 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 32 bytes cumulative stack size
ptxas info    : Compile time = 127.937 ms
"""

PTX = """.visible .entry cross_entropy_forward(
)
{
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 };
}
.visible .entry cross_entropy_gradient(
)
{
{
	wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {
}
	wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {
}
"""


@pytest.fixture(scope="module")
def kernel_table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import kernel_table

        yield kernel_table


def test_usage_is_read_of_each_kernel_by_its_name(kernel_table):
    expected = {"registers": 255, "spill_stores": 24, "spill_loads": 40}
    assert kernel_table.usages(OUTPUT)["cross_entropy_gradient"] == expected
    assert kernel_table.usages(OUTPUT)["loop_fusion"]["registers"] == 16


def test_instructions_are_counted_of_one_kernel_and_behind_blocks_in_it(kernel_table):
    counts = {"mma": 0, "wgmma": 2, "tcgen05": 0}
    assert kernel_table.instructions(PTX, "cross_entropy_gradient") == counts
    assert kernel_table.instructions(PTX, "cross_entropy_forward") == {"mma": 1, "wgmma": 0, "tcgen05": 0}


def test_without_ptxas_one_line_is_written_and_it_exits_with_2(kernel_table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernel_table.py", "--ptxas=/nowhere/ptxas"])
    assert kernel_table.main() == 2
    message = "kernel_table: no /nowhere/ptxas: install the CUDA toolkit, or set --ptxas=PATH\n"
    assert capsys.readouterr() == ("", message)
