"""What the documentation names exists: commands with their options, fields, files, names of the library, and links."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import pkgutil
import re

import pytest
from markdown_pages import OTHERS, ROOT, anchors_of, blocks_of
from markdown_pages import PAGES as FOLLOWED

from jaxformer.commands.program import COMMANDS
from jaxformer.experiment.command_line import parse_arguments
from jaxformer.experiment.files import list_experiments
from jaxformer.experiment.resolution import load_experiment, resolve
from jaxformer.record import flatten

pytestmark = pytest.mark.device_free

PAGES = FOLLOWED | OTHERS
BLOCKS = [block for page in FOLLOWED for block in blocks_of(page)]
# The changelog also names what was.
CODE = [
    (page, line.strip())
    for page, text in PAGES.items()
    if page != "CHANGELOG.md"
    for code in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.S)
    for part in code
    for line in re.split(r"\n|&&", part.replace("\\\n", " "))
    if line.strip()
]
FIELDS = flatten(load_experiment("baseline")) | flatten(load_experiment("mixture_of_experts"))
FIELDS |= {"training.phases": ()}  # It has no leaves where there are none.


def commands(pattern: str) -> list[tuple[str, list[str]]]:
    """Returns the commands in the pages whose beginning matches, each as the pattern's group and the arguments."""
    found = [re.fullmatch(rf"(?:[A-Z_]+=\S+ )*{pattern}(?:\s+(.*))?", code) for _, code in CODE]
    return [(match[1], (match[2] or "").split()) for match in found if match]


@functools.cache
def help_of(command: str) -> str:
    """Returns what `jaxformer COMMAND --help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        importlib.import_module(f"jaxformer.commands.{command.replace('-', '_')}").main(["--help"])
    return out.getvalue()


def check_options(arguments: list[str], known: str) -> None:
    """Asserts that a text names each option that is given, and that fields are those of an experiment."""
    for name in re.findall(r"--([\w.-]+)", " ".join(arguments)):
        field = FIELDS.keys() & {name, name.rpartition(".")[0]}  # Of a section, or of a part that is its value.
        assert field if "." in name else re.search(rf"--{name}\b", known), f"--{name}"


@functools.cache
def generated() -> dict[str, str]:
    """Returns the pages that the site adds, by path, as `tools/docs_site.py` makes them."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    return {f"docs/{uri}": make() for uri, make in site.PAGES.items()}


def test_the_readme_is_short():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1100


def test_training_commands_name_experiments_options_and_fields_that_exist():
    found = [arguments for _, arguments in commands(r"(python -m jaxformer\.train|jaxformer train)") if arguments]
    assert len(found) >= 6
    known = list_experiments()
    for arguments in found:
        if any(argument.startswith("--help") for argument in arguments):
            continue
        options, overrides = parse_arguments(arguments)
        assert not set(overrides) - {*FIELDS, "name", "question"}, arguments
        # Others are written by the page itself, whose blocks are executed.
        names = re.split("[+@]", options.experiment or options.parent or "")
        if not options.resume and set(names) <= set(known):
            assert resolve(options.experiment, overrides, parent=options.parent)


def test_commands_exist_and_have_the_options_that_are_named():
    found = commands(r"jaxformer ([a-z][\w-]*)")
    assert {name for name, _ in found} == set(COMMANDS)
    for name, arguments in found:
        if name not in ("train", "harness"):  # Those are tested above, and by lm-evaluation-harness.
            check_options(arguments, help_of(name))


def test_the_tables_of_the_command_line_have_all_commands_and_options():
    page = PAGES["docs/reference/experiments.md"]
    assert set(re.findall(r"^\| `jaxformer ([\w-]+)` \|", page, re.M)) == set(COMMANDS)
    options = {*re.findall(r"--\w+(?![\w.])", help_of("train")), "--parent", "--code", "--plan"}
    assert options == {*re.findall(r"^\| `(--\w+)", page, re.M)}


def test_parameters_for_slurm_are_those_of_the_table_or_of_sbatch():
    cells = re.findall(r"^\| (`\w+`.*?) \|", PAGES["docs/how_to/slurm.md"], re.M)
    given = {
        key for text in PAGES.values() for each in re.findall(r"--slurm=([\w=,]+)", text) for key in each.split(",")
    }
    names = {key.partition("=")[0] for key in given} - {"KEY", ""}
    assert len(names) >= 3
    for name in names - {*re.findall(r"`(\w+)`", " ".join(cells))}:
        assert re.fullmatch(r"slurm_\w+", name), f"--slurm={name}=...: submitit calls the options of sbatch slurm_..."


def test_tools_exist_and_have_the_options_that_are_named():
    found = commands(r"python (tools/\w+\.py)")
    assert found
    for path, arguments in found:
        check_options(arguments, (ROOT / path).read_text(encoding="utf-8"))


def test_options_that_are_named_alone_belong_to_a_command():
    known = "".join(help_of(name) for name in COMMANDS if name != "harness")
    for _, code in CODE:
        if code.startswith("--"):
            check_options(code.split("=")[:1], known)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^( *)```.*?^\1```$|`[^`\n]*`", "", PAGES[page], flags=re.M | re.S)
    for image, words, target in re.findall(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", text):
        assert words.strip() or not image, f"{target} has no text in place of it"
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        made = generated().get(str(path.relative_to(ROOT)))
        assert made or path.exists(), target
        assert not anchor or anchor in anchors_of(made or path.read_text(encoding="utf-8")), target


def test_anchors_are_those_of_the_site():
    text = "# A\n\n```\n# none\n```\n\n## What `a_b` is: (1, 2) [and](c.md)\n\n## A\n\n## Own {#mine}\n"
    assert anchors_of(text) == ["a", "what-a_b-is-1-2-and", "a_1", "mine"]


def test_files_that_are_named_exist():
    saved = {block.saved_as for block in BLOCKS}
    for page, code in CODE:
        for path in re.findall(r"(?<![\w./-])(?:docs|experiments|jaxformer|tests|tools)/[\w./-]*", code):
            found = (ROOT / path).exists() or f"{ROOT / path}".removeprefix(f"{ROOT}/") in {*generated(), *saved}
            assert found, f"{page}: {path}"


def test_names_of_the_library_exist():
    names = {name for _, code in CODE for name in re.findall(r"(?<!-m )\bjaxformer(?:\.\w+)+", code)}
    assert names
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_code_imports_what_exists(block):
    """Of blocks that are not executed too."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jaxformer":
            for alias in node.names:
                pkgutil.resolve_name(f"{node.module}:{alias.name}")


def test_fields_that_are_named_exist():
    sections = "|".join({name.partition(".")[0] for name in FIELDS if "." in name})
    for page, code in CODE:
        field = re.fullmatch(rf"((?:{sections})\.\w+)(?:=.*)?", code)
        if field and not code.endswith((".py", ".model", ".json", ".safetensors")):
            assert field[1] in FIELDS, f"{page}: {code}"


def test_the_layout_names_every_package_and_every_module_of_the_training_path():
    folders = {path.parent.name for path in (ROOT / "jaxformer").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "jaxformer").glob("[!_]*.py")}
    assert set(re.findall(r"^\| `([\w.]+)` \|", PAGES["docs/reference/layout.md"], re.M)) == folders | files
