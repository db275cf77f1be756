"""Promoted variants: the changes that their line keeps, and the experiment without one of them."""

import collections
import dataclasses
import itertools
from typing import NamedTuple

from jaxformer.config import UserError, replace, require
from jaxformer.experiment.change import apply_change, differences
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.lineage import Resolved, make_lineage
from jaxformer.experiment.variant import OF, Promoted


class Kept(NamedTuple):
    """A change that a promoted experiment keeps."""

    name: str
    """The variant's name; if the same one is kept twice, the name of the experiment that it was promoted to."""
    judged: Resolved
    """The variant, as it was judged."""
    promoted: Resolved
    """The experiment that it was promoted to, alone or in a merge, with what was tuned for it."""


def make_promoted(promoted: Promoted, judged: Resolved, name: str) -> Resolved:
    """Returns a judged variant under its new name, with what was tuned for it.

    Raises:
        UserError: it was promoted before, leaves out a change and is tuned, or the tuned values change nothing.
    """
    require(judged.promoted is None, f"{judged.name} is promoted already: name the variant that was promoted")
    child = dataclasses.replace(replace(judged.experiment, promoted.change), name=name)
    tuned = differences(judged.experiment, child)
    for path in promoted.change:
        require(path in tuned, f"the change of {path} changes nothing: {judged.name} has it already; leave it out")
        require(not judged.without, f"{judged.name} leaves out a change: nothing is tuned for that; leave out {path}")
    known = judged.lineage
    bundle = known.bundle or ("the change, and what was tuned for it" if tuned else "")
    about = {"bundle": bundle, "expected": known.expected, "source": known.source, "evidence": promoted.evidence}
    lineage = make_lineage(judged.parents, child, known.change.keys() | tuned.keys(), **about)
    return Resolved(child, lineage, judged.parents, promoted, judged)


def changes_since(ancestor: Resolved, one: Resolved) -> list[Resolved]:
    """Returns the variants that lead from an ancestor to an experiment, in order.

    Raises:
        UserError: one of them is a merge, or leaves out a change.
    """
    line = [*itertools.takewhile(lambda each: not each.is_same(ancestor), one.line)][::-1]
    for each in line:
        require(
            each.variant is not None, f"{each.name} is a merge itself, or leaves out a change; join single variants"
        )
    return line


def apply_again(one: Resolved, base: Experiment) -> Experiment:
    """Returns another experiment than its parent with the change of a variant, promoted or not.

    Raises:
        UserError: its change is not valid there.
    """
    if one.variant is None:
        raise ValueError(f"{one.name} is a merge, which changes nothing itself")
    child, _ = apply_change(one.variant, base)
    return replace(child, one.tuned)


def promoted_variant(promoted: Resolved) -> Resolved:
    """Returns the variant that was promoted, as it was judged.

    Raises:
        UserError: none was.
    """
    if promoted.judged is None:
        raise UserError(f"{promoted.name} is not a promoted variant; promote one with `jaxformer promote`")
    return promoted.judged


def kept_changes(whole: Resolved) -> tuple[Resolved, list[Kept]]:
    """Returns the root of a line of promoted experiments, and the changes kept since, in order.

    An experiment promoted without a change no longer keeps it.

    Raises:
        UserError: an experiment was not promoted, or a promoted one joins merges.
    """
    judged, before = promoted_variant(whole), whole.common_ancestor
    root, kept = kept_changes(before) if before.promoted else (before, [])
    if judged.without:
        kept = [each for each in kept if each.name != judged.without]
    else:
        parts = whole.parents if len(whole.parents) > 1 else (judged,)
        kept += [Kept("", each, whole) for part in parts for each in changes_since(before, part)]
    names = [each.judged.name.partition(OF)[0] for each in kept]
    count = collections.Counter(names)
    named = zip(kept, names, strict=True)
    return root, [each._replace(name=each.promoted.name if count[name] > 1 else name) for each, name in named]


def leave_out(whole: Resolved, left_out: str, name: str) -> Resolved:
    """Returns a promoted experiment without one of the changes that it keeps; the others follow in order.

    What was tuned for a change follows it, and is left out with it. What was tuned for a merge stays until all of its
    parts are left out.

    Raises:
        UserError: it keeps no such change, another needs it, or nothing is left of it.
    """
    root, kept = kept_changes(whole)
    removed = next((each for each in kept if each.name == left_out), None)
    if removed is None:
        raise UserError(f"{whole.name} keeps {', '.join(each.name for each in kept)}, but not {left_out}")
    child, rest = root.experiment, [each for each in kept if each is not removed]
    for _, changes in itertools.groupby(rest, lambda each: each.promoted.name):
        for each in changes:
            try:
                child = apply_again(each.judged, child)
            except UserError as error:
                message = f"{left_out} cannot be left out of {whole.name}, since {each.name} needs it: {error}"
                raise UserError(message) from error
        child = replace(child, each.promoted.tuned)
    child = dataclasses.replace(child, name=name, question=f"What does {whole.name} lose without {left_out}?")
    require(
        bool(differences(whole.experiment, child)),
        f"{whole.name} is the same without {left_out}: a later change, or what was tuned for one, replaced it",
    )
    known, tuned, bundle = removed.judged.lineage, removed.promoted.tuned, f"without {left_out}"
    if tuned and any(each.promoted is removed.promoted for each in rest):
        bundle += f"; {', '.join(tuned)} as tuned for all that {removed.promoted.name} joins"
    if known.expected is None:
        raise ValueError(f"{removed.judged.name} stands alone, and cannot have been kept")
    low, high = known.expected
    source = f"what was expected of {left_out}, turned round ({known.source})"
    about = {"bundle": bundle, "expected": (0 - high, 0 - low), "source": source, "without": left_out}
    lineage = make_lineage((whole,), child, known.change.keys() | tuned.keys(), **about)
    return Resolved(child, lineage, (whole,))
