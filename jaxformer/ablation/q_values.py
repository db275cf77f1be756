"""The q-value of a comparison: over all questions about the same parent, asked by any command.

A question counts once a run of it is finished, at any learning rate and with any result; otherwise one could choose to
count the fewest. Removals of a kept change (`NAME_without_CHANGE`) are another kind of question than new changes, and
count separately. A promoted variant was a question under its first name, and does not count again.
"""

import collections
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.records import read_records
from jaxformer.ablation.seeds import is_screening_seed
from jaxformer.ablation.verdict import Rule, kept_by_chance
from jaxformer.experiment.best_rate import RATE
from jaxformer.experiment.variant import AD_HOC
from jaxformer.host.files import read_json_or_empty
from jaxformer.run.identity import CONFIG
from jaxformer.statistics.significance import benjamini_hochberg, interim_level


def p_value_of_improvement(p_value_below: float, seeds: int) -> float:
    """Returns the p-value of a comparison after so many seeds, for its q-value.

    It is one-sided, since only kept changes count, and is multiplied by how much more often all interim analyses
    together err than this one.
    """
    return min(1.0, 0.05 / interim_level(seeds) * p_value_below)


def with_q_values(comparisons: Sequence[Comparison], rule: Rule, others: Sequence[float] = ()) -> list[Comparison]:
    """Returns comparisons with one parent with the q-value of each over all; none with too large a one is kept.

    One without a difference counts with a p-value of 1, and has no q-value.

    Args:
        others: p-values of further questions, as of `p_value_of_improvement`.
    """
    p_values = [*map(_p_value, comparisons), *others]
    q_values = benjamini_hochberg(np.nan_to_num(p_values, nan=1.0)).tolist()
    judged = []
    for one, p_value, q in zip(comparisons, p_values, q_values, strict=False):
        if not math.isnan(p_value):
            demoted = kept_by_chance(one.verdict, q, rule, *one.until_next)
            one = one._replace(q_value=q, verdict=demoted or one.verdict)
        judged.append(one)
    return judged


def _p_value(one: Comparison) -> float:
    """Returns the p-value of an improvement; NaN if a comparison shows no difference between seeds."""
    if one.difference is None or not one.difference.seeds_counted:
        return math.nan
    return p_value_of_improvement(one.difference.p_value_below, len(one.seeds))


def other_questions(runs: Path, parent: str, names: Collection[str], *, leaves_out: bool = False) -> dict[str, float]:
    """Returns, by name, the p-value of an improvement of each other question about a parent.

    From the newest comparison beside its runs; 1 for one that was trained and never compared.

    Args:
        runs: the folder of all run folders.
        names: of the questions to leave out.
        leaves_out: whether to return removals of a kept change of the parent, instead of changes of it.
    """
    folders = collections.defaultdict(list)
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        folders[folder.name.partition(AD_HOC)[0]].append(folder)
    questions = {}
    for name in folders.keys() - {*names}:
        lineage = _lineage(folders[name])
        is_of_parent = list(lineage.get("parents") or ())[:1] == [parent] and not lineage.get("evidence")
        if is_of_parent and bool(lineage.get("without")) == leaves_out:
            questions[name] = _recorded_p_value(runs / name, parent)
    return dict(sorted(questions.items()))


def _lineage(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns the lineage of an experiment from a finished run, at its own learning rate or at another; else none.

    Runs of screenings do not count: screening is not asking.

    Args:
        folders: of its runs, including those with fields set on the command line.
    """
    for summary in (path for folder in folders for path in sorted(folder.glob("seed_*/summary.json"))):
        record = read_json_or_empty(summary.with_name(CONFIG))
        lineage = None if is_screening_seed(record.get("seed", 0)) else record.get("lineage")
        if isinstance(lineage, dict) and set(lineage.get("overrides") or ()) <= {RATE}:
            return lineage
    return {}


def _recorded_p_value(folder: Path, parent: str) -> float:
    """Returns the p-value of an improvement from the comparison with a parent in a folder; else 1."""
    ours = [one for one in read_records(folder) if one.parent == parent]
    last = ours[-1].difference if ours else None
    return p_value_of_improvement(last.p_value_below, len(ours[-1].seeds)) if last and last.seeds_counted else 1.0
