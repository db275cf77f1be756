"""Questions one after another, each of what was kept of those before it: from a first parent to the last kept one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.promotion import PROMOTABLE, check_name, find_comparison, promote, promotes
from jaxformer.ablation.study import Chain, Study
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, require
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.statistics.significance import INTERIM_SEEDS

# Runs a study of one variant; returns how that compares, or None where its runs failed before it could be judged.
Ask = Callable[[Study], Comparison | None]


class Answer(NamedTuple):
    """What came of one change."""

    parent: str
    variant: str
    kept: str
    """The experiment that it was promoted to; '' where the parent stays."""


def run_chain(chain: Chain, name: str, runs: Path, ask: Ask) -> Iterator[Answer]:
    """Asks the questions of a chain in turn, and yields what came of each as soon as it is decided.

    What is kept is promoted to `NAME_VARIANT`, a file in `experiments/`. After an interruption the same call takes what
    is promoted as it is, finds the finished runs of all else, and goes on.

    Args:
        name: of the chain.

    Raises:
        UserError: a change cannot be applied to what was kept, or a question could not be judged. What can be known of
            the names and changes is refused before the first question.
    """
    parent, first, folder = chain.parent, resolve(chain.parent), Path("experiments")
    for variant in chain.variants:
        resolve_variant_of(first, variant)
        check_name(f"{name}_{variant}")
    for variant in chain.variants:
        kept, path = f"{name}_{variant}", folder / f"{name}_{variant}.py"
        one = resolve_variant_of(resolve(parent), variant).name
        if not promotes(path, one, parent):
            require(
                not path.exists(), f"{path}: it exists, and is no {variant} of {parent}; rename it, or the study's file"
            )
            found = _decide(chain, parent, variant, ask)
            if found.verdict.word in PROMOTABLE:
                promote(find_comparison(runs, found.variant, parent=parent), runs, name=kept, folder=folder)
            else:
                kept = ""
        yield Answer(parent, one, kept)
        parent = kept or parent


def _decide(chain: Chain, parent: str, variant: str, ask: Ask) -> Comparison:
    """Returns how a variant compares with its parent when it is decided, or no more seeds are to be trained."""
    found = None
    for seeds in (count for count in INTERIM_SEEDS if count <= chain.most_seeds):
        study = Study(parent=parent, variants=(variant,), seeds=seeds, parent_seeds=seeds, rule=chain.rule)
        found = ask(study)
        if not (found and found.verdict.word is Word.UNDECIDED and found.verdict.more_seeds):
            break
    if found is None or found.verdict.word is Word.NOT_COMPARED:
        reason = f" ({found.verdict.reason})" if found else ""
        raise UserError(
            f"{variant} of {parent} could not be judged{reason}; once it can, the same command goes on from there"
        )
    return found
