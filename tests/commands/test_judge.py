"""The command that judges from finished runs: what it prints, its statuses, and that its documentation is true."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import fake_runs
import pytest

import jaxformer
from jaxformer.ablation.judge import STATUS
from jaxformer.ablation.verdict import Word
from jaxformer.commands import judge
from jaxformer.experiment.command_line import parse_arguments
from jaxformer.experiment.resolution import resolve
from jaxformer.host.docstrings import docstring

pytestmark = pytest.mark.device_free

ROOT = Path(jaxformer.__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    fake_runs.write_root(folder / "experiments")
    fake_runs.write_variant(folder / "experiments", "good", {"model.qk_norm": True})
    fake_runs.write_variant(folder / "experiments", "small", {"model.z_loss": 1e-4})
    fake_runs.write_variant(folder / "experiments", "deeper", {"model.depth": 6}, parent="good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        effects = {"good": -0.03, "small": -0.004}
        fake_runs.write_study(folder / "runs", ["root", *effects], effects=effects, tasks=())
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def test_json_is_one_object_with_the_documented_fields_and_the_status_is_that_of_the_verdict(capsys):
    assert judge.main(["root", "good", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["status"], found["seeds"], found["missing"]) == ("KEEP", 0, [0, 1, 2], [])
    assert found["questions"] == ["good", "small"] and found["interval"][1] < 0
    documented = (ROOT / "docs/how_to/agents.md").read_text().partition("| field |")[2].partition("\n\n")[0]
    names = [name for line in documented.splitlines()[2:] for name in line.split("|")[1].replace("`", "").split(", ")]
    assert [name.strip() for name in names] == list(found)

    assert judge.main(["runs/root", "runs/small", "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert found["missing"][1]["command"][:4] == ["jaxformer", "train", "--experiment=small", "--seed=3"]


def test_a_person_reads_the_verdict_the_reason_and_the_commands(capsys):
    assert judge.main(["root", "small"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "UNDECIDED  small, compared with root" and "KEEP by 24" in lines[1]
    assert lines[2].startswith("  seeds 0, 1, 2; q ") and lines[2].endswith(", over 2 variants of root")
    assert lines[-1] == "    jaxformer train --experiment=small --seed=3 --workdir=runs/small/seed_3"


def test_the_loop_of_the_documentation_keeps_what_is_better_and_drops_the_rest(tmp_path, monkeypatch, capsys):
    """With runs that are written in place of being trained; nothing else is replaced."""
    monkeypatch.chdir(tmp_path)
    fake_runs.write_root(tmp_path / "experiments")
    effects = {"root": 0.0, "try_0": 0.01, "try_1": -0.03, "try_1_kept": -0.03, "try_2": -0.0301}
    trained = []

    def run(command, **_):
        program, name, *arguments = command
        assert program == "jaxformer"
        if name == "judge":
            judge.main(arguments)
            return SimpleNamespace(stdout=capsys.readouterr().out)
        if name == "train":
            options, _ = parse_arguments(arguments)
            trained.append((options.experiment, options.seed))
            effect = effects[options.experiment]
            return fake_runs.write_run(Path("runs"), resolve(options.experiment), options.seed, effect=effect, tasks=())
        promoted = "variant='try_1', parent='root', evidence='0' * 64, verdict='KEEP', first_seed=1000"
        assert (name, arguments) == ("promote", ["try_1", "--parent=root", "--name=try_1_kept"])
        return fake_runs.write_experiment(Path("experiments"), "try_1_kept", f"Promoted({promoted})")

    monkeypatch.setattr(subprocess, "run", run)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how_to/agents.md").read_text(), re.S)
    exec(code, names := {})
    changes = {"model.norm": "layernorm"}, {"model.qk_norm": True}, {"model.z_loss": 1e-4}
    proposals = [{"question": "Why?", "change": change, "expected": (-0.1, 0.1)} for change in changes]
    assert names["improve"]("root", proposals) == "try_1_kept"
    assert {name for name, _ in trained} == set(effects) and len(set(trained)) == len(trained)
    assert min(seed for name, seed in trained if name in ("try_1_kept", "try_2")) == 1000
    assert max(seed for name, seed in trained if name == "try_2") <= 1007


def test_the_statuses_are_those_that_help_and_documentation_show():
    assert set(STATUS) == set(Word) and not {1, 2} & set(STATUS.values())
    page = (ROOT / "docs/how_to/agents.md").read_text()
    for status in set(STATUS.values()):
        words = [word.value for word in STATUS if STATUS[word] == status]
        assert f"  {status}  {' or '.join(words)}\n" in docstring(judge)
        assert f"| {status} | {' or '.join(f'`{word}`' for word in words)} |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["root"], "the following arguments are required: VARIANT"),
        (["root", "god"], "unknown experiment 'god'"),
        (["root", "root"], "cannot be judged against itself"),
        (["runs/root", "runs/none"], "runs/none: no such folder"),
        (["runs/root/seed_0", "good"], "is one run; give the folder of all, runs/root"),
        (["runs/root", "./experiments"], "lie in different folders"),
        (["root", "deeper"], "deeper is compared with good: add it to the study"),
        (["root", "good", "--allow=luck"], "--allow"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_no_verdict(arguments, message, capsys):
    assert judge.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
