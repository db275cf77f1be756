"""What counts in a q-value: all questions about a parent that have a finished run, and nothing twice."""

import pytest

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.q_values import other_questions
from jaxformer.ablation.records import write_record
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


def test_the_comparison_of_most_seeds_counts_and_one_of_another_parent_does_not(tmp_path):
    add(tmp_path, "asked")
    for seeds, difference in ((3, Difference(-0.2, 1e-6, 2.0)), (5, Difference(-0.1, 1e-3, 4.0))):
        verdict = Verdict(Word.UNDECIDED, "")
        one = Comparison("gen1", "asked", verdict, 0.01, {}, seeds=tuple(range(seeds)), difference=difference)
        write_record(tmp_path, Study(parent="gen1", variants=("asked", str(seeds))), one)
        write_record(
            tmp_path, Study(parent="root", variants=("asked", str(seeds))), one._replace(parent="root", seeds=(0,) * 8)
        )
    expected = 0.05 / interim_level(5) * Difference(-0.1, 1e-3, 4.0).p_value_below
    assert other_questions(tmp_path, "gen1", ())["asked"] == pytest.approx(expected)
