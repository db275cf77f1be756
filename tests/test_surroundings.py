"""What the library does not leave to its surroundings: encodings, what streams can show, what `python -OO` drops."""

import ast
from pathlib import Path

import pytest

import jaxformer

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

ROOT = Path(jaxformer.__file__).parents[1]
OPENING = {"open", "fdopen", "read_text", "write_text", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"}


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Returns whether a call opens a text file, or reads a process's output as text, in the locale's encoding."""
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in options or ast.unparse(call.func) == "os.open":
        return False
    values = [each.value for each in (*call.args, *options.values()) if isinstance(each, ast.Constant)]
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in OPENING and not (isinstance(call.func, ast.Name) and name in ("read_text", "write_text")):
        return not any(isinstance(value, str) and "b" in value and set(value) <= set("rwaxbt+") for value in values)
    return any(getattr(options.get(option), "value", False) for option in ("text", "universal_newlines"))


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("path.open()", True),
        ("path.open('rb')", False),
        ("open(path, 'a')", True),
        ("open(path, encoding='utf-8')", False),
        ("path.read_text(errors='replace')", True),
        ("run(command, text=True)", True),
        ("run(command, capture_output=True)", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("read_text(files)", False),
    ],
)
def test_ways_to_open_are_told_apart(code, is_found):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call) and opens_text_without_encoding(call) == is_found


def test_every_text_file_is_opened_with_a_named_encoding():
    """Ruff's PLW1514 sees few of the ways."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*ROOT.glob("jaxformer/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("experiments/**/*.py")]
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert not found


def test_no_module_decides_by_assert_or_prints_a_docstring_of_the_interpreter():
    """`python -OO` keeps neither."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.glob("jaxformer/**/*.py")
        if path != ROOT / "jaxformer" / "host" / "docstrings.py"  # Which knows when there are none.
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).split(".")[-1] in ("__doc__", "getdoc"))
    ]
    assert not found


def test_library_prints_by_its_console_alone():
    """What else prints ends a run where the stream cannot show the text, or is closed."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.glob("jaxformer/**/*.py")
        if path != ROOT / "jaxformer" / "host" / "console.py"
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert not found
