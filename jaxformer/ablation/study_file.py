"""Study files, found and read: each assigns a `Study`, a `Chain` or a `Screening` to STUDY."""

from jaxformer.ablation.chain import Chain
from jaxformer.ablation.screening import Screening
from jaxformer.ablation.study import Study
from jaxformer.config import UserError, require
from jaxformer.experiment.files import find_study, run_file


def load_study(name_or_path: str) -> Study | Chain:
    """Returns what a file assigns to `STUDY`, found at a path or by its name.

    Raises:
        UserError: there is none, or it is a screening.
    """
    study = _load(name_or_path)
    if isinstance(study, Screening):
        raise UserError(f"this is a screening: `jaxformer screen --study={name_or_path}` runs it")
    return study


def load_screening(name_or_path: str) -> Screening:
    """Returns the screening that a file assigns to `STUDY`, found as by `load_study`.

    Raises:
        UserError: there is none, or it is another study.
    """
    study = _load(name_or_path)
    if not isinstance(study, Screening):
        raise UserError(f"this is not a screening: `jaxformer ablate --study={name_or_path}` runs it")
    return study


def _load(name_or_path: str) -> Study | Chain | Screening:
    return run_file(find_study(name_or_path), "STUDY", (Study, Chain, Screening), "study")


def choose_study(
    name_or_path: str | None,
    parent: str | None,
    variants: str | None,
    *,
    seeds: int = Study.seeds,
    parent_seeds: int = Study.parent_seeds,
) -> Study | Chain:
    """Returns the study of a file, or of a parent and its variants, separated by commas.

    Raises:
        UserError: neither is given, both are, or there is no such study.
    """
    if name_or_path:
        require(not (parent or variants), "give --study, or --parent and --variants, not both")
        return load_study(name_or_path)
    names = tuple(name.strip() for name in (variants or "").split(",") if name.strip())
    if not (parent and names):
        raise UserError("give --study, or --parent and --variants")
    return Study(parent=parent, variants=names, seeds=seeds, parent_seeds=parent_seeds)


def no_chain(study: Study | Chain) -> Study:
    """Returns a study as it is.

    Raises:
        UserError: it is a chain.
    """
    if isinstance(study, Chain):
        raise UserError(
            "this is a chain: `jaxformer ablate` runs it and `jaxformer report --all` draws it; name one of its "
            "changes with --parent and --variants"
        )
    return study
