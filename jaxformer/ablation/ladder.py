"""Questions one after another, each of what was kept of those before it: from a first parent to the last kept one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.promotion import PROMOTABLE, find_comparison, promote
from jaxformer.ablation.study import Ladder, Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError
from jaxformer.statistics.significance import INTERIM_SEEDS

# Runs a study of one variant; returns how that compares, or None where its runs failed before it could be judged.
Ask = Callable[[Study], Comparison | None]


class Rung(NamedTuple):
    """What came of one change."""

    parent: str
    found: Comparison
    kept: str
    """The experiment that it was promoted to; '' where the parent stays."""


def climb(ladder: Ladder, name: str, runs: Path, ask: Ask) -> Iterator[Rung]:
    """Asks the questions of a ladder in turn, and yields what came of each as soon as it is decided.

    What is kept is promoted to `NAME_VARIANT`, a file in `experiments/`. After an interruption the same call finds the
    finished runs and the files, and goes on.

    Args:
        name: of the ladder.

    Raises:
        UserError: a change cannot be applied to what was kept, or a question could not be judged.
    """
    parent = ladder.parent
    for variant in ladder.variants:
        found = _decide(ladder, parent, variant, ask)
        kept = ""
        if found.verdict.word in PROMOTABLE:
            kept = promote(find_comparison(runs, found.variant, parent=parent), runs, name=f"{name}_{variant}").name
        yield Rung(parent, found, kept)
        parent = kept or parent


def _decide(ladder: Ladder, parent: str, variant: str, ask: Ask) -> Comparison:
    """Returns how a variant compares with its parent when it is decided, or no more seeds are to be trained."""
    found = None
    for seeds in (count for count in INTERIM_SEEDS if count <= ladder.most_seeds):
        study = Study(parent=parent, variants=(variant,), seeds=seeds, parent_seeds=seeds, rule=ladder.rule)
        found = ask(study)
        if not (found and found.verdict.word is Word.UNDECIDED and found.verdict.more_seeds):
            break
    if found is None:
        raise UserError(f"{variant} of {parent} could not be judged; once it can, the same command goes on from there")
    return found
