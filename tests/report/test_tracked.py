"""A study's report as trackers are given it."""

import pytest

import jaxformer.commands.report
from jaxformer.report.tracked import verdicts

pytestmark = pytest.mark.device_free


def test_verdicts_are_those_of_the_study(outcome):
    found = verdicts(outcome)
    assert [*found] == [each.name for each in outcome.experiments[1:]]
    kept, comparison = found["muon"], next(one for one in outcome.comparisons if one.variant == "muon")
    assert kept["verdict"] == "KEEP" and kept["difference"] == comparison.difference.mean < 0
    assert found["deep"]["verdict"] == "REVERT" and "difference" not in found["deep"]


def test_report_goes_to_tensorboard_with_pictures_and_goes_on(folder, capsys):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = ["--parent=root", "--variants=muon,slow", "--output=tracked", "--tracking.to=tensorboard"]
    for _ in range(2):  # No run was finished in between.
        assert jaxformer.commands.report.main(command) == 0
    fewer = ["--parent=root", "--variants=muon", *command[2:]]  # Another report, of fewer runs.
    assert jaxformer.commands.report.main(fewer) == jaxformer.commands.report.main(fewer) == 0
    events = event_accumulator.EventAccumulator("tracked", purge_orphaned_data=False)
    events.Reload()
    assert {"forest", "graph"} <= {*events.Tags()["images"]}
    assert [each.step for each in events.Images("forest")] == [9, 10]
    assert "Muon" in events.Tensors("report")[-1].tensor_proto.string_val[0].decode().title()
    assert '"verdict": "KEEP"' in events.Tensors("summary")[-1].tensor_proto.string_val[0].decode()
    capsys.readouterr()
    assert jaxformer.commands.report.main(["--parent=root", "--variants=muon", "--tracking.to=wandbb"]) == 2
    assert "did you mean wandb?" in capsys.readouterr().err
