"""Whether runs can be compared: what they should share, and where they differ."""

import collections
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.config import require_one_of

# Changes of these change the order of the data, so that batches cannot be the same.
DATA_FIELDS = (
    "corpus.",
    "tokenizer.",
    "packing.row_length",
    "packing.method",
    "packing.documents_per_row",
    "training.rows_per_step",
    "training.phases",
)

# Kinds of differences that one may choose to ignore.
ALLOWABLE = ("batches", "code", "device", "environment", "versions")

# Why nothing can be compared on a corpus; pieces of one file count as one document.
ONE_DOCUMENT = "a corpus with one validation document; raise corpus.validation_share or evaluation.validation_bytes"


def parse_allowed(text: str) -> tuple[str, ...]:
    """Returns the kinds that a text names, separated by commas.

    Raises:
        UserError: one is not in `ALLOWABLE`.
    """
    kinds = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    for kind in kinds:
        require_one_of("--allow", kind, ALLOWABLE)
    return kinds


def check_comparable(
    parents: Sequence[FinishedRun],
    variants: Sequence[FinishedRun],
    *,
    allow: Collection[str] = (),
    declared: Mapping[str, Sequence] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (flags, notes) on the runs of two arms: why they are not compared, and what to keep in mind.

    A flag begins with its kind: change, code, data, batches, tokenizer, evaluation, versions,
    device or environment.

    Args:
        allow: kinds of flags that are notes instead.
        declared: (before, after) of the fields that differ, by path; those of the variant's lineage by default.
    """
    flags, notes = [*_check_arm(parents), *_check_arm(variants)], []
    by_seed = {run.seed: run for run in parents}
    pairs = [(by_seed[run.seed], run) for run in variants if run.seed in by_seed]
    if declared is None:
        lineage = variants[0].record["lineage"]
        declared = {**lineage["change"], **lineage["consequences"]}
    are_trained = {bool(run.record["identity"].get("init_from")) for run in (*parents, *variants)}
    if len(are_trained) > 1:
        flags.append("change: some start from trained weights and others from scratch")
    elif are_trained == {True}:
        notes.append("from trained weights: seeds only vary the order of the data")
    moves_data = any(path.startswith(DATA_FIELDS) for path in declared)
    if moves_data:
        notes.append("the change moves the data: pairs share seeds and documents, but no batches")
    compared = shared_tasks([*parents, *variants])
    notes += _describe_other_tasks([*parents, *variants])
    for parent, variant in pairs:
        flags += _check_change(parent, variant, declared)
        flags += _check_provenance(parent, variant, declared, moves_data)
        own_flags, own_notes = _check_own_code(parent, variant)
        flags, notes = [*flags, *own_flags], [*notes, *own_notes]
        flags += _check_evaluations(parent, variant, declared, compared)
        if not moves_data and not _same_batches(parent, variant):
            flags.append(f"batches: {parent.workdir} and {variant.workdir} saw different batches")
        if variant.summary["tokens"] != parent.summary["tokens"]:
            ratio = variant.summary["tokens"] / parent.summary["tokens"]
            notes.append(f"the variant is trained on {ratio:.3f} x the parent's tokens")
    if apart := [variant.seed for parent, variant in pairs if _cores(parent) != _cores(variant)]:
        notes.append(
            f"parent and variant ran on different numbers of CPU cores, which round otherwise (seed "
            f"{', '.join(map(str, sorted(apart)))}): such a pair is less alike"
        )
    flags = list(dict.fromkeys(flags))
    kept = tuple(flag for flag in flags if flag.partition(":")[0] not in allow)
    waived = (f"allowed: {flag}" for flag in flags if flag.partition(":")[0] in allow)
    return kept, (*dict.fromkeys(notes), *waived)


def _cores(run: FinishedRun) -> set[int | None]:
    """Returns the numbers of cores that a run on a CPU had, which divide its sums, at its starts; else nothing."""
    if run.record["device"] != "cpu":
        return set()
    return {start.get("cores", run.record.get("cores")) for start in run.record["starts"]}


def _check_arm(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns flags on the runs of one experiment, which must differ only in their seeds."""
    flags, first = [], runs[0]
    for run in runs:
        where = f"among the runs of {first.record['experiment']}: {first.workdir.name} and {run.workdir.name}"
        if run.record["lineage"]["overrides"]:
            flags.append(f"change: {run.workdir} is ad hoc, with fields set on the command line, and not in the graph")
        if {**run.record["identity"], "seed": 0} != {**first.record["identity"], "seed": 0}:
            flags.append(f"change: configurations differ {where}")
        ours, theirs = _provenance(run), _provenance(first)
        how = {"code": _commits(first, run), "environment": _options(first, run)}
        flags += [f"{kind}: it differs {where}{how.get(kind, '')}" for kind in ours if ours[kind] != theirs[kind]]
        if not have_same_documents([first, run], first.validation):
            flags.append(f"evaluation: validation documents differ {where}")
        if moved := _differing([*own_code(first), *own_code(run)]):
            flags.append(f"code: {', '.join(moved)} differ {where}")
        for kind in ("code", "environment"):
            if len(ours[kind]) > 1:
                flags.append(f"{kind}: it changed while {run.workdir} was trained")
    return flags


def agreeing(runs: Sequence[FinishedRun], allow: Collection[str] = ()) -> tuple[list[FinishedRun], list[str]]:
    """Returns the runs that were made and validated as most were, and a line on each other one.

    Args:
        runs: of experiments that differ in their size, the largest last; it decides ties.
        allow: kinds of differences that do not count.
    """
    made = [{**_provenance(run), "evaluation": _documents(run)} for run in runs]
    made = [{kind: frozenset(each) for kind, each in one.items() if kind not in allow} for one in made]
    numbers = collections.Counter(frozenset(one.items()) for one in reversed(made))
    if not numbers:
        return [], []
    usual = dict(numbers.most_common(1)[0][0])
    differing = [[kind for kind in usual if one[kind] != usual[kind]] for one in made]
    notes = []
    for run, kinds in zip(runs, differing, strict=True):
        if kinds:
            ways = f"; --allow={','.join(kinds)} includes it" if {*kinds} <= {*ALLOWABLE} else ""
            notes.append(f"{run.workdir}: left out, unlike most runs of the sizes in {', '.join(kinds)}{ways}")
    return [run for run, kinds in zip(runs, differing, strict=True) if not kinds], notes


def _documents(run: FinishedRun) -> set[str]:
    """Returns what identifies the documents that a run was validated on, of each corpus."""
    found = set()
    for name, one in run.validation.items():
        arrays = (one.documents, one.sources, one.text_bytes)
        found.add(f"{name} {one.digest} {hashlib.sha256(b''.join(each.tobytes() for each in arrays)).hexdigest()}")
    return found


def own_code(run: FinishedRun) -> list[dict[str, str]]:
    """Returns the digests, by name, of an experiment's own code, at each start of a run."""
    return [start.get("own_code", {}) for start in run.record["starts"]]


def _differing(codes: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the names whose values are not the same in all."""
    return sorted(name for name in set().union(*codes) if len({code.get(name) for code in codes}) > 1)


def _check_own_code(parent: FinishedRun, variant: FinishedRun) -> tuple[list[str], list[str]]:
    """Returns (flags, notes) on code that experiment files ran: the parent's must be the same in both."""
    shared = set().union(*own_code(parent))
    moved = _differing([{name: code.get(name, "") for name in shared} for code in own_code(parent) + own_code(variant)])
    # Parts that come with jaxformer are not the variant's own code.
    new = set().union(*own_code(variant)) - shared
    added = sorted(name for name in new if not name.startswith("module jaxformer."))
    name = variant.record["experiment"]
    flags = [f"code: {', '.join(moved)} {_where(parent, variant)}"] if moved else []
    return flags, [f"{name} runs code of its own: {', '.join(added)}"] if added else []


def shared_tasks(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the tasks for which all runs have scores on the same items."""
    first, *others = runs
    return [
        name
        for name, task in first.tasks.items()
        if all(
            name in run.tasks and run.tasks[name].identity["items_digest"] == task.identity["items_digest"]
            for run in others
        )
    ]


def _own_tasks(run: FinishedRun) -> set[str]:
    """Returns the tasks that a run scores itself at its end; others were evaluated separately."""
    return set(run.record.get("tasks") or ())


def _describe_other_tasks(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns a note if only some runs were evaluated on a further task, or on the same items of it."""
    own, shared = set[str]().union(*map(_own_tasks, runs)), shared_tasks(runs)
    others = sorted({name for run in runs for name in run.tasks if name not in own and name not in shared})
    return [f"{', '.join(others)}: not compared, since not all runs have scores on the same items"] if others else []


def _provenance(run: FinishedRun) -> dict[str, set]:
    """Returns what a run was made with, by kind of difference."""
    starts, digests = run.record["starts"], run.record["digests"]
    return {
        "code": {start["code"] for start in starts},
        "versions": {str(start["versions"]) for start in starts},
        "environment": {json.dumps(start.get("environment", {}), sort_keys=True) for start in starts},
        "device": {start["device"] for start in starts},
        "tokenizer": {digests["tokenizer"]},
        "data": {f"{name} {digest}" for name, digest in digests.items() if name.startswith("corpus.")},
    }


def _check_change(parent: FinishedRun, variant: FinishedRun, declared: Mapping) -> list[str]:
    """Returns a flag if two runs differ by anything but the declared change, from and to the declared values."""
    ours, theirs = variant.record["identity"], parent.record["identity"]
    found = {
        path: [theirs.get(path), ours.get(path)]
        for path in {*ours, *theirs} - {"seed"}
        if ours.get(path) != theirs.get(path)
    }
    if "init_from" in found:  # Other parameters, and so other paths of the declared change.
        found["init_from"] = [(run.record["lineage"].get("init_from") or {}).get("path") for run in (parent, variant)]
    wrong = sorted(path for path in {*found, *declared} if found.get(path) != list(declared.get(path, ())))
    name = variant.record["experiment"]
    return [f"change: {', '.join(wrong)} differ otherwise than {name} declares"] if wrong else []


def _check_provenance(parent: FinishedRun, variant: FinishedRun, declared: Mapping, moves_data: bool) -> list[str]:
    """Returns flags on differences in what a pair of runs was made with."""
    ours, theirs = _provenance(variant), _provenance(parent)
    moves_tokens = any(path.startswith(("tokenizer.", "corpus.")) and not path.endswith(".weight") for path in declared)
    must_agree = ("code", "versions", "device", "environment", *(() if moves_tokens else ("tokenizer", "data")))
    where, how = _where(parent, variant), {"code": _commits(parent, variant), "environment": _options(parent, variant)}
    flags = [f"{kind}: they {where}{how.get(kind, '')}" for kind in must_agree if ours[kind] != theirs[kind]]
    if _plans(parent) != _plans(variant) and not moves_data:
        flags.append(f"data: the packing of documents {where}")
    return flags


def _check_evaluations(
    parent: FinishedRun, variant: FinishedRun, declared: Mapping, compared: Collection[str]
) -> list[str]:
    """Returns flags on differences in what a pair of runs was evaluated on and with.

    Args:
        compared: the tasks that all runs share.
    """
    flags, where = [], _where(parent, variant)
    shared = [name for name in parent.validation if name in variant.validation]
    if not shared or not all(_same_documents(parent, variant, name) for name in shared):
        flags.append(f"evaluation: validation documents {where}")
    if any(len(np.unique(parent.validation[name].sources)) < 2 for name in shared):
        flags.append(f"evaluation: {ONE_DOCUMENT}")
    own = _own_tasks(parent) | _own_tasks(variant)
    if own & parent.tasks.keys() != own & variant.tasks.keys():
        flags.append(f"evaluation: tasks {where}")
    results = [(name, parent.validation[name], variant.validation[name]) for name in shared]
    tasks = [name for name in parent.tasks if name in own & variant.tasks.keys() or name in compared]
    results += [(name, parent.tasks[name], variant.tasks[name]) for name in tasks]
    may_differ = {path.partition(".")[2] for path in {"packing.row_length", "training.compute_dtype"} & {*declared}}
    for name, one, other in results:
        differing = {key for key in one.identity if one.identity[key] != other.identity.get(key)} - may_differ
        for key in sorted(differing):
            kind = key if key in ("code", "versions", "device", "environment") else "evaluation"
            flags.append(f"{kind}: evaluations of {name} {where} ({key})")
    return flags


def _where(parent: FinishedRun, variant: FinishedRun) -> str:
    return f"differ between {parent.workdir} and {variant.workdir}"


def _commits(one: FinishedRun, other: FinishedRun) -> str:
    """Returns the git commits of two runs, and the digests of uncommitted changes."""

    def described(run: FinishedRun) -> str:
        states = [start.get("git") or {"commit": "unknown", "changes": None} for start in run.record["starts"]]
        names = [
            f"commit {state['commit'][:10]}" + (f" with changes {state['changes'][:10]}" if state["changes"] else "")
            for state in states
        ]
        return ", then ".join(dict.fromkeys(names))

    return f" ({described(one)}; {described(other)})"


def _options(one: FinishedRun, other: FinishedRun) -> str:
    """Returns the options of JAX and XLA in which two runs differ, with both values."""

    def by_name(run: FinishedRun) -> dict[str, list[str]]:
        starts = [start.get("environment", {}) for start in run.record["starts"]]
        names = sorted({name for start in starts for name in start})
        return {name: list(dict.fromkeys(start.get(name, "not set") for start in starts)) for name in names}

    ours, theirs, unset = by_name(one), by_name(other), ["not set"]
    pairs = {name: (ours.get(name, unset), theirs.get(name, unset)) for name in sorted({*ours, *theirs})}
    parts = [f"{name}: {', then '.join(a)}; {', then '.join(b)}" for name, (a, b) in pairs.items() if a != b]
    return f" ({', '.join(parts)})"


def _plans(run: FinishedRun) -> dict[str, str]:
    """Returns the digests of a run's packing, by corpus."""
    return {name: digest for name, digest in run.record["digests"].items() if name.startswith("plan.")}


def _same_batches(parent: FinishedRun, variant: FinishedRun) -> bool:
    shared = min(len(variant.batches), len(parent.batches))
    ours, theirs = variant.batches[:shared], parent.batches[:shared]
    return shared > 0 and bool((ours == theirs).all()) and bool((ours >= 0).all())


def have_same_documents(runs: Sequence[FinishedRun], corpora: Iterable[str]) -> bool:
    """Returns whether runs were validated on the same documents of some corpora."""
    first, *others = runs
    return all(name in run.validation and _same_documents(first, run, name) for name in corpora for run in others)


def _same_documents(parent: FinishedRun, variant: FinishedRun, name: str) -> bool:
    ours, theirs = variant.validation[name], parent.validation[name]
    return (
        ours.digest == theirs.digest
        and np.array_equal(ours.documents, theirs.documents)
        and np.array_equal(ours.sources, theirs.sources)
        and np.array_equal(ours.text_bytes, theirs.text_bytes)
    )
