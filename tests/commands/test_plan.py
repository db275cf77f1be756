"""The command that prints what a run will take: of a device by its name, and of what is no option of it."""

import pytest

from jaxformer.commands.plan import main

pytestmark = pytest.mark.device_free

SMALL = ["--experiment=baseline", "--model.width=64", "--model.depth=2", "--model.heads=2"]


def test_a_run_is_planned_for_a_gpu_that_is_not_here(capsys):
    assert main([*SMALL, "--on=H100"]) == 0
    printed = capsys.readouterr().out
    assert "parameters  " in printed and "H100" in printed and "nothing was run" in printed


def test_a_variant_is_planned_on_another_parent(capsys):
    parameters = []
    for arguments in (["--parent=baseline"], ["--parent=baseline_100m"]):
        assert main(["--experiment=swiglu", *arguments, "--on=H100"]) == 0
        lines = capsys.readouterr().out.splitlines()
        parameters += [line for line in lines if line.startswith("parameters  ")]
    assert len(set(parameters)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on=FOO"], "unknown GPU 'FOO'; known are "),
        (["--on=H10"], "unknown GPU 'H10'; did you mean H100?"),
        (["--workdir=there"], "unknown argument '--workdir=there'; see `jaxformer plan --help`"),
        (["--seed=1"], "unknown argument '--seed=1'; see `jaxformer plan --help`"),
        (["--print_config"], "unknown argument '--print_config'; see `jaxformer plan --help`"),
        (["--parnt=a"], "unknown argument '--parnt=a'; did you mean --parent?; see `jaxformer plan --help`"),
        (["--model.widht=64"], "unknown key model.widht; did you mean model.width?"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_status_2(arguments, message, capsys):
    assert main([*SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err


def test_without_an_experiment_it_is_one_line_and_exit_status_2(capsys):
    assert main([]) == 2
    assert "--experiment; see `jaxformer plan --help`" in capsys.readouterr().err
