"""Simulated projects: the order that is recommended saves hours, and expectations are read from the reports."""

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def simulated():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import simulated_projects

        yield simulated_projects


def test_the_recommended_order_reaches_a_gain_in_fewer_hours_and_all_orders_spend_alike_at_the_end(simulated):
    found, courses = simulated.count(simulated.LAWS[0], 30)
    hours = {name: each[0] for name, each in found["hours to half of what is attainable"].items()}
    assert hours["recommended"] < 0.9 * hours["expected gain"] < 0.9 * hours["random"]
    ends = [course.hours_PT[:, -1].mean() for course in courses.values()]
    assert max(ends) < 1.2 * min(ends), "each asks every question"
    assert all((np.diff(course.hours_PT, axis=1) > 0).all() for course in courses.values())


def test_nobody_gains_more_than_who_knows_and_a_gain_of_a_kind_lowers_the_next(simulated):
    drawn = simulated.draw_projects(simulated.LAWS[0], 3, np.random.default_rng(0))
    effect_PN = np.full(drawn.effect_PN.shape, 0.0)
    effect_PN[:, [0, 1, 6]] = -10.0
    known = simulated.attainable(drawn._replace(effect_PN=effect_PN), (0.5, 0.9))
    assert known == pytest.approx(10 + 10 * 0.9 + 10 * 0.5 * 0.9)


def test_a_kept_change_saves_its_share_of_what_those_before_it_left(simulated):
    gain_PT = simulated.PARENT.slope * np.log([[2.0, 4.0]])
    course = simulated.Course(np.array([[1.0, 2.0]]), gain_PT, np.ones((1, 2)))
    assert simulated.worth(course, 100.0) == pytest.approx(np.array([[0.0, 50 - 1, 75 - 2]]))


def test_the_prior_is_that_of_the_reports(simulated, capsys):
    simulated.print_expectations()
    printed = capsys.readouterr().out
    assert printed.startswith("30 questions: 11 as expected, 8 better, 11 worse"), (
        "update the comment of PRIOR, the page, and PRIOR if the fit has moved by more than an error"
    )
