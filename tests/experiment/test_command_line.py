"""What `--help` prints: a page, a section's fields, and one line for what is no section."""

import dataclasses
import itertools

import pytest

from jaxformer.config import UserError, values_by_path
from jaxformer.experiment.command_line import WIDTH, describe_section, field_docstrings, parse_arguments
from jaxformer.experiment.customary import _UNITS, CUSTOMARY
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import list_experiments
from jaxformer.experiment.resolution import load_experiment
from jaxformer.train import run_command

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

SECTIONS = {f.name: f.type for f in dataclasses.fields(Experiment) if dataclasses.is_dataclass(f.type)}


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse_arguments(list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_every_field_of_a_section_is_explained_below_itself():
    assert len(SECTIONS) == 11
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
    assert "  learning_rate: a number, above 0; no default\n      Peak learning rate.\n" in page
    assert "  b1: a number, at least 0 and below 1; default 0.9\n      Decay of the first moment, per step.\n" in page
    assert "  schedule: text, one of cosine, wsd; default 'cosine'\n      'cosine', or 'wsd'" in page


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help=model", "--experiment=baseline", "--model.width=256"],
        ["--model.width=256", "--experiment", "baseline", "--seed=1", "--help", "model"],
    ],
)
def test_help_of_a_section_reports_the_experiments_values_that_differ_from_the_defaults(capsys, arguments):
    page = printed(capsys, *arguments)
    name = load_experiment("baseline", {"model.width": "256"}).name
    assert page == describe_section("model", load_experiment("baseline", {"model.width": "256"})) + "\n"
    assert f"no default;\n    {name} has 256\n      D, of the residual stream.\n" in page
    assert "  norm: text, one of rmsnorm, layernorm or Norm; default 'rmsnorm'\n" in page
    assert page.count(f"{name} has") == 4  # Without a default: vocabulary size, width, depth and heads.


def test_help_of_a_section_names_the_fields_of_what_an_experiment_has_in_it():
    page = describe_section("model", load_experiment("mixture_of_experts"))
    assert "mixture_of_experts has MixtureOfExperts\n" in page
    assert "  feed_forward.top_k: a whole number, at least 1 and below 2**31; default 2\n      k, experts" in page
    assert "  LayerPart      An attention, or a feed-forward, in place of the model's own\n" in page
    page = describe_section("training", load_experiment("row_length_ramp"))
    assert "row_length_ramp has (Phase, Phase)" in page and "  phases.1.start: " in page
    assert page.count("Share of the steps before it.") == 1


def test_help_of_a_section_of_an_experiment_stays_within_its_columns():
    for name in ("mixture_100m", "hybrid_attention"):
        experiment = load_experiment(name)
        for section in SECTIONS:
            assert max(map(len, describe_section(section, experiment).splitlines())) <= WIDTH, (name, section)


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section_names_every_field_within_its_columns(section):
    lines = describe_section(section).splitlines()
    assert max(map(len, lines)) <= WIDTH
    lines = itertools.takewhile(lambda line: not line.startswith("classes for "), lines)
    fields = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert fields == [field.name for field in dataclasses.fields(SECTIONS[section])]


def test_help_of_the_experiments_names_them_all(capsys):
    assert printed(capsys, "--help=experiments").replace("\n", " ").strip().split(", ") == list_experiments()


def test_help_of_an_unknown_section_is_one_line_and_exit_status_2(capsys):
    assert run_command(["--help=modle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'modle' is unknown; did you mean model?" in line


def test_customary_names_are_given_to_fields_and_options_that_there_are():
    assert CUSTOMARY.keys() <= {*values_by_path(load_experiment("baseline")), "workdir"}
    assert _UNITS.keys() <= set(" ".join(CUSTOMARY.values()).split())


# What others call a field, or one without its section, and the names here.
NAMES = {
    "optimizer.lr": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "learning-rate": "optimizer.learning_rate",
    "learnig_rate": "optimizer.learning_rate",
    "steps": "training.steps",
    "optimizer.steps": "training.steps",
    "max_iters": "training.steps",
    "model.n_layer": "model.depth",
    "model.layers": "model.depth",
    "model.d_model": "model.width",
    "training.batch_size": "training.rows_per_step",
    "model.block_size": "packing.row_length",
    "model.vocab_size": "model.vocabulary_size",
    "vocab_size": "model.vocabulary_size or tokenizer.vocabulary_size",
    "eval_interval": "evaluation.every_steps",
    "path": "corpus.path or tokenizer.path",
    "data": "corpus.path or mesh.data",
    "output_dir": "workdir",
    "min_lr": "optimizer.final_learning_rate_share (a share of learning_rate)",
    "warmup_ratio": "optimizer.warmup_steps (steps, not a share of them)",
    "epochs": "training.steps (steps, not epochs)",
    "eval_iters": "evaluation.validation_bytes (bytes of text, not batches)",
    "every_step": "checkpoint.every_steps or evaluation.every_steps",
}


@pytest.mark.parametrize(("name", "ours"), NAMES.items())
def test_a_customary_name_or_one_without_its_section_is_refused_with_the_names_here(capsys, name, ours):
    assert run_command(["--experiment=baseline", f"--{name}=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"; did you mean {ours}?" in line.replace("--", "")
    if "." not in name:
        assert f"did you mean --{ours.split()[0]}" in line
        return
    with pytest.raises(UserError, match=f"unknown key {name}; did you mean {ours}"):
        load_experiment("baseline", {name: "1"})


@pytest.mark.parametrize("name", ["dropout", "model.dropout", "model.bias"])
def test_what_the_model_has_not_is_refused_without_another_name(capsys, name):
    assert run_command(["--experiment=baseline", f"--{name}=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no {name.split('.')[-1]}" in line and "did you mean" not in line
