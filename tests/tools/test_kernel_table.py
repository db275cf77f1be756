"""The table of what our kernels take of a GPU: what is read from PTX and from `ptxas`, on a sample written by hand; and
what is kept of all kernels, which the page on performance repeats.
"""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"

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


GPUS = ("A100", "H100", "B200")
# What the page calls the kernels.
NAMES = {
    "document_flash_forward": "attention, forward",
    "document_flash_queries": "attention, queries' gradient",
    "document_flash_keys": "attention, keys' gradient",
    "cross_entropy_forward": "loss, forward",
    "cross_entropy_gradient": "loss, gradient",
}


@pytest.fixture(scope="module")
def kept():
    return json.loads((TOOLS / "results" / "kernels.json").read_text(encoding="utf-8"))


def test_what_is_kept_is_of_the_code_that_there_is(kernel_table, kept):
    assert kept["versions"]["code"] == kernel_table.code_digest(), "python tools/kernel_table.py"


def test_what_is_kept_is_of_the_tiles_that_there_are(kernel_table, kept):
    for gpu in GPUS:
        cases = [list(case[:4]) for case in kernel_table.cases(kernel_table.gpu_target.CAPABILITIES[gpu])]
        found = [[row[name] for name in kernel_table.Case._fields[:4]] for row in kept["kernels"] if row["gpu"] == gpu]
        assert found == cases, "python tools/kernel_table.py"


def test_no_kernel_spills_a_register_and_all_multiply_by_the_newest_instruction(kept):
    for row in kept["kernels"]:
        assert row["spill_stores"] == row["spill_loads"] == 0, row
        assert row[{"A100": "mma", "H100": "wgmma", "B200": "tcgen05"}[row["gpu"]]], row


def cell_of(rows):
    """Returns what the page says of a kernel on a GPU."""
    tiles = len({row["tile"] for row in rows})
    return f"{tiles}, {max(row['registers'] for row in rows)}, {max(row['shared_memory'] for row in rows) // 1024} KB"


def test_the_page_repeats_what_is_kept(kept):
    rows_of = {}
    for row in kept["kernels"]:
        name = NAMES[row["kernel"]] + ", soft cap" * ("cap" in row["options"])
        name += f", heads of {row['width']}" * name.startswith("attention")
        rows_of.setdefault(name, {}).setdefault(row["gpu"], []).append(row)
    expected = {f"| {name} | {' | '.join(cell_of(of[gpu]) for gpu in GPUS)} |" for name, of in rows_of.items()}
    (page,) = (ROOT / "docs").glob("**/performance.md")
    table = page.read_text(encoding="utf-8").partition(f"| kernel | {' | '.join(GPUS)} |\n")[2].partition("\n\n")[0]
    assert set(table.splitlines()[1:]) == expected
