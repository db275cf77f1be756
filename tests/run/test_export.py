"""A run folder exported by the command, where neither torch nor transformers is installed."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.commands.export import main
from jaxformer.config import UserError
from jaxformer.huggingface.comparison import NOT_INSTALLED
from jaxformer.huggingface.reading import read_pretrained
from jaxformer.huggingface.tensors import flat_parameters, with_vocabulary
from jaxformer.run.export import export_run
from jaxformer.run.trained import load_trained

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


@pytest.fixture
def run(uninterrupted, tmp_path, monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(uninterrupted("best_fit"), tmp_path / "run", ignore=lambda *_: [".lock"])
    return tmp_path / "run"


def test_command_writes_the_parameters_and_the_card_of_a_step(run, tmp_path, capsys):
    assert main(["--workdir=run", "--out=new/out", "--step=12"]) == 0
    printed = capsys.readouterr()
    assert re.match(
        r"run, step 12: ArceeForCausalLM of [\d,]+ parameters in float32, written to new/out\n", printed.out
    )
    assert NOT_INSTALLED.describe("float32") in printed.out and printed.err == ""
    out, trained = tmp_path / "new" / "out", load_trained(run)
    back = read_pretrained(out)
    for name, value in with_vocabulary(flat_parameters(trained.state.params), 400).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    card = (out / "README.md").read_text()
    assert NOT_INSTALLED.describe("float32") in card and trained.experiment.question in card
    summary = json.loads((run / "summary.json").read_text())
    assert f"**{summary['validation/bits_per_byte']:.4f} ± " in card
    assert "jaxformer train --experiment=best_fit --seed=3\n" in card
    assert "\nbest_fit did not come with jaxformer: --experiment takes the path of the" in card
    assert "jaxformer export --workdir=run --out=new/out --step=12\n" in card
    assert re.search(r"\| corpus_0.*corpus_0\.jsonl \| not stated \| \d+ \|", card)


def test_broken_torch_leaves_the_folder_uncompared_and_text_is_a_path(run, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open\\nit')")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "torch")
    found = export_run(load_trained(run), "out", dtype="bfloat16").comparison.describe("bfloat16")
    assert "because torch or transformers fails to import (OSError: libcudart.so.12: cannot open it); " in found
    assert found.endswith(" are the run's, rounded to bfloat16.")
    assert found in (tmp_path / "out" / "README.md").read_text()


def test_url_in_place_of_a_folder_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"^'hf://a/b' is a URL; give a folder of this machine"):
        export_run(load_trained(run), "hf://a/b")
    assert not (tmp_path / "hf:").exists()


@pytest.mark.parametrize(("name", "experiment"), [("baseline~1a2b3c", ""), ("notes", "baseline")])
def test_card_has_the_validation_of_a_step_in_training_and_a_command_that_can_be_typed(run, name, experiment):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["experiment"], config["lineage"]["experiment"] = name, experiment
    config["lineage"]["overrides"] = {
        "init_from": ["", "/home/me/base"],
        "corpus.path": ["", "my notes.txt"],
        "model.qk_norm": [False, True],
    }
    path.write_text(json.dumps(config))
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    trained = load_trained(run)
    export_run(trained, Path("out"))
    card = Path("out", "README.md").read_text()
    assert f"**{trained.validation()['bits_per_byte']:.4f} ± " in card
    overrides = "--init_from=base --corpus.path='my notes.txt' --model.qk_norm=true"
    named = f"--name={name} " if experiment else ""
    assert f"jaxformer train --experiment=baseline --seed=3 {named}{overrides}\n" in card
    assert "did not come with" not in card
    assert "Absolute paths are shortened to their last name." in card and "/home" not in card


def option_without_an_architecture(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["config"]["model"]["logit_soft_cap"] = 30.0
    path.write_text(json.dumps(config))


def taken(run):
    (run.parent / "out").mkdir()
    (run.parent / "out" / "file").write_text("")


@pytest.mark.parametrize(
    ("arrange", "options", "words"),
    [
        (option_without_an_architecture, [], "ArceeForCausalLM, except for model.logit_soft_cap = 30.0"),
        (taken, [], "folder out: it exists and is not an empty folder; choose another, or remove it"),
        (lambda run: (run.parent / "out").write_text(""), [], "folder out: it exists and is not an empty folder"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "12"), ["--step=12"], "no checkpoint of step 12"),
        (lambda run: (run / "tokenizer.model").unlink(), [], "put back a copy of the tokenizer"),
        (lambda run: shutil.rmtree(run), [], "run folder run: no config.json; give the folder of a run"),
        (lambda run: None, ["--dtype=int8"], "invalid choice: 'int8'"),
        (lambda run: None, ["--out=hf://a/b"], "is a URL; give a folder of this machine"),
    ],
)
def test_what_cannot_be_exported_ends_in_one_line_and_writes_nothing(arrange, options, words, run, capsys):
    arrange(run)
    before = sorted(path for path in run.parent.rglob("*") if "checkpoints" not in path.parts)
    assert main(["--workdir=run", "--out=out", *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path for path in run.parent.rglob("*") if "checkpoints" not in path.parts) == before
