"""Charts: what is left out of a curve hides no extreme, and what is drawn lies where the numbers are."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.run.chart import Event, make_chart, thin
from jaxformer.run.metrics import Series

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=300)


def series(values, every=1):
    return Series(np.arange(1, len(values) + 1) * every, np.asarray(values, float))


@given(NUMBERS, st.integers(1, 50))
def test_thinning_keeps_the_extremes_the_gaps_and_the_sum(values, most):
    points = thin(series(values), most)
    finite = np.array(values)[np.isfinite(values)]
    assert len(points.mean_P) == min(len(values), most)
    assert points.first_P[0] == 1 and points.last_P[-1] == len(values)
    assert (points.first_P[1:] == points.last_P[:-1] + 1).all()
    if not len(finite):
        assert np.isnan([points.mean_P, points.low_P, points.high_P]).all()
        return
    assert np.nanmin(points.low_P) == finite.min() and np.nanmax(points.high_P) == finite.max()
    for first, last, mean in zip(points.first_P, points.last_P, points.mean_P, strict=True):
        part = np.array(values)[first - 1 : last]
        part = part[np.isfinite(part)]
        np.testing.assert_allclose(mean, part.mean() if len(part) else math.nan, rtol=1e-9, atol=1e-6)


def places(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_a_curve_lies_where_its_numbers_and_ticks_are():
    chart = make_chart("a", "A", "", {"a": series([1.0, 2.0, 4.0], every=10)}, scale="from 0")
    (line,) = chart.lines
    at = {tick.label: tick.place for tick in chart.y_ticks}
    assert [y for _, y in places(line.path)] == pytest.approx([at["1"], at["2"], at["4"]], abs=0.01)
    assert [x for x, _ in places(line.path)] == pytest.approx([100 / 3, 200 / 3, 100], abs=0.01)
    assert {tick.label: round(tick.place) for tick in chart.x_ticks} == {"0": 0, "10": 33, "20": 67, "30": 100}
    assert [strip.text for strip in chart.strips] == ["step 10: a 1", "step 20: a 2", "step 30: a 4"]


def test_values_that_are_not_finite_are_gaps_and_no_curve_is_no_chart():
    chart = make_chart("a", "A", "", {"a": series([1, 2, math.nan, 4, math.inf]), "b": series([math.nan])})
    assert [line.name for line in chart.lines] == ["a"] and chart.lines[0].path.count("M") == 2
    assert make_chart("a", "A", "", {"b": series([math.nan, math.inf])}) is None
    assert make_chart("a", "A", "", {}) is None


@pytest.mark.parametrize("scale", ["linear", "from 0", "logarithmic"])
@pytest.mark.parametrize("values", [[3e-7, 8e-7], [2.3, 2.31], [0.5], [1e4, 9e4], [1e-9, 1e3], [40, 41, 44]])
def test_an_axis_has_labels_that_differ_and_a_place_for_each_value(scale, values):
    chart = make_chart("a", "A", "", {"a": series(values)}, scale=scale)
    labels = [tick.label for tick in chart.y_ticks]
    assert 2 <= len(labels) <= 10 and len(set(labels)) == len(labels)
    assert all(0 <= tick.place <= 100 for tick in (*chart.y_ticks, *chart.x_ticks))
    assert all(0 <= y <= 100 for _, y in places(chart.lines[0].path))


def test_every_value_is_told_by_one_strip_and_the_strips_fill_the_width():
    losses, validation = series(range(1, 1601)), series([5.5, 6.5], every=800)
    chart = make_chart("a", "A", "", {"a": losses, "b": validation}, with_range="a")
    assert chart.strips[0].left == 0 and len(chart.strips) == 80
    ends = [strip.left + strip.width for strip in chart.strips]
    assert ends[:-1] == pytest.approx([strip.left for strip in chart.strips[1:]])
    texts = [strip.text for strip in chart.strips]
    assert texts[0] == "steps 1 to 20: a 10.5 (1 to 20)"
    assert [text for text in texts if "b 5.5" in text] == ["steps 781 to 800: a 790.5 (781 to 800); b 5.5"]
    assert sum("b " in text for text in texts) == 2


def test_an_event_is_marked_at_its_loss_or_at_the_top():
    events = [Event(2, 3.0, "^", "spike"), Event(3, math.nan, "x", "skipped"), Event(4, 1e9, "^", "beyond")]
    chart = make_chart("a", "A", "", {"a": series([1, 3, math.nan, 2])}, events=events)
    assert [mark.left for mark in chart.marks] == [50, 75, 100]
    assert chart.marks[0].top == pytest.approx(places(chart.lines[0].path)[1][1], abs=0.01)
    assert [mark.top for mark in chart.marks[1:]] == [0, 0]


def test_the_start_of_a_curve_does_not_hide_the_rest():
    chart = make_chart("a", "A", "nats", {"a": series([100.0, *np.linspace(3, 2, 99)])}, without_start=True)
    assert places(chart.lines[0].path)[0][1] < 0, "it is cut off at the top"
    assert max(float(tick.label) for tick in chart.y_ticks) < 4
    assert chart.about == "nats; the first steps lie above what is shown"
    rising = make_chart("a", "A", "nats", {"a": series(np.linspace(2, 3, 99))}, without_start=True)
    assert rising.about == "nats"
