"""What counts in a q-value: all questions about a parent that have a finished run, and nothing twice."""

import os

import pytest

from jaxformer.ablation.q_values import other_questions
from jaxformer.host.files import write_json
from jaxformer.statistics.significance import interim_level

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def add(runs, name, *comparisons, parent="gen1", bundle="", evidence=""):
    """Writes what counts of a finished run, and comparisons of (seeds, p-value, age in seconds)."""
    lineage = {"parents": [parent], "bundle": bundle, "evidence": evidence}
    (runs / name / "seed_0").mkdir(parents=True)
    write_json(runs / name / "seed_0" / "config.json", {"lineage": lineage})
    write_json(runs / name / "seed_0" / "summary.json", {})
    for number, (seeds, p_value, age) in enumerate(comparisons):
        path = runs / name / f"comparison_{number}.json"
        difference = {"mean": -0.1, "p_value": p_value, "seeds_counted": True}
        write_json(path, {"parent": parent, "seeds": list(range(seeds)), "difference": difference})
        os.utime(path, (1e9 - age, 1e9 - age))


def test_each_question_about_a_parent_counts_once_and_removals_among_their_like(tmp_path):
    add(tmp_path, "asked")
    add(tmp_path, "gen1_without_bias", bundle="two fields")
    add(tmp_path, "gen1_without_wsd", bundle="without wsd")
    add(tmp_path, "gen2", evidence="0" * 64)
    add(tmp_path, "asked~1a2b3c")
    add(tmp_path, "of_another", parent="root")
    (tmp_path / "untrained" / "seed_0").mkdir(parents=True)
    assert other_questions(tmp_path, "gen1", ()) == {"asked": 1, "gen1_without_bias": 1}
    assert other_questions(tmp_path, "gen1", ("asked",)) == {"gen1_without_bias": 1}
    assert other_questions(tmp_path, "gen1", (), leaves_out=True) == {"gen1_without_wsd": 1}


def test_the_comparison_of_most_seeds_counts_and_of_those_the_last(tmp_path):
    add(tmp_path, "asked", (3, 1e-4, 0), (5, 3e-4, 10), (5, 2e-4, 1))
    assert other_questions(tmp_path, "gen1", ())["asked"] == pytest.approx(0.05 / interim_level(5) * 1e-4)
