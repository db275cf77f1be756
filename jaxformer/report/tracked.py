"""A study's verdicts and pictures, sent to trackers beside its runs."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxformer.ablation.outcome import Outcome
from jaxformer.host.files import read_json_or_empty, write_remembered
from jaxformer.report.findings import collect_findings, reason
from jaxformer.report.summary import summarise_study
from jaxformer.report.write import MARKDOWN
from jaxformer.tracking.config import TrackingConfig
from jaxformer.tracking.tracker import Trackers, open_trackers

# In the folder of a report: digests of the reports last sent to trackers, by the run's id.
_TRACKED = "tracked.json"


def track_report(outcome: Outcome, folder: Path, name: str, config: TrackingConfig) -> None:
    """Sends a study's report to trackers, as a run of its own that grows as runs of the study finish.

    A step is the number of finished runs, or the next one if another report had as many; it has the pictures and
    `report.md`. The summary has the verdicts.

    Args:
        folder: of the report, as `write_report` left it.
        name: of the study.
    """
    runs = sum(len(runs) for each in (outcome.runs, outcome.tried) for runs in each.values())
    report, known = (folder / MARKDOWN).read_text(encoding="utf-8"), read_json_or_empty(folder / _TRACKED)
    run_id = _digest([str(folder.absolute()), *(each.name for each in outcome.experiments)])[:12]
    with Trackers(open_trackers(config, folder, f"study {name}", "studies", run_id).items()) as trackers:
        step = runs if known.get(run_id) == _digest(report) else max(runs, trackers.last_step + 1)
        trackers.log_hyperparameters({"experiment": f"study {name}", "config": dict(summarise_study(outcome))})
        pictures = {path.stem: path for path in sorted(folder.glob("*.png"))}
        trackers.log(step, {"report": report, **pictures})
        trackers.end_step()
        trackers.log_summary(verdicts(outcome))
        are_all_there = trackers.names >= {*config.names}
    if are_all_there:  # Else the next report completes it.
        write_remembered(folder / _TRACKED, json.dumps(known | {run_id: _digest(report)}).encode())


def _digest(value: str | list[str]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def verdicts(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Returns the verdict on each variant, its reason, and the difference in bits per byte with its error, if any."""
    found = {}
    for finding in collect_findings(outcome):
        difference = finding.comparison.difference if finding.comparison else None
        numbers = {"difference": difference.mean, "standard_error": difference.standard_error} if difference else {}
        found[finding.name] = {"verdict": finding.word.value, "reason": reason(finding), **numbers}
    return found
