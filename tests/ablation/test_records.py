"""The record of a comparison holds what was compared, and one that is damaged costs no other."""

import json
import math
import os

import pytest

from jaxformer.ablation.comparison import BestRate, Comparison
from jaxformer.ablation.records import comparison_file, find_evidence, keep_evidence, read_records, write_record
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Verdict, Word
from jaxformer.statistics.paired_difference import Difference

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

STUDY = Study(parent="root", variants=("gated", "normed"))
KEPT = Comparison("root", "gated", Verdict(Word.KEEP, "better"), 0.004, {"change": {}}, "Is it?", seeds=(0, 1, 2))


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "gated").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "difference",
    [
        Difference(-0.02, 1e-5, 10.0, 2e-6, 7.0, own=(2e-5, 2.0)),
        Difference(-0.02, 1e-5, math.inf, 0.0, math.inf),
        Difference(0.1, 0.0, math.inf, 2e-6, 7.0, seeds_counted=False),
        None,
    ],
)
def test_what_is_written_is_read_again(runs, difference):
    rates = tuple(
        BestRate(0.004, 0.0061, one, (0.004, 0.006), (2.0, math.inf), 0.1, math.nan) for one in (0.005, 0.006)
    )
    one = KEPT._replace(difference=difference, best_rates=rates)
    digest = write_record(runs, STUDY, one)
    (record,) = read_records(runs / "gated")
    assert (record.digest, record.difference, record.recommended_rates) == (digest, difference, (0.005, 0.006))
    assert (record.parent, record.variant, record.word, record.reason) == ("root", "gated", Word.KEEP, "better")
    assert (record.seeds, record.margin) == ((0, 1, 2), 0.004)
    if difference:
        assert record.difference.p_value_below == difference.p_value_below


def test_records_are_in_the_order_of_age_and_one_that_is_damaged_is_named(runs, capsys):
    names = []
    for number, seeds in enumerate((3, 5, 4)):
        study = Study(parent="root", variants=("gated", f"other{number}"))
        write_record(runs, study, KEPT._replace(seeds=tuple(range(seeds)), margin=math.nan))
        names.append(comparison_file(study))
        os.utime(runs / "gated" / names[-1], ns=(0, 10**9 * (5 - number)))
    damaged = runs / "gated" / "comparison_00000000.json"
    whole = json.loads((runs / "gated" / names[0]).read_text())
    for text in (
        "{",
        "[]",
        json.dumps({**whole, "verdict": {"word": "GOOD", "reason": ""}}),
        json.dumps({**whole, "seeds": 3}),
    ):
        damaged.write_text(text)
        assert [one.path.name for one in read_records(runs / "gated")] == [names[2], names[1], names[0]]
        assert f"{damaged}: damaged (" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_evidence_stays_when_the_study_is_judged_again(runs):
    digest = write_record(runs, STUDY, KEPT)
    folder = runs / "gated"
    keep_evidence(read_records(folder)[0])
    write_record(runs, STUDY, KEPT._replace(seeds=(0, 1, 2, 3)))
    assert find_evidence(folder, digest).seeds == (0, 1, 2) and [len(one.seeds) for one in read_records(folder)] == [4]
    assert find_evidence(folder, "0" * 64) is None


def test_evidence_is_found_beside_records_that_are_damaged_and_damaged_itself_it_is_named(runs, capsys):
    digest, folder = write_record(runs, STUDY, KEPT), runs / "gated"
    keep_evidence(read_records(folder)[0])
    (folder / comparison_file(STUDY)).write_text("{")
    assert find_evidence(folder, digest).digest == digest and capsys.readouterr().err == ""
    (folder / comparison_file(STUDY)).unlink()
    path = folder / f"evidence_{digest[:8]}.json"
    path.write_text(path.read_text().replace("better", "worse"))
    assert find_evidence(folder, digest) is None
    error = capsys.readouterr().err
    assert f"{path}: damaged (" in error and "restore it from a copy" in error and "jaxformer report" not in error
