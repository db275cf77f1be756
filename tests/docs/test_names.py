"""The README and the documentation keep their word: examples run, and what they name exists."""

import contextlib
import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.commands.program import COMMANDS
from jaxformer.data.corpus import load_documents
from jaxformer.data.packing import Batch
from jaxformer.evaluation.tasks import load_task
from jaxformer.experiment.command_line import parse_arguments
from jaxformer.experiment.experiment import make_state
from jaxformer.experiment.resolution import load_experiment, resolve
from jaxformer.huggingface.model_card import USE
from jaxformer.optimizer import make_optimizer
from jaxformer.record import flatten
from jaxformer.step import train_step
from jaxformer.tracking.tracker import Trackers

pytestmark = pytest.mark.device_free

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    ]
}


def examples_of(page: str) -> list[str]:
    """Returns the Python code of a page."""
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


EXAMPLES = examples_of("README.md")
# The changelog also names what was.
CODE = [
    (page, line.strip())
    for page, text in PAGES.items()
    if page != "CHANGELOG.md"
    for code in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.S)
    for part in code
    for line in re.split(r"\n|&&", part)
    if line.strip()
]
FIELDS = flatten(load_experiment("baseline")) | flatten(load_experiment("mixture_of_experts"))
FIELDS |= {"training.phases": ()}  # It has no leaves where there are none.


def commands(pattern: str) -> list[tuple[str, list[str]]]:
    """Returns the commands in the pages whose beginning matches, each as the pattern's group and the arguments."""
    found = [re.fullmatch(rf"{pattern}(?:\s+(.*))?", code) for _, code in CODE]
    return [(match[1], (match[2] or "").split()) for match in found if match]


def help_of(command: str, capsys) -> str:
    """Returns what `jaxformer COMMAND --help` prints."""
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"jaxformer.commands.{command.replace('-', '_')}").main(["--help"])
    return capsys.readouterr().out


def check_options(arguments: list[str], known: str) -> None:
    """Asserts that a text names each option that is given, and that fields are those of an experiment."""
    for name in re.findall(r"--([\w.-]+)", " ".join(arguments)):
        assert name in FIELDS if "." in name else re.search(rf"--{name}\b", known), f"--{name}"


def test_the_examples_of_variants_are_of_the_experiments():
    variant, _ = EXAMPLES
    assert variant in (ROOT / "experiments" / "swiglu.py").read_text(encoding="utf-8")
    *_, phases = examples_of("docs/reference/experiments.md")
    assert phases in (ROOT / "experiments" / "row_length_ramp.py").read_text(encoding="utf-8")


def batch_of_ones() -> Batch:
    tokens = np.ones((2, 16), np.int32)
    starts, ends = np.zeros_like(tokens), tokens * 16
    positions = starts + np.arange(16, dtype=np.int32)
    return Batch(tokens, tokens + 1, np.ones(tokens.shape, np.float32), tokens, positions, starts, ends)


def test_the_library_example_runs_a_step():
    names = {}
    _, example = EXAMPLES
    exec(example, names)
    batch = batch_of_ones()
    state, metrics = names["step"](names["state"], batch)
    assert int(state.step) == 1 and abs(float(metrics["loss"]) / np.log(4096) - 1) < 0.2
    assert jax.tree.leaves(state.params)


def test_the_example_of_a_trained_model_writes_and_scores(uninterrupted, compiled, capsys):
    names, (_, example) = {}, examples_of("docs/how_to/evaluation.md")
    run = uninterrupted("best_fit")
    capsys.readouterr()
    exec(example.replace("runs/baseline/seed_0", str(run)), names)
    assert capsys.readouterr().out == names["trained"].generate("class Reader:", names["sampling"])


def test_the_example_of_an_own_optimizer_is_an_experiment(tmp_path):
    _, example, _ = examples_of("docs/reference/experiments.md")
    (tmp_path / "lion.py").write_text(example, encoding="utf-8")
    config = resolve(str(tmp_path / "lion.py")).experiment.optimizer
    assert repr(config.name) == "Lion(beta=0.95)"
    params = {"kernel": jax.numpy.ones((2, 3))}
    assert jax.tree.leaves(make_optimizer(config, 200).init(params))


def test_the_example_of_an_own_reader_reads_chats(tmp_path, monkeypatch):
    (example,) = examples_of("docs/how_to/corpus.md")
    (tmp_path / "my_chats.py").write_text(example, encoding="utf-8")
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "a.log").write_text("hello\n\nand goodbye")
    monkeypatch.chdir(tmp_path)
    documents = load_documents(load_experiment("my_chats.py").corpus)
    assert [each[:2] for each in documents] == [("a.log#0", "hello"), ("a.log#1", "and goodbye")]


