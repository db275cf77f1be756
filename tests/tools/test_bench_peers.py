"""The benchmark beside other projects, with a checkout that only looks like nanoGPT's."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"

# As much of nanoGPT's model.py as the benchmark touches; it is to be found by its path, with what it was given.
FAKE_MODEL = """
import dataclasses
import torch

@dataclasses.dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config == GPTConfig(24, 320, 1, 2, 8, 0.0, False), config
        self.table = torch.nn.Parameter(torch.zeros(320, 8))

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate)

    def forward(self, tokens, targets):
        assert tokens.shape == targets.shape == (2, 24)
        return None, self.table[tokens].square().mean()
"""


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import bench_peers
        import step_cases

        patch.setitem(step_cases.SIZES, "tiny", step_cases.Size(320, 8, 1, 2, (2, 24), (2, 24)))
        yield bench_peers


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "model.py").write_text(FAKE_MODEL)
    return tmp_path


def fake_step(name):
    """Stands for a step: a function without effect, and a number of parameters; or what keeps it from being built."""
    if name == "broken":
        raise ImportError("no module\nnamed so")
    return (lambda: None), 7


def test_nanogpt_takes_the_shapes_and_steps(bench, checkout):
    pytest.importorskip("torch")
    size = bench.SIZES["tiny"]
    run, parameters = bench.peer_steps.nanogpt_step(checkout, size, 2, 24, 3, compiled=False)
    sys.path.remove(str(checkout))
    del sys.modules["model"]
    assert parameters == 320 * 8
    run()


def test_our_step_has_as_many_parameters_as_reported(bench):
    run, parameters = bench.step_cases.jaxformer_step(bench.case_of("tiny"), turn=2)
    assert parameters == 320 * 8 + (8 * 24 + 8 * 8 + 2 * 8 * 32 + 2 * 8) + 8
    run()


def test_a_line_holds_both_in_turns_and_their_ratio(bench, monkeypatch):
    seconds = {"peer": iter([9, 9, 4, 6, 8]), "jaxformer": iter([9, 9, 2, 2, 2])}

    class Fake:
        def __init__(self, build):
            self.name = "peer" if build == "peer" else "jaxformer"

        def parameters(self):
            return 5

        def seconds(self):
            return next(seconds[self.name])

        def stop(self):
            pass

    monkeypatch.setattr(bench, "Served", Fake)
    line = bench.compare(bench.case_of("tiny"), "peer", rounds=3, turn=2)
    assert line["ratios"] == [2, 3, 4]
    assert line["speed_against_peer"] == 3
    assert line["milliseconds"] == {"peer": 3000, "jaxformer": 1000}
    assert line["tokens_per_second"] == {"peer": 16, "jaxformer": 48}
    json.dumps(line)
    assert "3.00 x nanodo (2.00 to 4.00)" in bench.describe({"peer": "nanodo", **line})


def test_a_peer_that_cannot_be_built_is_reported_in_a_line(bench):
    served = bench.Served(functools.partial(fake_step, "broken"))
    with pytest.raises(bench.PeerFailed, match=r"^ImportError: no module$"):
        served.parameters()
    served.stop()
    text = bench.describe({"peer": "nanodo", "failed": "ImportError: no module"})
    assert text.split() == ["nanodo", "cannot", "run:", "ImportError:", "no", "module"]


def test_a_step_is_served_from_another_process(bench):
    served = bench.Served(functools.partial(fake_step, "good"))
    assert served.parameters() == 7
    assert 0 <= served.seconds() < 60
    served.stop()


def test_the_commit_of_a_checkout_is_reported(bench, tmp_path):
    assert bench.commit(tmp_path / "none") is None
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a", "--allow-empty"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert len(bench.commit(tmp_path)) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name a checkout: --nanogpt=PATH or --nanodo=PATH"),
        (["--nanogpt=/nowhere"], "--nanogpt (/nowhere) is not a folder"),
        (["--nanogpt=.", "--sizes=9b"], "unknown sizes: 9b; known: 1m, 27m"),
        (["--nanogpt=.", "--modes=fast"], "unknown modes: fast; known: eager, compile"),
    ],
)
def test_wrong_options_are_refused_in_a_line(bench, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *options])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
