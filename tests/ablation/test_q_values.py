"""What counts in a q-value: all questions about a parent that have a finished run, and nothing twice."""

import os

import pytest

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.q_values import other_questions
from jaxformer.ablation.records import comparison_file, write_record
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.host.files import write_json
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import interim_level

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def add(runs, name, *, parent="gen1", **lineage):
    """Writes what counts of a finished run."""
    (runs / name / "seed_0").mkdir(parents=True)
    write_json(runs / name / "seed_0" / "config.json", {"lineage": {"parents": [parent], **lineage}})
    write_json(runs / name / "seed_0" / "summary.json", {})


def test_each_question_about_a_parent_counts_once_and_removals_among_their_like(tmp_path):
    add(tmp_path, "asked")
    add(tmp_path, "gen1_without_bias")
    add(tmp_path, "gen1_without_wsd", without="wsd")
    add(tmp_path, "gen2", evidence="0" * 64)
    add(tmp_path, "asked~1a2b3c")
    add(tmp_path, "other~1a2b3c", overrides={"optimizer.learning_rate": [1, 2], "model.width": [1, 2]})
    add(tmp_path, "of_another", parent="root")
    (tmp_path / "untrained" / "seed_0").mkdir(parents=True)
    assert other_questions(tmp_path, "gen1", ()) == {"asked": 1, "gen1_without_bias": 1}
    assert other_questions(tmp_path, "gen1", ("asked",)) == {"gen1_without_bias": 1}
    assert other_questions(tmp_path, "gen1", (), leaves_out=True) == {"gen1_without_wsd": 1}


def test_the_newest_comparison_counts_and_one_of_another_parent_does_not(tmp_path):
    add(tmp_path, "asked")
    for age, (seeds, difference) in enumerate(((3, Difference(-0.1, 1e-3, 4.0)), (5, Difference(-0.2, 1e-6, 2.0)))):
        verdict = Verdict(Word.UNDECIDED, "")
        one = Comparison("gen1", "asked", verdict, 0.01, {}, seeds=tuple(range(seeds)), difference=difference)
        for parent, newer in (("root", 5), ("gen1", 0)):
            study = Study(parent=parent, variants=("asked", str(seeds)))
            one = one._replace(parent=parent)
            write_record(tmp_path, study, one)
            os.utime(tmp_path / "asked" / comparison_file(study), ns=(0, 10 + newer - age))
    expected = 0.05 / interim_level(3) * Difference(-0.1, 1e-3, 4.0).p_value_below
    assert other_questions(tmp_path, "gen1", ())["asked"] == pytest.approx(expected)
    write_record(tmp_path, Study(parent="gen1", variants=("asked",)), one._replace(difference=None))
    assert other_questions(tmp_path, "gen1", ())["asked"] == 1
