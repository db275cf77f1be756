"""Runs beside one another: what differs, by how much, and why that is no evidence."""

import json
import shutil

import numpy as np
import pytest
from pages import Page

import jaxformer.commands.compare
from jaxformer.ablation.comparability import ONE_DOCUMENT
from jaxformer.ablation.side_by_side import contrast_runs, read_shown
from jaxformer.report.formatting import NOTHING
from jaxformer.report.side_by_side import HEADINGS, comparison_text, describe_contrast, describe_runs
from jaxformer.run.metrics import Series

pytestmark = pytest.mark.device_free


def shown(folder, *names):
    return [read_shown(folder / "runs" / name) for name in names]


def test_difference_of_two_runs_is_paired_by_document_and_no_evidence(folder):
    first, other = shown(folder, "root/seed_0", "muon/seed_0")
    (contrast,) = contrast_runs([first, other])
    assert dict(contrast.changes) == {"optimizer.name": ("adamw", "muon")}
    differing, size = 0.0, 0
    for name, documents in first.finished.validation.items():
        differing += (other.finished.validation[name].bits - documents.bits).sum()
        size += documents.text_bytes.sum()
    np.testing.assert_allclose(contrast.difference.mean, differing / size)
    assert contrast.seeds == 1 and not contrast.difference.seeds_counted
    assert any(text.startswith("seeds: only one") for text in contrast.reservations)
    assert "ad hoc, not evidence:" in dict(describe_contrast(contrast).lines)["verdict"]


def test_seeds_of_an_experiment_are_one_side_whose_difference_is_that_of_the_study(folder, outcome):
    names = [f"{name}/seed_{seed}" for seed in range(3) for name in ("muon", "root")]
    (contrast,) = contrast_runs(shown(folder, "root/seed_1", *[name for name in names if name != "root/seed_1"]))
    assert contrast.seeds == 3 and [run.record["seed"] for run in contrast.first] == [1, 0, 2]
    comparison = next(one for one in outcome.comparisons if one.variant == "muon")
    np.testing.assert_allclose(contrast.difference.mean, comparison.difference.mean)
    assert "jaxformer ablate --parent=root --variants=muon" in str(describe_contrast(contrast).lines)


def test_two_seeds_of_one_experiment_show_what_a_change_must_exceed(folder):
    (contrast,) = contrast_runs(shown(folder, "root/seed_0", "root/seed_1"))
    assert not contrast.changes and contrast.seeds == 0 and contrast.difference is not None
    assert describe_contrast(contrast).heading == "root seed 1 beside root seed 0"
    assert any("must exceed" in text for text in contrast.reservations)


def test_change_that_was_set_by_hand_is_said_to_be_declared_nowhere(folder):
    first, other = shown(folder, "root/seed_0", "muon/seed_0")
    record = other.record | {"lineage": other.record["lineage"] | {"experiment": "root", "parents": []}}
    by_hand = other._replace(record=record, finished=other.finished._replace(record=record))
    (contrast,) = contrast_runs([first, by_hand])
    assert contrast.reservations[0] == "change: both are of root, and no file declares their difference"


@pytest.mark.parametrize("names", [("muon", "slow"), ("muon", "root")])
def test_a_study_is_recommended_of_a_declared_change_alone(folder, names):
    runs = shown(folder, *[f"{name}/seed_{seed}" for name in names for seed in range(3)])
    (contrast,) = contrast_runs(runs)
    assert contrast.reservations[0] == f"change: {names[1]} is not a declared change of {names[0]}"
    assert "jaxformer ablate" not in str(describe_contrast(contrast).lines)


def test_a_study_is_recommended_by_the_names_of_experiments_that_runs_under_other_names_are_of(folder):
    def renamed(run):
        record = run.record | {"experiment": "mine", "lineage": run.record["lineage"] | {"experiment": "muon"}}
        return run._replace(record=record, finished=run.finished._replace(record=record))

    runs = shown(folder, *[f"{name}/seed_{seed}" for name in ("root", "muon") for seed in range(3)])
    (contrast,) = contrast_runs([*runs[:3], *map(renamed, runs[3:])])
    described = describe_contrast(contrast)
    assert described.heading == "mine beside root" and "ablate --parent=root --variants=muon`" in str(described.lines)


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 1, 1, 0)])
def test_the_same_runs_twice_are_two_sides_that_are_named_by_their_folders(folder, tmp_path, order):
    runs = shown(folder, *[f"root/seed_{seed}" for seed in order[:2]])
    for seed in order[2:]:
        workdir = shutil.copytree(folder / "runs/root" / f"seed_{seed}", tmp_path / f"seed_{seed}")
        record = json.loads((workdir / "config.json").read_text())
        record["starts"][0]["code"] = "of another version"
        (workdir / "config.json").write_text(json.dumps(record))
        runs.append(read_shown(workdir))
    (contrast,) = contrast_runs(runs)
    assert contrast.seeds == 2 and contrast.difference.mean == 0
    assert (
        contrast.reservations[0] == "the same run twice: only code, versions, device or the number of cores can differ"
    )
    assert any(text.startswith("code: ") for text in contrast.reservations)
    described = describe_contrast(contrast)
    assert described.heading == f"{runs[2].workdir} beside {runs[0].workdir}"
    assert described.lines[0] == ("differs by", ["nothing that affects what is learned"])


