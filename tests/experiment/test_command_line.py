"""What `--help` prints: a page, a section's fields, and one line for what is no section."""

import dataclasses

import pytest

from jaxformer.experiment.command_line import WIDTH, describe_section, field_docstrings, parse_arguments
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import list_experiments
from jaxformer.train import run_command

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

SECTIONS = {f.name: f.type for f in dataclasses.fields(Experiment) if dataclasses.is_dataclass(f.type)}


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse_arguments(list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_every_field_of_a_section_is_explained_below_itself():
    assert len(SECTIONS) == 10
    for config in (*SECTIONS.values(), Experiment):
        explained = field_docstrings(config)
        fields = {f.name for f in dataclasses.fields(config)} - SECTIONS.keys()
        assert fields <= {name for name, text in explained.items() if text}, config.__name__


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--help", "--experiment=baseline"]])
def test_help_is_a_page_of_a_terminal_with_every_section(capsys, arguments):
    page = printed(capsys, *arguments).splitlines()
    assert len(page) <= 24 and max(map(len, page)) <= WIDTH
    assert SECTIONS.keys() <= {line.split()[0] for line in page if line}
    assert f"baseline, ... ({len(list_experiments())}: --help=experiments)" in "\n".join(page)


@pytest.mark.parametrize("arguments", [["--help=optimizer"], ["--help", "optimizer"]])
def test_help_of_a_section_reports_type_bounds_default_and_meaning(capsys, arguments):
    page = printed(capsys, *arguments)
    assert page == describe_section("optimizer") + "\n"
    assert "  learning_rate: a number, above 0; no default\n      Peak.\n" in page
    assert "  b1: a number, at least 0 and below 1; default 0.9\n      Decay of the first moment, per step.\n" in page
    assert "  schedule: text, one of cosine, wsd; default 'cosine'\n      'cosine', or 'wsd'" in page


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section_names_every_field_within_its_columns(section):
    lines = describe_section(section).splitlines()
    assert max(map(len, lines)) <= WIDTH
    fields = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert fields == [field.name for field in dataclasses.fields(SECTIONS[section])]


def test_help_of_the_experiments_names_them_all(capsys):
    assert printed(capsys, "--help=experiments").replace("\n", " ").strip().split(", ") == list_experiments()


def test_help_of_an_unknown_section_is_one_line_and_exit_status_2(capsys):
    assert run_command(["--help=modle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'modle' is unknown; did you mean model?" in line
