"""What a person reads and sees of a tuned learning rate."""

import math

import pytest

from jaxformer.ablation.tuning import fit
from jaxformer.report.style import drawing, to_svg
from jaxformer.report.tuning import describe, draw_tuning, rate_table, tuned_file

pytestmark = pytest.mark.device_free


def trials(best, seeds=3):
    return {(o, s): 3 + 0.1 * (o - best) ** 2 + 0.01 * s * (o + 2) for o in (-1, 0, 1, 2, 3) for s in range(seeds)}


def test_rates_are_listed_with_their_seeds_and_the_own_one_is_marked():
    table = rate_table(fit("small", 1e-3, trials(1) | {(4, 0): math.inf}, 3))
    assert table[0].split() == ["learning", "rate", "bits", "per", "byte", "each", "seed"]
    assert table[2].split() == ["0.001*", "3.1200", "3.1000", "3.1200", "3.1400"]
    assert table[-1].split() == ["0.016", "diverged", "diverged"]


def test_the_cost_of_the_own_rate_is_printed_with_its_error():
    _, own, use = describe(fit("small", 1e-3, trials(1), 3))
    assert own.startswith("The experiment's own, 0.001, costs 0.0") and " ± " in own
    assert "mean plus one standard deviation" in use
    _, own, use = describe(fit("small", 1e-3, trials(1, 1), 1))
    assert " ± " not in own and use == "Use 0.002."
    steep = {(o, 0): math.inf if o == 1 else 3.0 - o for o in (-1, 0, 1)}
    (only,) = describe(fit("small", 1e-3, steep, 1))
    assert only.startswith("Best of the rates tried: 0.001; a neighbouring rate diverged")


def test_the_picture_holds_each_run_and_both_rates():
    tuning = fit("small", 1e-3, trials(1) | {(4, 0): math.inf}, 3)
    with drawing():
        figure = draw_tuning(tuning)
        svg = to_svg(figure)
    (axes,) = figure.axes
    assert len(axes.lines[0].get_xdata()) == 15 and svg.startswith(b"<?xml")
    assert {text.get_text().strip() for text in axes.texts} == {"diverged", "its own", f"use {tuning.recommended:g}"}


def test_the_tuned_experiment_is_a_variant_that_a_study_takes(tmp_path, experiment_files):
    from jaxformer.experiment.resolution import resolve

    (tmp_path / "small.py").write_text(experiment_files["best_fit"].read_text())
    tuning = fit("small", 1e-2, trials(1), 3)
    path = tmp_path / "small_tuned.py"
    path.write_text(tuned_file(tuning, "jaxformer tune --experiment=small"))
    resolved = resolve(str(path))
    assert resolved.lineage.change == {"optimizer.learning_rate": (1e-2, tuning.recommended)}
    assert resolved.parents[0].name == "small" and "tune" in resolved.lineage.source
