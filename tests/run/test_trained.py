"""A run folder is all that its model needs."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
import scipy.special

from jaxformer.checkpoint.train_state import open_checkpoints
from jaxformer.config import UserError
from jaxformer.evaluation.loglikelihood import encode
from jaxformer.evaluation.sampling import Sampling
from jaxformer.run.trained import load_trained

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.device_free]


@pytest.fixture
def run(uninterrupted, tmp_path, monkeypatch):
    """A run's folder on a machine that has neither its corpus nor its cache."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "nothing"))
    shutil.copytree(uninterrupted("best_fit"), tmp_path / "moved", ignore=lambda *_: [".lock"])
    path = tmp_path / "moved" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["corpus"]["path"] = str(tmp_path / "nothing")
    path.write_text(json.dumps(config))
    return tmp_path / "moved"


def test_folder_alone_gives_the_model_that_was_saved_without_a_warning(run, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):  # Orbax's, which a command silences.
        trained = load_trained(run)
    assert not caplog.records
    assert (trained.step, trained.experiment.name, trained.state.opt_state) == (12, "best_fit", None)
    text = "ba be\n\nbi"
    assert int(trained.state.step) == 12 and int(trained.state.guard.skipped) == 0
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == text
    with open_checkpoints(run / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [8, 12]
    earlier = load_trained(run, 8)
    assert earlier.step == 8
    pairs = zip(*(jax.tree.leaves(each.state.params) for each in (trained, earlier)), strict=True)
    assert any(not np.array_equal(ours, theirs) for ours, theirs in pairs)


def test_it_is_printed_on_one_screen(run):
    trained = load_trained(str(run))
    parameters = sum(x.size for x in jax.tree.leaves(trained.state.params))
    lines = repr(trained).splitlines()
    assert lines[0] == "best_fit, seed 3, step 12 of 12" and lines[1] == f"folder      {run}"
    assert lines[2:5] == [
        f"model       {parameters:,} parameters: 2 blocks, width 16, 2 heads",
        "rows        32 tokens",
        f"tokenizer   400 tokens, {trained.tokenizer.digest[:12]}",
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert lines[5].startswith(f"validation  {summary['validation/loss']:.4f} nats per token, ")
    (run / "metrics.jsonl").unlink()
    assert repr(load_trained(run, 8)).splitlines()[::5] == [
        "best_fit, seed 3, step 8 of 12", "validation  none at this step"
    ]  # fmt: skip


def test_it_writes_and_scores_text_as_its_model_does(run):
    trained = load_trained(run)
    tokenizer, V = trained.tokenizer, trained.tokenizer.vocabulary_size
    sampling = Sampling(tokens=20)
    text = trained.generate("ba du", sampling)
    assert text and trained.generate("ba du", sampling) == text != trained.generate("ba du", Sampling(20, seed=1))
    assert "".join(trained.stream("ba du", sampling)) == text
    for context, continuation in (("ba du", " ka"), ("", "ba"), ("be ", "fo fu")):
        (request,) = encode([(context, continuation)], tokenizer, 32).requests
        logits_TV = trained.logits(context + continuation)
        assert logits_TV.shape == (len(request.tokens), V) and logits_TV.dtype == np.float32
        log_softmax_TV = logits_TV - scipy.special.logsumexp(np.float64(logits_TV), axis=1, keepdims=True)
        places = np.arange(len(request.tokens) - 1)[-request.scored :]
        targets = request.tokens[-request.scored :]
        is_greedy = bool((logits_TV[places].argmax(axis=1) == targets).all())
        nats = pytest.approx(log_softmax_TV[places, targets].sum(), abs=1e-4)
        assert trained.log_likelihood(context, continuation) == (nats, is_greedy)
    likeliest = tokenizer.decode([int(logits_TV[-1].argmax())])
    assert trained.generate("be fo fu", Sampling(tokens=1, temperature=0)) == likeliest


def test_texts_and_options_that_mean_nothing_are_refused(run):
    trained = load_trained(run)
    for take in (trained.generate, trained.logits, lambda text: trained.log_likelihood(text, "ba")):
        with pytest.raises(UserError, match="the text is not UTF-8"):
            take("caf\udce9")
    with pytest.raises(UserError, match=r"top_k \(401\) must be at most the 400 tokens"):
        trained.generate("ba", Sampling(top_k=401))
    with pytest.raises(UserError, match="context and continuation have more than 32 tokens, the length of the rows"):
        trained.log_likelihood("ba " * 40, "du")
    with pytest.raises(UserError, match="the continuation has no token"):
        trained.log_likelihood("ba", "")


def test_folder_of_a_run_on_a_gpu_is_read_without_one(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["config"]["training"]["device"] = "gpu"
    config["config"]["attention"]["implementation"] = "pallas"
    config |= {"device": "NVIDIA H100", "attention": {**config["attention"], "name": "pallas"}}
    path.write_text(json.dumps(config))
    assert load_trained(run).state.model.attention.name == "xla"


def test_record_that_lacks_something_is_reported(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    del config["device"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: not the configuration of a run \('device'\)"):
        load_trained(run)


def test_step_that_is_not_there_is_reported_with_those_that_are(run):
    with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*checkpoints; there are \[8, 12\]"):
        load_trained(run, 5)
    for step in ("8", 8.0, True):
        with pytest.raises(UserError, match=rf"step \({step!r}\) must be a whole number"):
            load_trained(run, step)
    assert load_trained(run, np.int64(8)).step == 8


def test_missing_or_other_tokenizer_is_refused(run, tokenizer_path):
    path = run / "tokenizer.model"
    shutil.copy(tokenizer_path, path)
    with pytest.raises(UserError, match="not the tokenizer of this run; put back a copy of that"):
        load_trained(run)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"tokenizer\.model: not a SentencePiece model"):
        load_trained(run)
    path.unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.model or tokenizer\.json; put back a copy"):
        load_trained(run)


def test_folder_of_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config.json; give the folder of a run"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match="a Hugging Face folder, not a run; give the folder of a run"):
        load_trained(tmp_path)


def test_folder_of_a_checkpoint_is_answered_with_its_run_and_step(run):
    with pytest.raises(UserError, match=rf"no config.json; give {run} and step 8 \(--step=8\)"):
        load_trained(run / "checkpoints" / "8")
