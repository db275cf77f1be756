"""The command that reports a study."""

import pytest

import jaxformer.commands.report

pytestmark = pytest.mark.device_free


def test_the_command_prints_the_decisions_and_where_the_page_is(folder, capsys, monkeypatch):
    monkeypatch.setattr(jaxformer.commands.report, "write_report", lambda outcome, output: output / "index.html")
    study = folder / "two.py"
    study.write_text(
        "from jaxformer.ablation.study import Study\nSTUDY = Study(parent='root', variants=('muon', 'slow'))\n"
    )
    assert jaxformer.commands.report.main([f"--study={study}"]) == 0
    output = capsys.readouterr().out
    assert "KEEP" in output and "REVERT" in output and output.endswith("runs/reports/two/index.html\n")
    assert jaxformer.commands.report.main(["--parent=root", "--variants=muon, slow", "--output=there"]) == 0
    assert capsys.readouterr().out == output.replace("runs/reports/two", "there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study=nowhere.py"], "study file nowhere.py: no such file"),
        ([], "give --study, or --parent and --variants"),
        (["--parent=root"], "give --study, or --parent and --variants"),
        (["--parent=root", "--variants=mun"], "unknown experiment 'mun'; did you mean muon?"),
        (["--parent=root", "--variants=muon", "--runs=empty"], "no finished run of the parent"),
    ],
)
def test_the_command_refuses_in_one_line(folder, capsys, arguments, message):
    assert jaxformer.commands.report.main(arguments) == 2
    output = capsys.readouterr().err
    assert message in output and output.startswith("jaxformer: ") and output.count("\n") == 1
