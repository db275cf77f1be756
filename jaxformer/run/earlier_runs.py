"""The earlier runs of an experiment and of its ancestors, which must match its present configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.config import UserError, require
from jaxformer.devices.options import recorded_options
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json, read_json_or_empty
from jaxformer.record import differences
from jaxformer.run.folder import recorded_versions
from jaxformer.run.identity import CONFIG, code_digest, identify
from jaxformer.run.init_from import find_weights


def check_earlier_runs(runs: Path, resolved: Resolved) -> None:
    """Raises `UserError` if an experiment, or an ancestor, has changed since its runs were made.

    A variant is compared with the runs of its parent: if that has changed since, they differ by more than the variant.
    """
    for path in sorted((runs / resolved.name).glob(f"seed_*/{CONFIG}")):
        try:
            record = read_json(path) or {}
        except UserError as error:  # That run is refused, or left out, elsewhere; here it shows nothing.
            print_notice(str(error))
            continue
        theirs = record.get("identity", {})
        initial = find_weights(resolved.experiment.init_from, path.parent)
        ours = identify(resolved.experiment, theirs.get("seed", 0), initial.digest if initial else "")
        ours = json.loads(json.dumps(ours))
        missing = sorted(ours.keys() - theirs.keys())
        require(
            not missing,
            f"{path.parent} was trained by another version, without {', '.join(missing[:3])}; move it elsewhere",
        )
        changes = differences(ours, theirs)
        before = record.get("lineage", {}).get("change", {})
        changes = changes or differences(json.loads(json.dumps(dict(resolved.lineage.change))), before)
        require(
            not changes,
            f"{resolved.name} has changed since {path.parent} was trained ({'; '.join(changes[:5])}); undo the change, "
            "move its runs elsewhere, or give the new experiment another name: a file of its own, or --name",
        )
    for parent in resolved.parents:
        check_earlier_runs(runs, parent)


def made_with(device_kind: str) -> dict[str, Any]:
    """Returns the code, device, versions and options of a run that starts now, by kind of difference."""
    return {
        "code": code_digest(),
        "versions": recorded_versions(),
        "device": device_kind,
        "environment": recorded_options(),
    }


def differences_from_now(workdir: Path, now: Mapping[str, Any]) -> dict[str, str]:
    """Returns the differences between a finished run and one that would start now, in words, by kind.

    Args:
        now: from `made_with`; if known, with the `own_code` of the experiment and the `digests` of its data, without
            those that depend on the seed.
    """
    record, found = read_json_or_empty(workdir / CONFIG), {}
    for start in record.get("starts", []):
        then, commit = start.get("code"), (start.get("git") or {}).get("commit")
        own = start.get("own_code", {})
        own_now = now.get("own_code", own)
        if then != now["code"]:
            found["code"] = f"of commit {commit[:10]}" if commit else f"{then!s:.8}, now {now['code']:.8}"
        elif own != own_now:
            found["code"] = ", ".join(sorted(name for name in {*own, *own_now} if own.get(name) != own_now.get(name)))
        if start.get("device") != now["device"]:
            found["device"] = f"{start.get('device')}, now {now['device']}"
        # A package that only one of them has is no difference of versions.
        versions = start.get("versions", {})
        known = {name: now["versions"].get(name, version) for name, version in versions.items()}
        for kind, was, is_now in (
            ("versions", versions, known),
            ("environment", start.get("environment", {}), now["environment"]),
        ):
            changed = sorted(name for name in {*was, *is_now} if was.get(name) != is_now.get(name))
            if changed:
                each = (f"{n} {was.get(n, 'not set')}, now {is_now.get(n, 'not set')}" for n in changed[:3])
                found[kind] = "; ".join(each)
    is_now = now.get("digests", {})
    was = {name: digest for name, digest in record.get("digests", {}).items() if not name.startswith("plan.")}
    moved = sorted(name for name in {*was, *is_now} if was.get(name) != is_now.get(name)) if was and is_now else []
    return found | ({"data": ", ".join(moved)} if moved else {})