def test_why_there_is_no_difference_is_said(folder):
    def cut(run):
        read = {
            name: one._replace(
                documents=one.documents[:1], bits=one.bits[:1], text_bytes=one.text_bytes[:1], sources=one.sources[:1]
            )
            for name, one in run.finished.validation.items()
        }
        return run._replace(finished=run.finished._replace(validation=read))

    first, other = shown(folder, "root/seed_0", "muon/seed_0")
    for runs, why in (
        ((cut(first), cut(other)), f"not compared: {ONE_DOCUMENT}"),
        ((first, cut(other)), "not compared: they were validated on different documents"),
        ((first, other._replace(finished=None)), "not compared: one is not finished"),
    ):
        (contrast,) = contrast_runs(runs)
        assert contrast.difference is None
        assert dict(describe_contrast(contrast).lines)["bits per byte"] == [why]


def test_a_run_that_tells_no_speed_has_a_dash(folder):
    (run,) = shown(folder, "root/seed_0")
    series = {name: each for name, each in run.series.items() if name != "train/tokens_per_second"}
    row = dict(zip(HEADINGS, describe_runs([run._replace(series=series)])[0], strict=True))
    assert row["tokens/s"] == NOTHING


def test_the_speed_of_a_run_is_that_of_all_its_steps(folder):
    (run,) = shown(folder, "root/seed_0")
    rates = Series(np.array([1, 2]), np.array([100.0, 300.0]))
    described = describe_runs([run._replace(series={**run.series, "train/tokens_per_second": rates})])
    assert dict(zip(HEADINGS, described[0], strict=True))["tokens/s"] == "150"


def test_run_that_is_not_finished_is_shown_as_far_as_it_is(folder, tmp_path):
    shutil.copytree(folder / "runs/muon/seed_0", tmp_path / "mine")
    (tmp_path / "mine/summary.json").unlink()
    runs = [*shown(folder, "root/seed_0"), read_shown(tmp_path / "mine")]
    (contrast,) = contrast_runs(runs)
    assert contrast.difference is None and any("not finished" in text for text in contrast.reservations)
    text = comparison_text(runs, [contrast], 80)
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]  # A path is not broken.
    assert "muon" in text and max(map(len, lines)) <= 80


def test_finished_run_in_a_folder_of_any_name_is_compared(folder, tmp_path):
    shutil.copytree(folder / "runs/muon/seed_0", tmp_path / "mine")
    (contrast,) = contrast_runs([*shown(folder, "root/seed_0"), read_shown(tmp_path / "mine")])
    assert contrast.difference is not None


def test_the_command_prints_the_runs_and_writes_a_page_that_loads_nothing(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    names = [f"runs/{name}/seed_0" for name in ("root", "muon", "long")]
    assert jaxformer.commands.compare.main([*names, f"--page={page}"]) == 0
    printed = capsys.readouterr().out
    assert "optimizer.name: adamw" in printed and printed.endswith(f"curves: {page}\n")
    Page(page.read_text(encoding="utf-8")).assert_nothing_is_loaded_or_run()
    assert jaxformer.commands.compare.main(names[:2]) == 0
    assert (folder / "runs/root/compare_root_seed_0_muon_seed_0.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/root/seed_0"], "give at least two runs to compare"),
        (["runs/root/seed_0", "runs/root/../root/seed_0"], "give at least two runs to compare"),
        (["runs/root/seed_0", "runs"], "run folder runs: no config.json; give the folder of a run"),
        (["runs/root/seed_0", "runs/muon/seed_0", "--page=runs/none/page.html"], "choose another --page"),
    ],
)
def test_the_command_refuses_in_one_line(folder, capsys, arguments, message):
    assert jaxformer.commands.compare.main(arguments) == 2
    output = capsys.readouterr().err
    assert message in output and output.startswith("jaxformer: ") and output.count("\n") == 1
