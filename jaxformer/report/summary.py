"""The summary of a study: its parent, rule, noise floor and cost, and the number of each verdict."""

import datetime
import math
from collections.abc import Sequence

from jaxformer.ablation.margin import margin_of_tokens
from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report.findings import (
    collect_findings,
    describe_parent_at_best,
    mean_bits_per_byte,
    parent_at_best,
)


def summarise_study(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns the summary of a study, as (name, value)."""
    study, runs = (
        outcome.study,
        [run for each in (outcome.runs, outcome.tried) for runs in each.values() for run in runs],
    )
    parents = outcome.runs[study.parent]
    newest = max((run.workdir / "summary.json").stat().st_mtime for run in runs)
    date = datetime.datetime.fromtimestamp(int(newest), datetime.UTC)
    seeds = sorted({run.seed for run in runs})
    bits = mean_bits_per_byte(parents), describe_parent_at_best(outcome)
    versions = _distinct([", ".join(f"{k} {v}" for k, v in run.record["versions"].items()) for run in runs])
    return [
        ("Parent", f"{study.parent}: {parents[0].record['question']}"),
        ("Its bits per byte", "; ".join(text for text in bits if text)),
        ("Rule", study.rule.describe()),
        ("Margin", describe_margin(outcome)),
        ("Noise floor", describe_noise_floor(outcome)),
        ("Runs", f"{len(runs)} finished, of seeds {', '.join(map(str, seeds))}"),
        ("Device", _distinct([run.record["device"] for run in runs])),
        ("Device hours", describe_device_hours(outcome)),
        ("Code", _distinct([start["code"][:12] for run in runs for start in run.record["starts"]])),
        ("Versions", versions),
        ("Newest run", f"{date:%Y-%m-%d %H:%M} UTC"),
        *([("Not read", "; ".join(outcome.unread))] if outcome.unread else []),
    ]


def _distinct(values: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def count_verdicts(outcome: Outcome) -> str:
    """Returns the number of questions with each verdict."""
    words = [finding.word for finding in collect_findings(outcome)]
    counts = ", ".join(f"{words.count(word)} {word.value}" for word in Word if word in words)
    return f"{len(words)} question{'s' * (len(words) != 1)}: {counts}"


def describe_margin(outcome: Outcome) -> str:
    """Returns the margin within which two models count as equal, with its error."""
    rule, parent = outcome.study.rule, outcome.study.parent
    if rule.margin:
        return f"{rule.margin:g} bits per byte, as the study sets it"
    margin = margin_of_tokens(outcome.runs[parent], rule.equal_tokens)
    error = f" ± {margin.standard_error:.4f} over its seeds" if math.isfinite(margin.standard_error) else ""
    known = f"{margin.bits_per_byte:.4f} bits per byte{error}"
    text = known if math.isfinite(margin.bits_per_byte) else "unknown, since no curve of the parent shows it"
    if (one := parent_at_best(outcome)) and math.isfinite(one.margin):
        text += f"; {one.margin:.4f} at the parent's best learning rate"
    return f"{text} (what {rule.equal_tokens:.0%} of the tokens are worth on the curve of {parent})"


def describe_noise_floor(outcome: Outcome) -> str:
    """Returns the seed noise of the study's parent."""
    floor = noise_floor(outcome.runs[outcome.study.parent])
    text = "unknown with one seed of the parent"
    if math.isfinite(floor.standard_deviation):
        text = f"{floor.standard_deviation:.4f} bits per byte over {len(floor.seeds)} seeds"
    if (one := parent_at_best(outcome)) and math.isfinite(one.noise):
        text += f"; {one.noise:.4f} at the parent's best learning rate over {len(one.seeds)}"
    shared = "every comparison uses these runs: if they are lucky, all variants seem worse"
    return f"{text} (standard deviation of the parent's runs; {shared})"


def describe_device_hours(outcome: Outcome) -> str:
    """Returns how much device time the study took."""
    parent, tried, lost = outcome.study.parent, outcome.tried, sum(outcome.lost_hours.values())
    finished = sum(run.device_hours for each in (outcome.runs, tried) for runs in each.values() for run in runs)
    parents = sum(run.device_hours for run in (*outcome.runs[parent], *tried.get(parent, ())))
    stopped_early = f"; {lost:.2f} of runs that were stopped early" if lost else ""
    return f"{finished:.2f} of finished runs, {parents:.2f} of them the parent's{stopped_early}"
