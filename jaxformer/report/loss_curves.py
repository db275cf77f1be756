"""The loss curves of a study's runs, and the benefit of pairing them by batches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import FinishedRun, paired_seeds
from jaxformer.ablation.outcome import Outcome
from jaxformer.experiment.experiment import tokens_by_step
from jaxformer.host.console import plain
from jaxformer.report.findings import Finding, collect_findings, runs_nearest_best
from jaxformer.report.style import BEHIND, COLOURS, GREY, INK, make_figure

_CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1, 1, 1)))

# The number of drawn points of a curve.
_POINTS = 250


def curve_groups(outcome: Outcome) -> list[tuple[str, list[FinishedRun]]]:
    """Returns (label, runs) of each experiment: at its own learning rate, or at the best one tried if compared so.

    The study's parent appears at both.
    """
    compared = [one for one in outcome.comparisons if one.best_rates and one.difference]
    best = {name: rate for each in compared for name, rate in zip(each[:2], each.best_rates or (), strict=True)}
    groups = [(outcome.study.parent, outcome.runs[outcome.study.parent])]
    for one in outcome.experiments:
        if rate := best.get(one.name):
            groups.append((f"{plain(one.name, 20)} at {rate.tried[1]:.2g}", runs_nearest_best(outcome, one.name, rate)))
        elif one.name != outcome.study.parent:
            groups.append((plain(one.name, 30), outcome.runs.get(one.name, [])))
    return [(label, runs) for label, runs in groups if runs]


def draw_losses(outcome: Outcome):
    """Returns the plot of all runs' loss curves, coloured by experiment: training, smoothed, and validation."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    groups = curve_groups(outcome)
    rows = math.ceil(len(groups) / 4)
    figure = make_figure(11.5, 4.2 + 0.19 * rows)
    training, validation = figure.subplots(1, 2)
    handles, late, late_bits = [], [], []
    for number, (name, runs) in enumerate(groups):
        colour, dash = _curve_style(number)
        smooth, tokens = [_running_mean(run.losses, max(1, len(run.losses) // 40)) for run in runs], []
        for run, curve in zip(runs, smooth, strict=True):
            tokens.append(np.concatenate([[0], tokens_by_step(run.experiment, len(run.losses))]))
            shown, thin = _shown(len(curve)), {"color": colour, "lw": 0.5, "alpha": 0.4, "zorder": 2}
            training.plot(tokens[-1][shown + 1], curve[shown], **thin)
            validation.plot(tokens[-1][run.curve[:, 0].astype(int)], run.curve[:, 1], **thin)
            late += list(curve[len(curve) // 8 :])
            late_bits += list(run.curve[len(run.curve) // 4 :, 1])
        thick = {"color": colour, "ls": dash, "lw": 1.4, "zorder": 3 if number else 4}
        curve = np.mean([one[: min(map(len, smooth))] for one in smooth], axis=0)
        shown = _shown(len(curve))
        training.plot(tokens[0][shown + 1], curve[shown], **thick)
        if len({tuple(run.curve[:, 0]) for run in runs}) == 1:
            mean = np.mean([run.curve for run in runs], axis=0)
            validation.plot(tokens[0][mean[:, 0].astype(int)], mean[:, 1], marker="o", ms=2.5, **thick)
        bits = np.mean([run.bits_per_byte for run in runs])
        handles.append(Line2D([], [], color=colour, ls=dash, lw=1.8, label=f" {name}  {bits:.4f}"))
    training.set(title="Training loss, smoothed", xlabel="tokens seen", ylabel="nats per target")
    validation.set(title="Validation", xlabel="tokens seen", ylabel="bits per byte")
    for axes, values in ((training, late), (validation, late_bits)):
        axes.xaxis.set_major_formatter(EngFormatter())
        finite = np.array([value for value in values if math.isfinite(value)])
        if len(finite):
            low, high = finite.min(), np.quantile(finite, 0.995)
            axes.set_ylim(low - 0.04 * (high - low + 1e-6), high + 0.08 * (high - low + 1e-6))
    title = "final bits per byte, mean over seeds"
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7.5, title=title, title_fontsize=7.5)
    return figure


def _shown(points: int, limit: int = _POINTS) -> np.ndarray:
    """Returns the indices of the drawn points of a curve."""
    return np.unique(np.linspace(0, max(points - 1, 0), limit).astype(int))[:points]


def _curve_style(number: int) -> tuple:
    if number == 0:
        return INK, "-"
    return _CURVES[(number - 1) % len(_CURVES)], _DASHES[(number - 1) // len(_CURVES) % len(_DASHES)]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of the finite values around each."""
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(finite, values, 0.0), finite.astype(float))
    )
    at = np.arange(len(values))
    first, last = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


class PairedCurve(NamedTuple):
    """The difference of training loss, variant minus parent, by step."""

    differences_SN: np.ndarray
    """Differences of each seed, both on the same batches."""
    crossed_SN: np.ndarray
    """Differences from the parent's run of another seed, to show what pairing saves; no rows with one seed."""

    @property
    def late_deviations(self) -> tuple[float, float]:
        """Standard deviations from step to step, over the second half: paired and unpaired."""
        return _late_deviation(self.differences_SN), _late_deviation(self.crossed_SN)


def _late_deviation(values_SN: np.ndarray) -> float:
    if not values_SN.size:
        return math.nan
    return float(np.nanmean(np.nanstd(values_SN[:, values_SN.shape[1] // 2 :], axis=1)))


def paired_curve(parents: Sequence[FinishedRun], variants: Sequence[FinishedRun]) -> PairedCurve | None:
    """Returns the paired differences of training loss; None if no seed saw the same batches in both arms."""
    pairs = []
    for parent, variant in paired_seeds(parents, variants):
        steps = min(len(parent.batches), len(variant.batches))
        ours, theirs = variant.batches[:steps], parent.batches[:steps]
        if steps and (ours == theirs).all() and (ours >= 0).all():
            pairs.append((parent.losses, variant.losses))
    if not pairs:
        return None
    steps = min(len(losses) for pair in pairs for losses in pair)
    parent_SN, variant_SN = (np.stack([pair[arm][:steps] for pair in pairs]) for arm in (0, 1))
    crossed = variant_SN - np.roll(parent_SN, 1, axis=0)
    return PairedCurve(variant_SN - parent_SN, crossed if len(pairs) > 1 else crossed[:0])


def draw_paired(outcome: Outcome):
    """Returns a panel for each variant with the difference of training loss on the same batches; None without any."""
    curves = []
    for finding in collect_findings(outcome):
        best = (finding.comparison and finding.comparison.best_rates) or (None, None)
        arms = zip((finding.parent, finding.name), best, strict=True)
        if curve := paired_curve(*(runs_nearest_best(outcome, name, rate) for name, rate in arms)):
            curves.append((finding, curve))
    if not curves:
        return None
    columns = min(4, max(2, len(curves)))
    rows = math.ceil(len(curves) / columns)
    tall = 0.8 + 2.0 * rows
    figure = make_figure(11.5, tall, layout=None)  # With many panels, the other layout takes seconds.
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    figure.subplots_adjust(0.075, 0.5 / tall, 0.995, 1 - 0.3 / tall, 0.08, 0.25)
    reach = []
    for axes, (finding, curve) in zip(panels, curves, strict=False):
        reach.append(_draw_curve(axes, finding, curve))
    limit = 1.15 * float(np.quantile(reach, 0.8)) or 1.0
    panels[0].set_ylim(-limit, limit)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    for axes in panels[max(len(curves) - columns, 0) : len(curves)]:  # Panels above no other.
        axes.tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=8.5, y=0.1 / tall)
    label = "training loss, variant minus parent\n(nats per target)"
    figure.supylabel(label, fontsize=8.5, x=0.005, multialignment="center")
    return figure


def _draw_curve(axes, finding: Finding, curve: PairedCurve) -> float:
    """Draws a panel; returns how far it reaches."""
    steps = curve.differences_SN.shape[1]
    window = max(1, steps // 25)
    shown = _shown(steps, _POINTS // 2)
    smooth_SN = np.stack([_running_mean(row, window) for row in curve.differences_SN])[:, shown]
    crossed = [_running_mean(row, window)[shown] for row in curve.crossed_SN]
    for row in crossed:
        axes.plot(shown + 1, row, color="#B4B7BC", lw=0.7)
    mean = np.mean(smooth_SN, axis=0)
    colour = COLOURS[finding.word]
    if len(smooth_SN) > 1:
        error = np.std(smooth_SN, axis=0, ddof=1) / math.sqrt(len(smooth_SN))
        axes.fill_between(shown + 1, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
    axes.plot(shown + 1, mean, color=colour, lw=1.5)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_title(plain(finding.name, 30), color=colour, fontsize=8.5)
    paired, unpaired = curve.late_deviations
    deviations = f"sd {paired:.3f} paired"
    if math.isfinite(unpaired) and paired > 0:
        deviations += f", {unpaired:.3f} unpaired ({unpaired / paired:.0f} x)"
    axes.text(0.98, 0.04, deviations, transform=axes.transAxes, ha="right", fontsize=7, color=GREY, bbox=BEHIND)
    late = [row[len(shown) // 8 :] for row in (mean, *crossed)]
    finite = np.concatenate([row[np.isfinite(row)] for row in late])
    return float(np.abs(finite).max()) if len(finite) else 0.0