def test_the_example_of_an_own_task_has_items(tmp_path):
    example, _ = examples_of("docs/how_to/evaluation.md")
    (tmp_path / "addition.py").write_text(example, encoding="utf-8")
    (tmp_path / "addition.jsonl").write_text('{"sum": "1 and 2 make", "answers": [3, 4], "right": 0}\n')
    _, task = load_experiment(str(tmp_path / "addition.py")).evaluation.tasks
    (item,) = load_task(task, str(tmp_path)).items
    assert [context + text for context, text in item.options] == ["1 and 2 make 3", "1 and 2 make 4"]


def test_the_example_of_an_own_layer_trains(tmp_path):
    (example,) = examples_of("docs/how_to/architecture.md")
    (tmp_path / "my_moe.py").write_text(example, encoding="utf-8")
    sizes = {"model.depth": "2", "model.width": "16", "model.heads": "2", "model.feed_forward.experts": "3"}
    experiment = load_experiment(str(tmp_path / "my_moe.py"), sizes)
    state = make_state(experiment, seed=0, token_count=experiment.tokenizer.vocabulary_size)
    state, metrics = jax.jit(train_step)(state, batch_of_ones())
    assert abs(float(metrics["loss"]) / np.log(4096) - 1) < 0.2
    np.testing.assert_allclose(metrics["reported"]["feed_forward/load"].sum(axis=1), [2, 2], rtol=1e-6)
    assert all(metrics["reported"]["feed_forward/uneven"] > 0)


def test_the_example_of_an_own_tracker_prints_a_run(capsys):
    names = {}
    exec(examples_of("docs/how_to/tracker.md")[0], names)
    trackers = Trackers([("own", names["Printer"]())])
    trackers.log_hyperparameters({"experiment": "baseline", "config": {"model": {"width": 128}}})
    trackers.log(1, {"train/loss": 3.0})
    trackers.log(2, {"train/loss": 2.0, "validation/loss": 2.5})
    trackers.end_step()
    trackers.log_summary({"status": "finished"})
    trackers.close()
    assert capsys.readouterr().out.splitlines() == ["baseline 128", "2 2.5", "finished", "bye"]


def test_examples_of_the_documentation_are_tested():
    examples = [example for page in PAGES for example in examples_of(page)]
    (of_cards,) = re.findall(r"```python\n(.*?)```", USE, re.S)  # Which is run in tests/huggingface.
    pages = ("how_to/agents", "how_to/corpus", "how_to/evaluation", "how_to/architecture", "how_to/tracker")
    others = (examples_of(f"docs/{page}.md") for page in (*pages, "reference/experiments"))
    tested = {*EXAMPLES, *itertools.chain(*others), of_cards}
    assert len(examples) > 5 and set(examples) == tested  # That of agents.md in tests/commands/test_judge.py.


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_training_commands_name_experiments_options_and_fields_that_exist():
    found = [arguments for _, arguments in commands(r"(python -m jaxformer\.train|jaxformer train)") if arguments]
    assert len(found) >= 6
    for arguments in found:
        options, overrides = parse_arguments(arguments)
        if options.resume:
            continue
        assert (ROOT / "experiments" / f"{options.experiment}.py").is_file()
        assert resolve(options.experiment, overrides, parent=options.parent)


def test_commands_exist_and_have_the_options_that_are_named(capsys):
    found = commands(r"jaxformer ([a-z][\w-]*)")
    assert {name for name, _ in found} == set(COMMANDS)
    for name, arguments in found:
        if name not in ("train", "harness"):  # Those are tested above, and by lm-evaluation-harness.
            check_options(arguments, help_of(name, capsys))


def test_the_tables_of_the_command_line_have_all_commands_and_options(capsys):
    page = PAGES["docs/reference/experiments.md"]
    assert set(re.findall(r"^\| `jaxformer ([\w-]+)` \|", page, re.M)) == set(COMMANDS)
    options = {*re.findall(r"--\w+(?![\w.])", help_of("train", capsys)), "--parent", "--code", "--plan"}
    assert options == {*re.findall(r"^\| `(--\w+)", page, re.M)}


def test_tools_exist_and_have_the_options_that_are_named():
    found = commands(r"python (tools/\w+\.py)")
    assert found
    for path, arguments in found:
        check_options(arguments, (ROOT / path).read_text(encoding="utf-8"))


def test_options_that_are_named_alone_belong_to_a_command(capsys):
    known = "".join(help_of(name, capsys) for name in COMMANDS if name != "harness")
    for _, code in CODE:
        if code.startswith("--"):
            check_options(code.split("=")[:1], known)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        if "://" not in target:
            path = (ROOT / page).parent.joinpath(name) if name else ROOT / page
            assert path.exists(), target
            headings = re.findall("^#+ (.*)", path.read_text(), re.M) if anchor else []
            assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_files_that_are_named_exist():
    for page, code in CODE:
        for path in re.findall(r"(?<![\w./-])(?:docs|experiments|jaxformer|tests|tools)/[\w./-]*", code):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_names_of_the_library_exist():
    names = {name for _, code in CODE for name in re.findall(r"(?<!-m )\bjaxformer(?:\.\w+)+", code)}
    assert names
    for name in names:
        pkgutil.resolve_name(name)


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
