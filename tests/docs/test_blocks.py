"""The blocks of each page are executed, in their order and in an empty folder, as a reader would who types them.

Only the experiments are smaller (`small_package`). A block that cannot be executed here says so on the line before it:
`<!-- not run: needs a GPU -->`; what it names is tested in `test_names.py`. A block of text shows what the block before
it prints, or has a line `<!-- not compared: is written by a model -->` before it.
"""

import re

import markdown_pages
import pytest
from markdown_pages import PAGES, Block, blocks_of
from page_reader import EXECUTED, READ, Reader, follow, installed
from printed_lines import missing_line

pytestmark = pytest.mark.device_free

# Why a block may be left out.
REASONS = (
    "needs (a|several) GPUs?",
    "needs a process of its own",
    "needs two processes at once",
    "needs a network",
    "needs an account",
    "needs a cluster",
    "needs a checkout",
    "needs PyTorch",
    "needs your (documents|files|data|own .*)",
    "takes (hours|long)",
    "installs packages",
)

# Why a block of text may show something else than what the block before it prints here.
OTHER_OUTPUT = (
    "is written by a model",
    "is of (a file|another (machine|run))",
    "depends on the size of the (run|corpus)",
    "depends on the verdict",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory, cache):
    """Variables of a reader who has installed the small package, and whose programs start at once."""
    with installed(tmp_path_factory.mktemp("installed")) as variables:
        yield variables


@pytest.fixture
def reader(tmp_path, environment):
    """A reader in an empty folder."""
    for name in ("reader", "state"):
        (tmp_path / name).mkdir()
    with Reader(tmp_path / "reader", environment, tmp_path / "state") as reader:
        yield reader


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_do_what_they_say(page, reader):
    follow(page, reader)


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("console", "true\nfalse && true\n", "page:8: exit status 1"),
        ("console", "jaxformer train \\\n    --experiment=frist\n", "page:7: exit status 2\n.*did you mean first"),
        ("console", "jaxformer judge first first\n", "page:7: exit status 2"),
        ("console", "cat <<'END'\nfalse\nEND\npip install jaxformer\n", "page:10: exit status 1"),
        ("python", "import jaxformer\njaxformer.nothing\n", "page:7: Traceback.*line 2.*AttributeError"),
    ],
)
def test_what_fails_on_a_page_fails_its_test(reader, language, code, message):
    with pytest.raises(pytest.fail.Exception, match=f"(?s){message}"):
        reader.do(Block("page", 7, language, code, ""))


def test_blocks_of_a_page_share_a_shell_a_session_and_a_folder(reader):
    blocks = [
        ("console", "export GREETING=hello\nmkdir deep\ncd deep\n"),
        ("console", '[ "$GREETING" = hello ] && [ "$(basename $PWD)" = deep ]\n'),
        ("python", "# deep/number.py\nnumber = 7\n"),
        ("console", "python -c 'import number; assert number.number == 7'\n"),
        ("python", "a = 3\n"),
        ("python", "import os\nassert a == 3 and os.path.exists('deep/number.py')\n"),
    ]
    for language, code in blocks:
        reader.do(Block("page", 1, language, code, ""))


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("step 600/600  loss 4.4520, -0.5 of 1.3M, 0:54", ""),
        ("...\nKEEP  by 12 documents\n...", ""),
        ("digest b171fcf49b00 ...", ""),
        ("beside first\nstep 1/2", "beside first"),
        ("UNDECIDED by\n5 documents digest ...", ""),
        ("REVERT by 1 document\nstep 1/2 ...", "step 1/2 ..."),
    ],
)
def test_shown_output_was_printed_but_for_its_numbers(shown, missing):
    printed = "step 12/12 loss 7.1, 0.25 of 90k, 1:02:03\n  UNDECIDED by 1 document\ndigest 0123abcd of x\n"
    assert missing_line(shown, printed) == missing


def test_a_page_that_shows_what_is_not_printed_fails(reader, monkeypatch):
    page = "```console\necho 3 words\n```\n\nIt prints:\n\n{}```text\n4 {}\n```\n"
    pages = {"same": ("", "words"), "other": ("", "texts"), "left_out": ("<!-- not compared: x -->\n", "texts")}
    monkeypatch.setattr(markdown_pages, "PAGES", {name: page.format(*parts) for name, parts in pages.items()})
    follow("same", reader)
    follow("left_out", reader)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)other:8 shows what was not printed:.4 texts"):
        follow("other", reader)


@pytest.mark.parametrize("page", PAGES)
def test_each_block_has_a_language_and_each_reason_is_of_a_kind(page):
    blocks = blocks_of(page)
    others = [f"{block}: {block.language or 'none'}" for block in blocks if block.language not in EXECUTED | READ]
    assert not others, f"blocks are {', '.join(sorted(EXECUTED | READ))}"
    for kind, known, languages in (("not_run", REASONS, EXECUTED), ("not_compared", OTHER_OUTPUT, {"text"})):
        given = [(block, getattr(block, kind)) for block in blocks if getattr(block, kind)]
        unknown = [f"{block}: {reason}" for block, reason in given if not re.match(f"({'|'.join(known)})\\b", reason)]
        assert not unknown, f"the reasons there are: {known}"
        assert {block.language for block, _ in given} <= languages
        assert PAGES[page].count(f"<!-- {kind.replace('_', ' ')}") == len(given), "each before a block"
    assert PAGES[page].count("```") == 2 * len(blocks)
