"""A run with a tokenizer.json: trained, validated, scored on a task, and loaded again from its folder alone."""

import json

import numpy as np
import pytest
import tiny_run

from jaxformer.config import UserError
from jaxformer.data.tokenizer import load_tokenizer
from jaxformer.run.trained import load_trained
from jaxformer.train import main

json_tokenizers = pytest.importorskip("json_tokenizers")

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


def assert_reported(errors: str, loss: dict | None, shape: str) -> None:
    """The tokenizer that loses text is reported once, with what is recorded; the other not at all."""
    assert loss is not None and 0 < loss["documents"] <= 300
    assert errors.count("the tokenizer loses text: ") == (shape == "bert")
    assert (loss["changed_documents"] > 0) is (shape == "bert") is (loss["before"] != loss["after"])
    if shape == "bert":
        assert f"jaxformer: corpus corpus_0: the tokenizer loses text: {loss['changed_documents']} of" in errors
        assert f"{loss['before']} -> {loss['after']}" in errors


@pytest.mark.parametrize("shape", ["gpt2", "bert"])
def test_a_run_with_a_tokenizer_json_needs_nothing_but_its_folder(
    experiment_files, make_texts, tmp_path, monkeypatch, capsys, shape
):
    place, run = tmp_path / "tokenizer", tmp_path / "run"
    json_tokenizers.save(json_tokenizers.SHAPES[shape](make_texts(200)), place, model_max_length=3)
    (tmp_path / "lambada.jsonl").write_text('{"text": "ba du ka ki"}\n{"text": "be  fo"}\n')
    options = [f"--tokenizer.path={place}", f"--evaluation.task_data={tmp_path}", "--evaluation.tasks=lambada"]
    assert main([*tiny_run.command(experiment_files["best_fit"], run), *options]) == 0
    summary, record = (json.loads((run / name).read_text()) for name in ("summary.json", "config.json"))
    assert_reported(capsys.readouterr().err, record["corpora"]["corpus_0"]["round_trip"], shape)
    assert np.isfinite(summary["validation/bits_per_byte"]) and 0 <= summary["lambada/acc"] <= 1
    assert not (run / "tokenizer.model").exists()

    given = load_tokenizer(place)
    for path in place.iterdir():
        path.unlink()
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "nothing"))
    tokenizer = load_trained(run).tokenizer
    assert (tokenizer.digest, tokenizer.kind) == (record["digests"]["tokenizer"], "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (given.bos_id, given.eos_id)
    assert tokenizer.encode("ba du") == given.encode("ba du")
    (run / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    with pytest.raises(UserError, match=r"tokenizer\.json: not the tokenizer of this run; put back a copy of that"):
        load_trained(run)
