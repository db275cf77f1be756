"""The command that tells whether an effect at small sizes holds at a larger one, on runs that nothing trained."""

import json
import re
import shutil

import fake_runs
import pytest

from jaxformer.ablation import sizes
from jaxformer.commands import transfer as command
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.resolution import resolve, resolve_variant_of

pytestmark = pytest.mark.device_free

SIZES = {"tiny": (2, 20), "little": (4, 40), "middle": (8, 80), "target": (16, 160)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of two changes at three sizes: one is worth the same at all, the other is trained at two."""
    folder = tmp_path_factory.mktemp("transfer")
    for name, (depth, steps) in SIZES.items():
        fake_runs.write_root(folder / "experiments", name, steps=steps, model__depth=depth)
    fake_runs.write_variant(folder / "experiments", "good", {"model.qk_norm": True}, parent="little")
    fake_runs.write_variant(folder / "experiments", "deeper", {"model.depth": 6}, parent="little")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        noise = fake_runs.Noise(run=0.001, effect=0.05)
        for size in ("tiny", "little", "middle"):
            parent = resolve(size)
            variant = resolve_variant_of(parent, "good")
            for seed in range(3):
                options = {"noise": noise, "tasks": (), "documents": 12}
                fake_runs.write_run(folder / "runs", parent, seed, **options)
                fake_runs.write_run(folder / "runs", variant, seed, effect=-0.05, **options)
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sizes, "list_experiments", lambda: [*SIZES, "good", "deeper"])  # The others take seconds.


def test_an_effect_that_is_the_same_at_three_sizes_transfers(capsys):
    assert command.main(["--variants=good", "--target=target", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["good"]
    assert found["word"] == "TRANSFERS" and found["interval"][0] < -0.05 < found["interval"][1] < 0
    # A variant differs in its depth alone and is a question, not a size.
    assert [one["parent"] for one in found["sizes"]] == ["tiny", "little", "middle"]
    assert [one["variant"] for one in found["sizes"]] == ["good@tiny", "good", "good@middle"]
    assert found["compute"] == training_flops(resolve("target").experiment)
    assert not found["sizes"][0]["tuned"] and found["designs"] == {}


def test_with_two_sizes_nothing_is_known_and_the_cheapest_design_is_printed_at_80_columns(place, capsys, monkeypatch):
    shutil.move(place / "runs/good@middle", place / "kept")
    monkeypatch.setattr(command, "output_columns", lambda: 79)
    try:
        assert command.main(["--variants=good", "--target=target", "--effect=0.03"]) == 0
    finally:
        shutil.move(place / "kept", place / "runs/good@middle")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["UNKNOWN  good, at target", "  2 of at least 3 sizes: fewer show no trend."]
    commands = [line.strip() for line in lines if line.startswith("      ")]
    assert "jaxformer ablate --parent=middle --variants=good --seeds=3" in commands
    assert max(len(line) for line in lines if line.strip() not in commands) < 80
    assert any("nothing tuned the learning rate of tiny, little" in line for line in lines)
    assert (place / lines[-1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--variants=deeper"],
            r"deeper and its parent have finished runs at no size of target .*: ask it .* tiny,",
        ),
        (["--variants=good", "--effect=0"], r"--effect \(0.0\) must be above 0"),
        (["--variants=good", "--hours=-1"], r"--hours \(-1.0\) must be above 0"),
        (["--variants=,"], "--variants names no variant"),
        (["--variants=good@tiny"], "good@tiny is a change at one size: name it alone, good"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, capsys):
    assert command.main([*arguments, "--target=target"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
