"""Changes tried one after another, each on top of those kept before: from a first parent to the last kept one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.promotion import PROMOTABLE, check_name, find_comparison, promote, promotes
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Rule, Word
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.statistics.significance import INTERIM_SEEDS


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Changes in order. Each is a study of its own; if kept, it is the parent of the next."""

    parent: str
    """The experiment that the first variant changes."""
    variants: tuple[str, ...]
    """Names, as in a `Study`, in the order in which they are tried."""
    most_seeds: Annotated[int, Bounds(at_least=INTERIM_SEEDS[0], at_most=INTERIM_SEEDS[-1])] = 8
    """The most seeds of an undecided variant: more are added from 3 on, at each interim analysis."""
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self):
        check_fields(self)
        Study(parent=self.parent, variants=self.variants, rule=self.rule)  # Checks the names.


# Runs a study of one variant; returns its comparison, or None if its runs failed before it could be judged.
Ask = Callable[[Study], Comparison | None]


class Answer(NamedTuple):
    """The result of one change."""

    parent: str
    variant: str
    kept: str
    """The experiment that it was promoted to; '' if the parent stays."""


def run_chain(chain: Chain, name: str, runs: Path, ask: Ask) -> Iterator[Answer]:
    """Runs the questions of a chain in turn, and yields the result of each as soon as it is decided.

    A kept change is promoted to `NAME_VARIANT`, a file in `experiments/`. After an interruption the same call resumes:
    it takes promoted changes as they are, and finds the finished runs of the others.

    Args:
        name: of the chain.

    Raises:
        UserError: a change cannot be applied to what was kept, or a question could not be judged. Wrong names and
            changes are refused before the first question, as far as they can be known.
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
                not path.exists(),
                f"{path}: it exists and is not {variant} of {parent}; rename it, or the study's file",
            )
            found = _decide(chain, parent, variant, ask)
            if found.verdict.word in PROMOTABLE:
                promote(find_comparison(runs, found.variant, parent=parent), runs, name=kept, folder=folder)
            else:
                kept = ""
        yield Answer(parent, one, kept)
        parent = kept or parent


def _decide(chain: Chain, parent: str, variant: str, ask: Ask) -> Comparison:
    """Returns the comparison of a variant with its parent once it is decided, or no more seeds are to be trained."""
    found = None
    for seeds in (count for count in INTERIM_SEEDS if count <= chain.most_seeds):
        study = Study(parent=parent, variants=(variant,), seeds=seeds, parent_seeds=seeds, rule=chain.rule)
        found = ask(study)
        if not (found and found.verdict.word is Word.UNDECIDED and found.verdict.more_seeds):
            break
    if found is None or found.verdict.word is Word.NOT_COMPARED:
        reason = f" ({found.verdict.reason})" if found else ""
        raise UserError(
            f"{variant} of {parent} could not be judged{reason}; once it can, the same command resumes from there"
        )
    return found
