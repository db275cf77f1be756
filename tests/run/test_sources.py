"""The digest of the sources tells one program from another, and looks past words."""

import ast

import pytest

from jaxformer.run import sources


def digest_with(monkeypatch, name, before, after):
    """Returns the digest of the sources if one of them had another text."""

    def parse(module):
        source = sources._path(module).read_text()
        if module == name:
            assert before in source
            source = source.replace(before, after)
        return ast.parse(source)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_parse", parse)
        return sources.code_digest.__wrapped__()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("jaxformer.model", "INITIAL_SCALE = 0.02", "INITIAL_SCALE = 0.03"),
        ("jaxformer.attention.flash_kernels", "jnp.", "np."),
        ("jaxformer.attention.cudnn", "jnp.", "np."),
        ("jaxformer.data.packing", "DIGESTS = 1 << 48", "DIGESTS = 1 << 40"),
        ("jaxformer.evaluation.scores", "math.log(2)", "math.log(3)"),
        ("jaxformer.loop", "step + 1", "step + 2"),
        ("jaxformer.optimizer", "_MUON_RMS = 0.2", "_MUON_RMS = 0.3"),
    ],
)
def test_the_code_digest_tells_what_computes(monkeypatch, name, before, after):
    assert digest_with(monkeypatch, name, before, after) != sources.code_digest()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("jaxformer.model", "# Standard deviation of matrices", "# The deviation of matrices"),
        ("jaxformer.model", "The shape of the model and its options.", "What a model is."),
        ("jaxformer.report.html", "def ", "def other_"),
        ("jaxformer.ablation.verdict", "0.8", "0.9"),
        ("jaxformer.run.progress", "tokens/s", "tokens per second"),
    ],
)
def test_the_code_digest_looks_past_words_and_what_only_tells(monkeypatch, name, before, after):
    assert digest_with(monkeypatch, name, before, after) == sources.code_digest()
