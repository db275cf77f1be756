"""The earlier runs of an experiment and of its ancestors, which must have been made with what it still is."""

import json
from pathlib import Path

from jaxformer.config import UserError, differences, require
from jaxformer.experiment.variant import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json
from jaxformer.run.identity import CONFIG, identify
from jaxformer.run.init_from import find_weights


def check_earlier_runs(runs: Path, resolved: Resolved) -> None:
    """Raises `UserError` if runs of an experiment, or of an ancestor, were made with what it no longer is.

    A variant is compared with the runs of its parent: one that has moved since would make it more than one change.
    """
    for path in sorted((runs / resolved.name).glob(f"seed_*/{CONFIG}")):
        try:
            record = read_json(path) or {}
        except UserError as error:  # That run will be refused, or left out of what is compared; here it shows nothing.
            print_notice(str(error))
            continue
        theirs = record.get("identity", {})
        initial = find_weights(resolved.experiment.init_from, path.parent)
        ours = identify(resolved.experiment, theirs.get("seed", 0), initial.digest if initial else "")
        ours = json.loads(json.dumps(ours))
        missing = sorted(ours.keys() - theirs.keys())
        require(
            not missing,
            f"{path.parent} was trained by another version, without {', '.join(missing[:3])}; move it away",
        )
        changes = differences(ours, theirs)
        before = record.get("lineage", {}).get("change", {})
        changes = changes or differences(json.loads(json.dumps(dict(resolved.lineage.change))), before)
        require(
            not changes,
            f"{resolved.name} has moved since {path.parent} was trained ({'; '.join(changes[:5])}); put it back, move "
            "its runs away, or write the new one in a file of its own",
        )
    for parent in resolved.parents:
        check_earlier_runs(runs, parent)
